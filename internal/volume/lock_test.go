package volume

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// Who works on one volume keeps off others from it, and from no other volume.
func TestLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l locks
		a, err := l.take(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		b, err := l.take(t.Context(), "b")
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan func())
		go func() {
			release, err := l.take(t.Context(), "a")
			if err != nil {
				t.Error(err)
			}
			got <- release
		}()
		gaveUp := errors.New("gave up")
		ctx, cancel := context.WithCancelCause(t.Context())
		go cancel(gaveUp)
		if _, err := l.take(ctx, "a"); !errors.Is(err, gaveUp) {
			t.Errorf("got %v", err)
		}
		synctest.Wait()
		select {
		case <-got:
			t.Error("two have the lock")
		default:
		}
		a()
		(<-got)()
		b()
		if len(l.held) != 0 {
			t.Errorf("remembers %d locks", len(l.held))
		}
	})
}
