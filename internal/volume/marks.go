package volume

import "sync"

// marks keeps a mark by name; the zero value is none.
type marks[T comparable] struct {
	mu sync.Mutex
	of map[string]T
}

func (k *marks[T]) set(name string, mark T) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.of == nil {
		k.of = map[string]T{}
	}
	k.of[name] = mark
	if mark == *new(T) {
		delete(k.of, name)
	}
}

func (k *marks[T]) get(name string) T {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.of[name]
}
