package workload

import (
	"testing"
	"testing/synctest"
	"time"
)

// What a look at a workload sees is never older than what it is for.
func TestFreshness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		driver := &slowLists{runtime: newRuntime()}
		f := &freshness{since: map[string]uint64{}}
		l := &lister{kind: "Container", driver: driver, now: f.now}
		look := func(since uint64) {
			t.Helper()
			if _, err := l.list(t.Context(), since); err != nil {
				t.Error(err)
			}
		}
		want := func(why string, n int32) {
			t.Helper()
			if got := driver.lists.Swap(0); got != n {
				t.Errorf("%s: %d lists, want %d", why, got, n)
			}
		}
		f.woken("a", "b", "c", "d")
		look(f.now()) // of the pass
		look(f.take("a"))
		want("a pass and a look for it", 1)
		look(f.take("a"))
		want("a second look: nothing is known of why", 1)
		f.woken("b")
		look(f.take("b"))
		want("woken after the list began", 1)
		look(f.take("c"))
		want("the list of b is newer than the pass", 0)
		f.acted("d")
		f.acted("unknown")
		look(f.take("d"))
		want("a step since the list", 1)

		f.woken("a", "b", "c")
		go look(f.take("a"))
		time.Sleep(listTakes / 2)
		look(f.take("b"))
		want("a list that is under way began late enough", 1)
		time.Sleep(2 * reuseMax)
		look(f.take("c"))
		want("a list that is old", 1)
	})
}
