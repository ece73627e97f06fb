package container

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

func TestTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(nil, Options{})
		var leave []func()
		for range startsMax {
			done, err := d.turn(t.Context(), "first")
			if err != nil {
				t.Fatal(err)
			}
			leave = append(leave, done)
		}
		// Those before never end: that says nothing about this one, which tries again.
		began := time.Now()
		if _, err := d.turn(t.Context(), "late"); !errdefs.IsUnavailable(err) || time.Since(began) != turnMax {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := d.turn(ctx, "gone"); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		time.AfterFunc(time.Second, leave[0])
		began = time.Now()
		if done, err := d.turn(t.Context(), "next"); err != nil || time.Since(began) != time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		} else {
			done()
		}
	})
}
