package volume

import (
	"context"
	"fmt"
	"sync"
)

// locks is one lock per name, whose holder does one thing to a volume at a time.
type locks struct {
	mu   sync.Mutex
	held map[string]*lock
}

type lock struct {
	free  chan struct{} // holds a token while nobody has the lock
	users int           // who have it or wait for it
}

// lock waits until nobody else works on the volume. Who holds one volume's lock
// takes no other's but that of a volume it has just named into being.
func (m *Manager) lock(ctx context.Context, volume string) (unlock func(), err error) {
	return m.locks.take(ctx, volume)
}

func (l *locks) take(ctx context.Context, name string) (release func(), err error) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[string]*lock{}
	}
	k := l.held[name]
	if k == nil {
		k = &lock{free: make(chan struct{}, 1)}
		k.free <- struct{}{}
		l.held[name] = k
	}
	k.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.held, name)
		}
	}
	select {
	case <-k.free:
		return func() { k.free <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("wait for what else is done to volume %q: %w", name, context.Cause(ctx))
	}
}
