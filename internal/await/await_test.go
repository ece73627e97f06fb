package await

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestDone(t *testing.T) {
	for name, test := range map[string]struct {
		closed, left bool
		err          error
		took         time.Duration
	}{
		"done":        {closed: true},
		"limit":       {took: time.Minute},
		"caller left": {left: true, err: context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				done := make(chan struct{})
				ctx, leave := context.WithCancel(t.Context())
				defer leave()
				if test.closed {
					close(done)
				}
				if test.left {
					leave()
				}
				began := time.Now()
				got, err := Done(ctx, done, time.Minute)
				if got != test.closed || !errors.Is(err, test.err) || time.Since(began) != test.took {
					t.Errorf("%v, %v after %v", got, err, time.Since(began))
				}
			})
		})
	}
}

func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if err := Pause(context.Background(), time.Hour); err != nil || time.Since(began) != time.Hour {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}
