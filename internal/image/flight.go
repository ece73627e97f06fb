package image

import (
	"context"
	"sync"
)

// flights run one call per key at a time; who asks for one that runs shares
// it. A call ends when nobody waits for it any more.
type flights struct {
	mu  sync.Mutex
	all map[string]*flight
}

type flight struct {
	cancel  context.CancelFunc
	done    chan struct{}
	waiting int
	watch   map[*watcher]bool
	image   Image
	err     error
}

// watcher is told the progress.
type watcher struct{ tell func(done, total int64) }

// do joins or starts the call for key. fn reports its progress to everybody
// who waits.
func (f *flights) do(ctx context.Context, key string, progress func(done, total int64), fn func(ctx context.Context, progress func(done, total int64)) (Image, error)) (Image, error) {
	f.mu.Lock()
	if f.all == nil {
		f.all = map[string]*flight{}
	}
	call := f.all[key]
	if call == nil {
		// The call belongs to all who wait, so to no single context.
		own, cancel := context.WithCancel(context.WithoutCancel(ctx))
		call = &flight{cancel: cancel, done: make(chan struct{}), watch: map[*watcher]bool{}}
		f.all[key] = call
		go f.run(own, key, call, fn)
	}
	me := &watcher{progress}
	call.waiting++
	call.watch[me] = progress != nil
	f.mu.Unlock()

	select {
	case <-call.done:
		return call.image, call.err
	case <-ctx.Done():
	}
	f.mu.Lock()
	delete(call.watch, me)
	call.waiting--
	last := call.waiting == 0
	if last && f.all[key] == call {
		delete(f.all, key) // the next one starts anew
	}
	f.mu.Unlock()
	if last {
		call.cancel()
		<-call.done // so that its traces are gone
	}
	return Image{}, ctx.Err()
}

func (f *flights) run(ctx context.Context, key string, call *flight, fn func(context.Context, func(done, total int64)) (Image, error)) {
	call.image, call.err = fn(ctx, func(done, total int64) {
		f.mu.Lock()
		defer f.mu.Unlock()
		for w, wants := range call.watch {
			if wants {
				w.tell(done, total)
			}
		}
	})
	f.mu.Lock()
	if f.all[key] == call {
		delete(f.all, key)
	}
	f.mu.Unlock()
	call.cancel()
	close(call.done)
}

// keyedLock is one lock per key.
type keyedLock struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

// lock waits for the key; the returned function frees it.
func (k *keyedLock) lock(ctx context.Context, key string) (unlock func(), err error) {
	for {
		k.mu.Lock()
		if k.held == nil {
			k.held = map[string]chan struct{}{}
		}
		wait, taken := k.held[key]
		if !taken {
			free := make(chan struct{})
			k.held[key] = free
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.held, key)
				k.mu.Unlock()
				close(free)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
