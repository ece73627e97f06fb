// Package reconcile owns the queue that every loop of the capsule runs on: a
// function is called for keys until the machine is as declared. It knows
// nothing of what a key stands for.
//
//   - one call per key at a time, several keys in parallel up to Workers
//   - wake-ups of a key coalesce; one that comes during a call causes another
//   - an error is tried again after a back-off that doubles, with jitter
//   - every key is looked at each Resync, since events are only hints
//   - a panic is an error of its key
package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"
)

// Options of a queue; zero values take the defaults named here.
type Options struct {
	Workers    int                            // calls at a time, 8
	Resync     time.Duration                  // between full passes, 30 s
	BackoffMin time.Duration                  // after the first error, 100 ms
	BackoffMax time.Duration                  // 5 min
	Keys       func(context.Context) []string // all keys, for the full pass; may be nil
	// Passed is told how long a full pass took, from asking for the keys until each
	// was called; may be nil. It must not wait.
	Passed func(took time.Duration)
}

// Func brings one key closer to what is declared. again above zero asks for
// another call after that time, unless a wake-up comes first.
type Func func(ctx context.Context, key string) (again time.Duration, err error)

// Queue calls its function for keys that were woken.
type Queue struct {
	opts Options
	fn   Func

	mu     sync.Mutex
	keys   map[string]*entry
	ready  []string
	signal chan struct{} // something is ready
	ended  bool
	pass   *fullPass // the full pass that is under way, nil for none
}

// fullPass is one that is under way, with the keys that are not called yet.
type fullPass struct {
	began time.Time
	left  map[string]struct{}
}

// entry is what the queue knows of a key with something pending.
type entry struct {
	ready    bool // in Queue.ready
	running  bool
	woken    bool // during the call that runs
	failures int
	timer    *time.Timer // of the next call, nil when none
}

// New makes a queue; Run makes it work.
func New(opts Options, fn Func) *Queue {
	if opts.Workers <= 0 {
		opts.Workers = 8
	}
	if opts.Resync <= 0 {
		opts.Resync = 30 * time.Second
	}
	if opts.BackoffMin <= 0 {
		opts.BackoffMin = 100 * time.Millisecond
	}
	if opts.BackoffMax <= 0 {
		opts.BackoffMax = 5 * time.Minute
	}
	return &Queue{opts: opts, fn: fn, keys: map[string]*entry{}, signal: make(chan struct{}, 1)}
}

// Wake asks for a call soon. It never blocks and may be called before Run.
func (q *Queue) Wake(key string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.wake(key)
}

func (q *Queue) wake(key string) {
	e := q.keys[key]
	if e == nil {
		e = &entry{}
		q.keys[key] = e
	}
	if e.timer != nil {
		e.timer.Stop()
		e.timer = nil
	}
	switch {
	case e.running:
		e.woken = true
	case !e.ready:
		e.ready = true
		q.ready = append(q.ready, key)
		q.raise()
	}
}

func (q *Queue) raise() {
	select {
	case q.signal <- struct{}{}:
	default:
	}
}

// Run works until ctx ends and all calls have returned. A queue runs once.
func (q *Queue) Run(ctx context.Context) {
	slots := make(chan struct{}, q.opts.Workers)
	var calls sync.WaitGroup
	defer q.end()
	defer calls.Wait()
	resync := time.NewTicker(q.opts.Resync)
	defer resync.Stop()
	q.resync(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case <-resync.C:
			q.resync(ctx)
			continue
		case <-q.signal:
		}
		for {
			select {
			case <-ctx.Done():
				return
			case slots <- struct{}{}:
			}
			key, ok := q.take()
			if !ok {
				<-slots
				break
			}
			calls.Go(func() {
				q.call(ctx, key)
				<-slots
			})
		}
	}
}

// resync wakes all keys but those that wait for a back-off of their own.
func (q *Queue) resync(ctx context.Context) {
	if q.opts.Keys == nil {
		return
	}
	now := &fullPass{began: time.Now(), left: map[string]struct{}{}}
	keys := q.opts.Keys(ctx)
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, key := range keys {
		if e := q.keys[key]; e == nil || e.failures == 0 {
			q.wake(key)
			now.left[key] = struct{}{}
		}
	}
	if q.pass == nil { // else it goes on: one of its calls takes long
		q.pass = now
		q.called("") // without keys it is over
	}
}

// called notes the end of a call that began after the last wake-up of its key.
func (q *Queue) called(key string) {
	if q.pass == nil {
		return
	}
	delete(q.pass.left, key)
	if len(q.pass.left) > 0 {
		return
	}
	if q.opts.Passed != nil {
		q.opts.Passed(time.Since(q.pass.began))
	}
	q.pass = nil
}

func (q *Queue) take() (string, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.ready) == 0 {
		return "", false
	}
	key := q.ready[0]
	q.ready = q.ready[1:]
	e := q.keys[key]
	e.ready, e.running, e.woken = false, true, false
	return key, true
}

func (q *Queue) call(ctx context.Context, key string) {
	again, err := q.protected(ctx, key)
	if err != nil && ctx.Err() == nil {
		slog.Error("reconcile", "key", key, "error", err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	e := q.keys[key]
	e.running = false
	if err != nil {
		e.failures++
		again = q.backoff(e.failures)
	} else {
		e.failures = 0
	}
	if !e.woken {
		q.called(key)
	}
	switch {
	case e.woken:
		q.wake(key)
	case q.ended || again <= 0:
		if e.failures == 0 {
			delete(q.keys, key)
		}
	default:
		q.later(key, e, again)
	}
}

// later wakes key after a while, unless something else does before.
func (q *Queue) later(key string, e *entry, after time.Duration) {
	var timer *time.Timer
	timer = time.AfterFunc(after, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if e.timer == timer && q.keys[key] == e {
			q.wake(key)
		}
	})
	e.timer = timer
}

func (q *Queue) protected(ctx context.Context, key string) (again time.Duration, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return q.fn(ctx, key)
}

// backoff doubles from BackoffMin to BackoffMax; a quarter of it is jitter, so
// that keys that failed together do not return together.
func (q *Queue) backoff(failures int) time.Duration {
	d := q.opts.BackoffMin
	for i := 1; i < failures && d < q.opts.BackoffMax; i++ {
		d *= 2
	}
	d = min(d, q.opts.BackoffMax)
	return d - rand.N(d/4+1)
}

// end stops the timers that are left.
func (q *Queue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	for _, e := range q.keys {
		if e.timer != nil {
			e.timer.Stop()
		}
	}
}
