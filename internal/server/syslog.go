package server

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/lastboot"
)

// Names among the services with a log.
const (
	kernelService = "kernel"
	pid1Service   = "pid1"
	// bootsService has a line for each boot, which stands where it begins in all logs.
	bootsService = "boots"
)

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
	since, err := sinceOf(req)
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
	past := &backlog{since: since, tail: req.GetTail(), waiting: len(sources), send: send}
	for _, src := range sources {
		group.Go(func() error { return past.feed(ctx, src, req.GetFollow()) })
	}
	return group.Wait()
}

// sinceOf is the time that lines are asked for from; zero for all.
func sinceOf(req *capsulev1.CapsuleServiceLogsRequest) (since time.Time, err error) {
	if t := req.GetSince(); t != nil {
		if err := t.CheckValid(); err != nil {
			return since, fmt.Errorf("since: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		since = t.AsTime()
	}
	if boot := bootTime(); req.GetThisBoot() && boot.After(since) {
		// What the kernel says of its first moment is of this boot, too.
		since = boot.Add(-bootSlack)
	}
	return since, nil
}

// bootSlack is how exactly the time of the machine's start is known.
const bootSlack = 100 * time.Millisecond

func (s *capsule) sources(service string) ([]source, error) {
	dir := s.Machine.SystemLog()
	all := map[string]source{
		bootsService:  fileLog(dir, bootsService, bootMark(lastboot.ThisBoot(), bootTime())),
		pid1Service:   fileLog(dir, pid1Service, kept(pid1Service)),
		kernelService: kernelLog(dir, s.Machine.KernelLog()),
	}
	for _, name := range services {
		all[name] = fileLog(dir, name, printed(name))
	}
	names := slices.Sorted(maps.Keys(all))
	switch {
	case service == "":
	case service == bootsService:
		names = []string{service}
	case all[service] != nil:
		names = []string{bootsService, service}
	default:
		return nil, fmt.Errorf("unknown service %q, want one of %q: %w", service, names, errdefs.ErrInvalidArgument)
	}
	var sources []source
	for _, name := range names {
		sources = append(sources, all[name])
	}
	return sources, nil
}

// bootMark reads a line of where a boot begins. The clock may have been set since the
// running one was noted.
func bootMark(boot string, begun time.Time) func([]byte) (sysLine, bool) {
	return func(line []byte) (sysLine, bool) {
		l, ok := lastboot.ParseLine(line)
		if ok && l.Boot == lastboot.Short(boot) {
			l.Time = begun.Truncate(time.Microsecond)
		}
		return sysLine{time: l.Time, service: bootsService, data: []byte(l.Text + "\n")}, ok
	}
}

// backlogMax bounds the lines that are sorted in memory; older ones are left out.
const backlogMax = 50000

// backlog puts what several sources hold into the order of time.
type backlog struct {
	since time.Time
	tail  int64
	send  func(sysLine) error

	mu      sync.Mutex
	lines   []sysLine
	waiting int // sources that have not given all they hold
}

// feed takes what one source holds; the last source to do so sends all. Then
// each goes on with what comes.
func (b *backlog) feed(ctx context.Context, src source, follow bool) error {
	told := false
	var last time.Time
	return src(ctx, follow, func(l sysLine) error {
		if l.data != nil {
			// A line without a time stands with the one before it.
			if l.time.IsZero() {
				l.time = last
			}
			if last = l.time; l.time.Before(b.since) {
				return nil
			}
		}
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
