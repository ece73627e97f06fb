package quota

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// What one key takes is not missing for another, and comes back with time.
func TestQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(time.Minute, 2)
		take := func(key string) (n int) {
			for q.Allow(key) {
				n++
			}
			return n
		}
		for _, want := range []struct {
			key string
			n   int
		}{{"a", 2}, {"a", 0}, {"b", 2}} {
			if n := take(want.key); n != want.n {
				t.Errorf("%s took %d, want %d", want.key, n, want.n)
			}
		}
		time.Sleep(time.Minute)
		if n := take("a"); n != 1 {
			t.Errorf("after one interval a took %d", n)
		}
	})
}

// Keys without end take no memory without end.
func TestQuotaOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(time.Minute, 1)
		let := 0
		for i := range 3 * keysMax {
			if q.Allow(fmt.Sprint(i)) {
				let++
			}
		}
		if let != keysMax || len(q.of) != keysMax {
			t.Errorf("%d let in, %d kept", let, len(q.of))
		}
		time.Sleep(time.Minute)
		if !q.Allow("new") || len(q.of) != 1 {
			t.Errorf("%d kept of those that have all again", len(q.of))
		}
	})
}
