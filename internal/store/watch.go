package store

import (
	"context"
	"sync"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
)

// pendingMax bounds what a slow watcher may leave unread. Changes of one object
// coalesce, so that only many deleted objects come near it.
const pendingMax = 4 * ObjectsMax

// Change is an object as it is now, or the mark that all that existed when the
// watch began has been sent.
type Change struct {
	Object  *v1.Object
	Deleted bool // Object is its last state
	Synced  bool
}

// watcher holds the changes that its reader has not taken yet.
type watcher struct {
	kind, name string

	mu      sync.Mutex
	order   []string          // uids, oldest change first
	pending map[string]Change // by uid; "" is the mark
	ended   bool
	wake    chan struct{}
}

// Watch sends every matching object, then Synced, then changes until ctx ends
// or the store closes. Changes that the reader is too slow for coalesce to the
// newest of each object. The channel is closed at the end, also when a reader
// lags beyond a bound: it then watches anew. Objects are the reader's own.
func (s *Store) Watch(ctx context.Context, kind, name string) (<-chan Change, error) {
	w := &watcher{kind: kind, name: name, pending: map[string]Change{}, wake: make(chan struct{}, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.db.View(func(tx *bolt.Tx) error {
		objs, err := view{tx: tx}.List("")
		for _, obj := range objs {
			w.offer(Change{Object: obj})
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	w.put("", Change{Synced: true})
	s.watchers[w] = struct{}{}
	out := make(chan Change)
	go func() {
		defer close(out)
		w.run(ctx, out)
		s.mu.Lock()
		delete(s.watchers, w)
		s.mu.Unlock()
	}()
	return out, nil
}

// publish tells all watchers; s.mu is held.
func (s *Store) publish(c Change) {
	for w := range s.watchers {
		w.offer(c)
	}
}

func (w *watcher) offer(c Change) {
	meta := c.Object.GetMeta()
	if w.name != "" && w.name != meta.GetName() || w.kind != "" && w.kind != meta.GetKind() {
		return
	}
	w.put(meta.GetUid(), Change{Object: proto.CloneOf(c.Object), Deleted: c.Deleted})
}

func (w *watcher) put(uid string, c Change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, waits := w.pending[uid]; !waits {
		w.order = append(w.order, uid)
	}
	w.pending[uid] = c
	if len(w.order) > pendingMax {
		w.ended = true
	}
	w.signal()
}

func (w *watcher) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	w.signal()
}

func (w *watcher) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// next takes the oldest pending change.
func (w *watcher) next() (c Change, ok, ended bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended || len(w.order) == 0 {
		return Change{}, false, w.ended
	}
	uid := w.order[0]
	w.order = w.order[1:]
	c = w.pending[uid]
	delete(w.pending, uid)
	return c, true, false
}

func (w *watcher) run(ctx context.Context, out chan<- Change) {
	for {
		c, ok, ended := w.next()
		if ended {
			return
		}
		if ok {
			select {
			case out <- c:
			case <-ctx.Done():
				return
			}
			continue
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return
		}
	}
}
