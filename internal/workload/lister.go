package workload

import (
	"context"
	"sync"
)

// lister shares the lists of a driver: a caller gets one that began after its
// call, and all that wait meanwhile get the same.
type lister struct {
	kind   string
	driver Driver

	mu            sync.Mutex
	running, next *listing
}

type listing struct {
	done   chan struct{}
	byName map[string][]seen
	err    error
}

// list gives all instances of the kind by name.
func (l *lister) list(ctx context.Context) (map[string][]seen, error) {
	l.mu.Lock()
	var mine *listing
	switch {
	case l.running == nil:
		l.running = &listing{done: make(chan struct{})}
		mine = l.running
		go l.work(context.WithoutCancel(ctx), mine) // for others too
	case l.next == nil:
		l.next = &listing{done: make(chan struct{})}
		mine = l.next
	default:
		mine = l.next
	}
	l.mu.Unlock()
	select {
	case <-mine.done:
		return mine.byName, mine.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
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
		l.running, l.next = l.next, nil
		now = l.running
		l.mu.Unlock()
	}
}
