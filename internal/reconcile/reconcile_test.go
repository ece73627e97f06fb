package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// calls records when each key was called.
type calls struct {
	mu    sync.Mutex
	begun time.Time
	list  []string
}

func (c *calls) add(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, fmt.Sprint(key, " ", time.Since(c.begun).Truncate(time.Second)))
}

func (c *calls) got() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.list)
}

func (c *calls) want(t *testing.T, want ...string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if diff := cmp.Diff(want, c.list); diff != "" {
		t.Error(diff)
	}
}

// start runs a queue until the test ends.
func start(t *testing.T, opts Options, fn Func) (*Queue, *calls) {
	t.Helper()
	c := &calls{begun: time.Now()}
	q := New(opts, func(ctx context.Context, key string) (time.Duration, error) {
		c.add(key)
		return fn(ctx, key)
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { q.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return q, c
}

// pass lets time pass.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func nothing(context.Context, string) (time.Duration, error) { return 0, nil }

func TestWakesCoalesce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		running, most := 0, 0
		q, c := start(t, Options{}, func(context.Context, string) (time.Duration, error) {
			running++
			most = max(most, running)
			time.Sleep(2 * time.Second)
			running--
			return 0, nil
		})
		for range 5 {
			q.Wake("a")
		}
		pass(time.Second)
		for range 5 { // during the call: one more
			q.Wake("a")
		}
		pass(10 * time.Second)
		c.want(t, "a 0s", "a 2s")
		if most != 1 {
			t.Errorf("%d calls of one key at a time", most)
		}
	})
}

func TestKeysRunInParallelUpToWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, c := start(t, Options{Workers: 2}, func(context.Context, string) (time.Duration, error) {
			time.Sleep(4 * time.Second)
			return 0, nil
		})
		for _, key := range []string{"a", "b", "c"} {
			q.Wake(key)
		}
		synctest.Wait()
		if n := len(c.got()); n != 2 {
			t.Errorf("%d calls at once", n)
		}
		pass(10 * time.Second)
		if n := len(c.got()); n != 3 || c.got()[2] != "c 4s" {
			t.Error(c.got())
		}
	})
}

func TestErrorsBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Time
		fails := 6
		q, _ := start(t, Options{BackoffMin: time.Second, BackoffMax: 8 * time.Second, Keys: func(context.Context) []string { return []string{"a"} }, Resync: 3 * time.Second},
			func(context.Context, string) (time.Duration, error) {
				at = append(at, time.Now())
				if len(at) == 2 {
					panic("oops")
				}
				if len(at) <= fails {
					return 0, errors.New("no")
				}
				return 0, nil
			})
		_ = q
		pass(40 * time.Second)
		synctest.Wait()
		for i, most := range []time.Duration{1, 2, 4, 8, 8, 8} { // the full pass does not cut them short
			most *= time.Second
			if got := at[i+1].Sub(at[i]); got > most || got < most*3/4 {
				t.Errorf("wait %d is %v, want about %v", i+1, got, most)
			}
		}
		if got := at[8].Sub(at[7]); got > 3*time.Second { // good again: the full pass
			t.Errorf("after success: %v", got)
		}
	})
}

func TestWakeSkipsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var again atomic.Int64
		again.Store(int64(time.Hour))
		q, c := start(t, Options{Resync: 24 * time.Hour}, func(context.Context, string) (time.Duration, error) {
			return time.Duration(again.Load()), nil
		})
		q.Wake("a")
		pass(5 * time.Second)
		again.Store(int64(7 * time.Second))
		q.Wake("a")
		pass(8 * time.Second)
		c.want(t, "a 0s", "a 5s", "a 12s")
	})
}

func TestFullPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, c := start(t, Options{Keys: func(context.Context) []string { return []string{"a"} }}, nothing)
		pass(65 * time.Second)
		c.want(t, "a 0s", "a 30s", "a 1m0s")
	})
}

// A pass ends with the last call that began after it did, whatever else is called
// meanwhile, and the next one is timed anew.
func TestFullPassIsTimed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		took := make(chan time.Duration, 9)
		opts := Options{
			Workers: 2, Resync: time.Minute, Passed: func(d time.Duration) { took <- d },
			Keys: func(context.Context) []string { time.Sleep(time.Second); return []string{"a", "b", "c"} },
		}
		var calls atomic.Int32
		q, _ := start(t, opts, func(_ context.Context, key string) (time.Duration, error) {
			if key == "other" {
				return 0, nil
			}
			n := calls.Add(1)
			time.Sleep(4 * time.Second)
			if n > 3 {
				return 0, errors.New("fails")
			}
			return 0, nil
		})
		pass(3 * time.Second)
		q.Wake("a") // it runs: the pass waits for its second call
		q.Wake("other")
		pass(3 * time.Second)
		if len(took) > 0 {
			t.Errorf("over after %v", <-took)
		}
		pass(30 * time.Second)
		if d := <-took; d != 9*time.Second || len(took) > 0 {
			t.Errorf("it took %v, and there were %d more", d, len(took))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		var passes atomic.Int32
		start(t, Options{Resync: time.Minute, Passed: func(time.Duration) { passes.Add(1) }, Keys: func(context.Context) []string { return nil }}, nil)
		pass(150 * time.Second)
		if n := passes.Load(); n != 3 {
			t.Errorf("%d passes over nothing, want 3", n)
		}
	})
}

func TestRunWaitsForItsCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := false
		q := New(Options{}, func(ctx context.Context, _ string) (time.Duration, error) {
			<-ctx.Done()
			time.Sleep(time.Second)
			ended = true
			return time.Minute, ctx.Err()
		})
		q.Wake("a") // before Run
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		q.Run(ctx)
		if !ended {
			t.Error("a call still runs")
		}
		q.Wake("a") // after Run: nothing, no panic
	})
}
