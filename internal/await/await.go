// Package await waits for a while.
package await

import (
	"context"
	"time"
)

// Done waits until done is closed. Neither true nor an error is the limit; an
// error is that of ctx.
func Done(ctx context.Context, done <-chan struct{}, limit time.Duration) (bool, error) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return true, nil
	case <-timer.C:
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// Pause lets time pass, unless ctx ends before: its error.
func Pause(ctx context.Context, d time.Duration) error {
	_, err := Done(ctx, nil, d)
	return err
}
