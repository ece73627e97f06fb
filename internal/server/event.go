package server

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/store"
)

// eventsMax are the events of one message.
const eventsMax = 1000

type events struct {
	capsulev1.UnimplementedEventServiceServer
	Options
}

func (s *events) List(_ context.Context, req *capsulev1.EventServiceListRequest) (*capsulev1.EventServiceListResponse, error) {
	r, err := s.reader(req.GetFilter())
	if err != nil {
		return nil, err
	}
	limit := eventsMax
	if n := req.GetLimit(); n > 0 {
		limit = int(min(n, eventsMax))
	}
	page, err := r.next(limit)
	if err != nil {
		return nil, err
	}
	return &capsulev1.EventServiceListResponse{Events: page.Events, Through: page.Through, More: page.More, Missed: r.missed(page)}, nil
}

// Watch ends with the store, or when its reader goes.
func (s *events) Watch(req *capsulev1.EventServiceWatchRequest, out capsulev1.EventService_WatchServer) error {
	r, err := s.reader(req.GetFilter())
	if err != nil {
		return err
	}
	for first := true; ; first = false {
		added := r.store.EventAdded() // asked for before the look
		page, err := r.next(eventsMax)
		if err != nil {
			return err
		}
		missed := r.missed(page)
		if first || len(page.Events) > 0 || missed != nil || !page.More {
			if err := out.Send(&capsulev1.EventServiceWatchResponse{Events: page.Events, Through: page.Through, Missed: missed}); err != nil {
				return err
			}
		}
		if page.More {
			continue
		}
		select {
		case <-added:
		case <-out.Context().Done():
			return out.Context().Err()
		}
	}
}

// eventReader goes through the ring.
type eventReader struct {
	store *store.Store
	match func(*capsulev1.Event) bool
	// after is the number that was looked at last, and from the one before.
	after, from uint64
	numbered    bool // whoever asks knows the number that comes next
}

func (o *Options) reader(f *capsulev1.EventFilter) (*eventReader, error) {
	st, err := o.state()
	if err != nil {
		return nil, err
	}
	if kind := f.GetKind(); kind != "" && !slices.ContainsFunc(eventKinds(), func(k string) bool { return strings.EqualFold(k, kind) }) {
		return nil, fmt.Errorf("kind %q: events are of %s: %w", kind, strings.Join(eventKinds(), ", "), errdefs.ErrInvalidArgument)
	}
	var since time.Time
	if t := f.GetSince(); t != nil {
		if err := t.CheckValid(); err != nil {
			return nil, fmt.Errorf("since: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		since = t.AsTime()
	}
	return &eventReader{store: st, match: matcher(f, since), after: f.GetAfter(), numbered: f.GetAfter() > 0}, nil
}

// eventKinds are those of what events are about: all objects, and the pool of volumes.
func eventKinds() []string { return append(manifest.Kinds(), "Pool") }

func matcher(f *capsulev1.EventFilter, since time.Time) func(*capsulev1.Event) bool {
	return func(e *capsulev1.Event) bool {
		workload := e.GetKind() == manifest.KindContainer || e.GetKind() == manifest.KindMicroVM
		switch {
		case !since.IsZero() && e.GetTime().AsTime().Before(since),
			f.GetWorkload() != "" && (!workload || e.GetName() != f.GetWorkload()),
			f.GetKind() != "" && !strings.EqualFold(e.GetKind(), f.GetKind()):
			return false
		}
		return true
	}
}

// next reads on. A number that no event has had yet is of another capsule, or of
// this one before it was installed anew.
func (r *eventReader) next(limit int) (store.EventPage, error) {
	page, err := r.store.Events(r.after, limit, r.match)
	if err != nil {
		return page, err
	}
	if r.after > page.Newest {
		return page, fmt.Errorf("event %d has not happened: the newest is %d; numbers are of one installation of a capsule: %w",
			r.after, page.Newest, errdefs.ErrOutOfRange)
	}
	r.from, r.after = r.after, page.Through
	return page, nil
}

// missed tells what is gone of what comes after the number that was asked for, or
// looked at: a reader that is slower than events come misses some too.
func (r *eventReader) missed(page store.EventPage) *capsulev1.MissedEvents {
	numbered := r.numbered
	r.numbered = true
	if !numbered || page.Oldest <= r.from+1 {
		return nil
	}
	return &capsulev1.MissedEvents{Through: page.Oldest - 1, Oldest: page.Oldest}
}
