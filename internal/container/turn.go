package container

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// startsMax is how many instances are started at a time. A start is a handful of
	// programs and some tens of MiB; with all of a boot at once none comes through for
	// minutes on a slow machine, and containerd answers nothing meanwhile.
	startsMax = 4
	// turnMax is how long a start waits for those before it. What is left of a step is
	// its own.
	turnMax = stepMax / 2
)

// turn waits until an instance may be started; done gives the place to the next.
func (d *Driver) turn(ctx context.Context, name string) (done func(), err error) {
	limit := time.NewTimer(turnMax)
	defer limit.Stop()
	select {
	case d.starts <- struct{}{}:
		return func() { <-d.starts }, nil
	case <-limit.C:
		return nil, fmt.Errorf("start workload %q: others have been starting for %v: %w", name, turnMax, errdefs.ErrUnavailable)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
