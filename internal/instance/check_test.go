package instance

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"capsule/internal/workload"
)

func TestOutermost(t *testing.T) {
	var mounts []workload.Mount
	for _, path := range []string{"/data/cache", "/data", "/database", "/data/cache/deep", "/a/", "/a/b"} {
		mounts = append(mounts, workload.Mount{Path: path})
	}
	if diff := cmp.Diff([]string{"/data", "/database", "/a/"}, outermost(mounts)); diff != "" {
		t.Error(diff)
	}
}
