package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	v1 "capsule/api/capsule/v1"
)

// world is workloads whose checks answer what it says.
type world struct {
	*testing.T
	prober *Prober

	mu     sync.Mutex
	fails  map[string]string // by workload: what its check says
	hangs  map[string]bool
	checks map[string]int
	told   []string
	now    map[string]int // checks under way, by workload
	most   int            // checks at a time
}

func inWorld(t *testing.T, play func(*world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, fails: map[string]string{}, hangs: map[string]bool{}, checks: map[string]int{}, now: map[string]int{}}
		w.prober = NewProber(func(name string) {
			v, ok := w.prober.Verdict(name)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.told = append(w.told, strings.TrimSuffix(fmt.Sprint(name, " ", word(v.State), ok, " ", v.Text), " "))
		})
		defer w.prober.Close()
		play(w)
	})
}

func word(s v1.HealthState) string { return strings.TrimPrefix(s.String(), "HEALTH_STATE_") + " " }

func (w *world) target(name string, change ...func(*Target)) Target {
	t := Target{
		Run: name + "-1", Started: time.Now(),
		Check: Check{Exec: []string{"x"}, Interval: 30 * time.Second, Timeout: 5 * time.Second, StartInterval: 5 * time.Second, Retries: 3},
	}
	t.Place.Exec = func(ctx context.Context, _ []string, out io.Writer) (int, error) {
		w.mu.Lock()
		w.checks[name]++
		if w.now[name]++; w.now[name] > 1 {
			w.Errorf("two checks of %s at a time", name)
		}
		sum := 0
		for _, n := range w.now {
			sum += n
		}
		w.most = max(w.most, sum)
		text, hangs := w.fails[name], w.hangs[name]
		w.mu.Unlock()
		defer func() { w.mu.Lock(); w.now[name]--; w.mu.Unlock() }()
		if hangs {
			<-ctx.Done()
			return 0, ctx.Err()
		}
		if text == "" {
			return 0, nil
		}
		_, err := io.WriteString(out, text)
		return 1, err
	}
	for _, c := range change {
		c(&t)
	}
	return t
}

func (w *world) answer(name, fails string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fails[name] = fails
}

func (w *world) hang(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hangs[name] = true
}

// news are the lines that were told since.
func (w *world) news() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	told := w.told
	w.told = nil
	return told
}

func (w *world) pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func (w *world) want(lines ...string) {
	w.Helper()
	if diff := cmp.Diff(lines, w.news()); diff != "" {
		w.Error(diff)
	}
}

func (w *world) count(name string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.checks[name]
	w.checks[name] = 0
	return n
}

func TestProberFollows(t *testing.T) {
	inWorld(t, func(w *world) {
		w.answer("web", "refused")
		w.prober.Watch("web", w.target("web"))
		w.pass(9 * time.Second)
		w.want("web STARTING true exit code 1: refused")
		w.answer("web", "")
		w.pass(6 * time.Second)
		w.want("web HEALTHY true")
		w.count("web")
		w.pass(5 * time.Minute)
		w.want() // nothing new
		if n := w.count("web"); n < 9 || n > 10 {
			t.Errorf("%d checks in five minutes", n)
		}
		w.answer("web", "full")
		w.pass(100 * time.Second)
		w.want("web HEALTHY true exit code 1: full", "web HEALTHY true exit code 1: full", "web UNHEALTHY true exit code 1: full")
		w.pass(5 * time.Minute)
		w.want()
		for i := range 10 { // what it says alone is told now and then
			w.answer("web", fmt.Sprint("full at ", i))
			w.pass(33 * time.Second)
		}
		if n := len(w.news()); n < 4 || n > 6 {
			t.Errorf("%d texts in five minutes", n)
		}
		w.answer("web", "")
		w.pass(33 * time.Second)
		w.want("web HEALTHY true")
	})
}

// A new run begins anew; the same run goes on.
func TestProberRuns(t *testing.T) {
	inWorld(t, func(w *world) {
		w.prober.Watch("web", w.target("web"))
		w.pass(time.Second)
		w.want("web HEALTHY true")
		w.prober.Watch("web", w.target("web"))
		w.pass(time.Second)
		w.want()
		w.prober.Watch("web", w.target("web", func(t *Target) { t.Run = "web-2" }))
		if _, ok := w.prober.Verdict("web"); ok {
			t.Error("the verdict on the run before is given for the new one")
		}
		w.pass(time.Second)
		w.want("web HEALTHY true")
		w.prober.Drop("web")
		w.count("web")
		w.pass(time.Hour)
		if n := w.count("web"); n > 0 {
			t.Errorf("%d checks of what is gone", n)
		}
	})
}

// A daemon that starts goes on with what the one before knew.
func TestProberResumes(t *testing.T) {
	inWorld(t, func(w *world) {
		for i := range 50 {
			name := fmt.Sprint("w", i)
			w.answer(name, "busy")
			w.prober.Watch(name, w.target(name, func(t *Target) {
				t.Started, t.Before = time.Now().Add(-time.Hour), healthy
			}))
		}
		w.pass(time.Second)
		told := w.news()
		if n := len(told); n == 0 || n > 25 {
			t.Errorf("%d of 50 checks in the first second", n)
		}
		w.pass(5 * time.Second)
		for _, line := range append(told, w.news()...) {
			if !strings.Contains(line, " HEALTHY true exit code 1: busy") {
				t.Errorf("one failure after a start of the daemon: %s", line)
			}
		}
	})
}

// However many hang, not all are looked at at once, and a hang ends with its time.
func TestProberIsBounded(t *testing.T) {
	inWorld(t, func(w *world) {
		for i := range 200 {
			name := fmt.Sprint("w", i)
			w.hang(name)
			w.prober.Watch(name, w.target(name))
		}
		w.pass(2 * time.Minute)
		for i := range 200 {
			if w.count(fmt.Sprint("w", i)) == 0 {
				t.Errorf("w%d was not looked at", i)
			}
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.most > probesMax {
			t.Errorf("%d checks at a time", w.most)
		}
	})
}

// The end of the prober ends what it does.
func TestProberCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ended atomic.Bool
		p := NewProber(func(string) { t.Error("a check that was cut short is told") })
		p.Watch("web", Target{Run: "1", Started: time.Now(), Check: Check{Exec: []string{"x"}, Interval: time.Second, StartInterval: time.Second, Timeout: time.Minute, Retries: 1},
			Place: Place{Exec: func(ctx context.Context, _ []string, _ io.Writer) (int, error) {
				<-ctx.Done()
				ended.Store(true)
				return 0, errors.New("cut short")
			}}})
		<-time.After(10 * time.Second)
		p.Close()
		if !ended.Load() {
			t.Error("a check runs on")
		}
		p.Watch("web", Target{Run: "2"}) // does nothing
	})
}
