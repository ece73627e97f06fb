package workload

import "sync"

// freshness tells how new what is seen of a workload has to be. All looks at one full pass
// share the list that it began with; after a wake-up, or a step, only a list that
// began later shows what is so.
type freshness struct {
	mu    sync.Mutex
	tick  uint64            // counts what lists may come before or after
	since map[string]uint64 // by workload that waits to be looked at
}

// now is later than all before.
func (f *freshness) now() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tick++
	return f.tick
}

// woken has the next look at workloads see what is so from here on.
func (f *freshness) woken(names ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tick++
	for _, name := range names {
		f.since[name] = f.tick
	}
}

// take gives when a list must not have begun before, for a look at a workload: now,
// unless it is known what the look is for.
func (f *freshness) take(name string) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tick++
	since, known := f.since[name]
	if !known {
		return f.tick
	}
	delete(f.since, name)
	return since
}

// acted notes that a step may have changed a workload: what was listed for its next
// look meanwhile is too old.
func (f *freshness) acted(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, known := f.since[name]; known {
		f.tick++
		f.since[name] = f.tick
	}
}
