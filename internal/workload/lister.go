package workload

import (
	"context"
	"sync"
	"time"
)

// lister shares the lists of a driver: a caller gets one that began after the moment
// that it names, and all that wait meanwhile get the same.
type lister struct {
	kind   string
	driver Driver
	now    func() uint64 // moments, see freshness

	mu                  sync.Mutex
	last, running, next *listing
}

type listing struct {
	began  uint64
	at     time.Time // when it began, by the clock
	done   chan struct{}
	byName map[string][]seen
	err    error
}

// reuseMax is how old a list may be at most, whoever asks: events are only hints.
const reuseMax = 5 * time.Second

// list gives all instances of the kind by name, as they were at a moment after since.
func (l *lister) list(ctx context.Context, since uint64) (map[string][]seen, error) {
	mine := l.join(ctx, since)
	select {
	case <-mine.done:
		return mine.byName, mine.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// join gives a listing that is there, under way, or will be.
func (l *lister) join(ctx context.Context, since uint64) *listing {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.last != nil && l.last.began > since && time.Since(l.last.at) < reuseMax:
		return l.last
	case l.running == nil:
		l.running = l.begin(&listing{done: make(chan struct{})})
		go l.work(context.WithoutCancel(ctx), l.running) // for others too
		return l.running
	case l.running.began > since:
		return l.running
	case l.next == nil:
		l.next = &listing{done: make(chan struct{})}
	}
	return l.next
}

func (l *lister) begin(next *listing) *listing {
	if next != nil {
		next.began, next.at = l.now(), time.Now()
	}
	return next
}

// work fills one listing and then the one that callers wait for meanwhile.
func (l *lister) work(ctx context.Context, now *listing) {
	for now != nil {
		limited, cancel := context.WithTimeout(ctx, listMax)
		all, err := l.driver.List(limited)
		cancel()
		now.err = err
		now.byName = map[string][]seen{}
		for _, o := range all {
			now.byName[o.Name] = append(now.byName[o.Name], seen{Observed: o, Kind: l.kind})
		}
		close(now.done)
		l.mu.Lock()
		if l.last = now; err != nil {
			l.last = nil
		}
		l.running, l.next = l.begin(l.next), nil
		now = l.running
		l.mu.Unlock()
	}
}
