package server

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	capsulev1 "capsule/api/capsule/v1"
)

// kernelService is the name of the kernel among the services with a log.
const kernelService = "kernel"

// sysLine is one line of a service's log; the time is zero when it has none.
type sysLine struct {
	time    time.Time
	service string
	data    []byte
}

// source of lines: give reads what is there, then with follow what comes, until
// ctx ends.
type source func(ctx context.Context, follow bool, give func(sysLine) error) error

// Logs sends what is there in the order of time, then what comes.
func (s *capsule) Logs(req *capsulev1.CapsuleServiceLogsRequest, out capsulev1.CapsuleService_LogsServer) error {
	sources, err := s.sources(req.GetService())
	if err != nil {
		return err
	}
	var mu sync.Mutex
	send := func(l sysLine) error {
		r := &capsulev1.CapsuleServiceLogsResponse{Service: l.service, Data: l.data}
		if !l.time.IsZero() {
			r.Time = timestamppb.New(l.time)
		}
		mu.Lock()
		defer mu.Unlock()
		return out.Send(r)
	}
	group, ctx := errgroup.WithContext(out.Context())
	past := &backlog{tail: req.GetTail(), waiting: len(sources), send: send}
	for _, src := range sources {
		group.Go(func() error { return past.feed(ctx, src, req.GetFollow()) })
	}
	return group.Wait()
}

func (s *capsule) sources(service string) ([]source, error) {
	names := append(slices.Clone(services), kernelService)
	switch {
	case service == "":
	case slices.Contains(names, service):
		names = []string{service}
	default:
		return nil, fmt.Errorf("unknown service %q, want one of %q: %w", service, names, errdefs.ErrInvalidArgument)
	}
	var sources []source
	for _, name := range names {
		if name == kernelService {
			sources = append(sources, kernelLog(s.Machine.KernelLog()))
		} else {
			sources = append(sources, fileLog(s.Machine.SystemLog(), name))
		}
	}
	return sources, nil
}

// backlogMax bounds the lines that are sorted in memory; older ones are left out.
const backlogMax = 50000

// backlog puts what several sources hold into the order of time.
type backlog struct {
	tail int64
	send func(sysLine) error

	mu      sync.Mutex
	lines   []sysLine
	waiting int // sources that have not given all they hold
}

// feed takes what one source holds; the last source to do so sends all. Then
// each goes on with what comes.
func (b *backlog) feed(ctx context.Context, src source, follow bool) error {
	told := false
	return src(ctx, follow, func(l sysLine) error {
		if told {
			return b.send(l)
		}
		if l.data == nil { // the end of what is there
			told = true
			return b.done()
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.lines) == 2*backlogMax {
			b.lines = append(b.lines[:0], b.lines[backlogMax:]...)
		}
		b.lines = append(b.lines, l)
		return nil
	})
}

func (b *backlog) done() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waiting--; b.waiting > 0 {
		return nil
	}
	// A line without a time stands with the one before it.
	last := map[string]time.Time{}
	for i := range b.lines {
		l := &b.lines[i]
		if l.time.IsZero() {
			l.time = last[l.service]
		}
		last[l.service] = l.time
	}
	slices.SortStableFunc(b.lines, func(x, y sysLine) int { return x.time.Compare(y.time) })
	if b.tail >= 0 && int64(len(b.lines)) > b.tail {
		b.lines = b.lines[int64(len(b.lines))-b.tail:]
	}
	for _, l := range b.lines {
		if err := b.send(l); err != nil {
			return err
		}
	}
	b.lines = nil
	return nil
}
