package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/lab"
	"capsule/internal/qemu"
)

const (
	askEvery = time.Second
	askMax   = 5 * time.Second // for one answer: those of an emulated machine take their time
	backMax  = 20 * time.Minute

	sampleEvery = 200 * time.Millisecond
)

// outage is a time in which a capsule's API does not answer.
type outage struct {
	last   time.Time // answer before
	resets []time.Time
	first  time.Time // answer after
}

func (o outage) down() time.Duration { return o.first.Sub(o.last) }

// boots is from the first reset on: the time of the machine's starts alone.
func (o outage) boots() time.Duration { return o.first.Sub(o.resets[0]) }

// watch asks a machine's API again and again, and hears of each of its resets.
type watch struct {
	mu   sync.Mutex
	now  outage
	dial func() (*grpc.ClientConn, error)
	info chan *capsulev1.InfoResponse // answers, the newest
}

func startWatch(ctx context.Context, m *lab.Machine, events <-chan qemu.Event) (*watch, error) {
	c, err := m.Context()
	if err != nil {
		return nil, err
	}
	w := &watch{
		dial: func() (*grpc.ClientConn, error) { return c.Dial() },
		info: make(chan *capsulev1.InfoResponse, 1),
	}
	if err := w.askOnce(ctx); err != nil {
		return nil, err
	}
	go w.hear(ctx, events)
	go w.ask(ctx)
	return w, nil
}

func (w *watch) hear(ctx context.Context, events <-chan qemu.Event) {
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-events:
			if !ok {
				return
			}
			if e.Name == "RESET" {
				w.reset()
			}
		}
	}
}

func (w *watch) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now.resets = append(w.now.resets, time.Now())
	w.now.first = time.Time{}
	select {
	case <-w.info: // of before
	default:
	}
}

// ask asks once a second, whether the question before was answered or not.
func (w *watch) ask(ctx context.Context) {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		go func() { _ = w.askOnce(ctx) }() // no answer is one, too
	}
}

// askOnce has a connection of its own: one that was begun while nobody listened is
// tried again later than one can wait.
func (w *watch) askOnce(ctx context.Context) error {
	conn, err := w.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	info, err := infoOf(ctx, conn)
	if err == nil {
		w.answered(info)
	}
	return err
}

func infoOf(ctx context.Context, conn *grpc.ClientConn) (*capsulev1.InfoResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, askMax)
	defer cancel()
	return capsulev1.NewCapsuleServiceClient(conn).Info(ctx, &capsulev1.InfoRequest{})
}

func (w *watch) answered(info *capsulev1.InfoResponse) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.now.resets) == 0 {
		w.now.last = time.Now()
		return
	}
	if w.now.first.IsZero() {
		w.now.first = time.Now()
	}
	select {
	case w.info <- info:
	default:
	}
}

// back waits until the machine was reset and answers as is asked for, and gives the
// time in which it did not. Answers of another kind in between are none.
func (w *watch) back(ctx context.Context, is func(*capsulev1.InfoResponse) bool) (outage, error) {
	ctx, cancel := context.WithTimeout(ctx, backMax)
	defer cancel()
	for {
		select {
		case <-ctx.Done():
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.now, fmt.Errorf("the machine does not come back as wanted, after %d resets: %w", len(w.now.resets), ctx.Err())
		case info := <-w.info:
			if over, ok := w.over(is(info)); ok {
				return over, nil
			}
		}
	}
}

// over ends an outage, if the answer that came was the one.
func (w *watch) over(wanted bool) (outage, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.now
	if len(was.resets) == 0 || was.first.IsZero() {
		return was, false // of before
	}
	w.now.first = time.Time{}
	if wanted {
		w.now = outage{last: time.Now()}
	}
	return was, wanted
}

// peak looks at the used memory until it is stopped, and then gives the most that
// there was, in MiB.
func (w *watch) peak(ctx context.Context) (stop func() (float64, error), err error) {
	conn, err := w.dial()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	most, samples := 0.0, 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(sampleEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if info, err := infoOf(ctx, conn); err == nil {
				most, samples = max(most, float64(info.GetMemoryTotal()-info.GetMemoryAvailable())/mib), samples+1
			}
		}
	}()
	return func() (float64, error) {
		cancel()
		<-done
		if samples == 0 {
			return 0, errors.New("the machine never told its used memory")
		}
		return most, conn.Close()
	}, nil
}
