package container

import (
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
)

// What starts and ends of the shim that all share were seen to answer, and what is the
// workload's own fault.
func TestShimGone(t *testing.T) {
	for text, want := range map[string]bool{
		"ttrpc: closed": true,
		"dial unix /run/containerd/s/e562: connect: connection refused":                                                                                   true,
		"failed to start shim: start failed: io.containerd.runc.v2: remove pre-existing socket: remove /run/containerd/s/e562: no such file or directory": true,
		"failed to start shim: start failed: io.containerd.runc.v2: try create new shim socket 2x: bind: address already in use":                          true,
		`exec: "/nosuch": stat /nosuch: no such file or directory`:                                                                                        false,
		"unable to find user ghost: no matching entries in passwd file":                                                                                   false,
	} {
		if got := shimGone(errors.New(text)); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	if !shimGone(fmt.Errorf("task: %w", errdefs.ErrUnavailable)) {
		t.Error("unavailable")
	}
}
