package workload

import (
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
)

func TestSentence(t *testing.T) {
	user := fmt.Errorf("user %q is not in the image's /etc/passwd: %w", "ghost", errdefs.ErrInvalidArgument)
	for _, tc := range []struct {
		err     error
		running uint64
		want    string
	}{
		{fmt.Errorf("prepare workload %q: image %q: %w", "web", "app:1", user), 0, `image "app:1": user "ghost" is not in the image's /etc/passwd`},
		{fmt.Errorf("start workload %q: %w", "web", errors.New("no space left")), 1, `no space left; generation 1 keeps running`},
		{fmt.Errorf("workload %q: %w", "web", user), 2, `user "ghost" is not in the image's /etc/passwd`},
		{fmt.Errorf("port 80 is taken by workload %q: %w", "web", errdefs.ErrConflict), 0, `port 80 is taken by workload "web"`},
		{fmt.Errorf("start workload %q: %w", "other", user), 0, `start workload "other": user "ghost" is not in the image's /etc/passwd`},
		{errors.Join(user, fmt.Errorf("workload %q: %w", "web", errdefs.ErrUnavailable)), 0, "user \"ghost\" is not in the image's /etc/passwd\n" + errdefs.ErrUnavailable.Error()},
	} {
		status := &v1.WorkloadStatus{Generation: 2, RunningGeneration: tc.running}
		if got := sentence(tc.err, "web", status); got != tc.want {
			t.Errorf("%q: got %q, want %q", tc.err, got, tc.want)
		}
	}
}
