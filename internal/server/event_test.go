package server

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/event"
	"capsule/internal/store"
)

var thisCapsule = &capsulev1.Object{Meta: &capsulev1.Meta{Kind: "Capsule", Name: "capsule-test"}}

func (b *box) note(t *testing.T, kind string, n int) {
	t.Helper()
	for i := range n {
		if err := b.store.Note(thisCapsule, kind, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
}

func types(events []*capsulev1.Event) string {
	var list []string
	for _, e := range events {
		list = append(list, fmt.Sprintf("%d %s %s", e.GetId(), e.GetName(), e.GetType()))
	}
	return strings.Join(list, ", ")
}

func TestListEvents(t *testing.T) {
	b := newBox(t, nil)
	if _, err := b.apply(t, web("web"), web("db")); err != nil { // 1, 2
		t.Fatal(err)
	}
	if _, err := b.store.Apply(t.Context(), []*capsulev1.Object{disk("web", 1<<30)}, false, nil); err != nil { // 3
		t.Fatal(err)
	}
	b.note(t, "booted", 1) // 4
	client := capsulev1.NewEventServiceClient(b.dial(t, capsulev1.Role_ROLE_READER))
	now := timestamppb.Now()
	for name, tc := range map[string]struct {
		filter *capsulev1.EventFilter
		want   string
	}{
		"all":            {nil, "1 web created, 2 db created, 3 web created, 4 capsule-test booted"},
		"of a workload":  {&capsulev1.EventFilter{Workload: "web"}, "1 web created"},
		"of a kind":      {&capsulev1.EventFilter{Kind: "capsule"}, "4 capsule-test booted"},
		"of the pool":    {&capsulev1.EventFilter{Kind: "pool"}, ""},
		"after a number": {&capsulev1.EventFilter{After: 3}, "4 capsule-test booted"},
		"after the last": {&capsulev1.EventFilter{After: 4}, ""},
		"since now":      {&capsulev1.EventFilter{Since: now}, ""},
		"since before":   {&capsulev1.EventFilter{Since: timestamppb.New(now.AsTime().Add(-time.Hour)), Kind: "Volume"}, "3 web created"},
	} {
		answer, err := client.List(limit(t), &capsulev1.EventServiceListRequest{Filter: tc.filter})
		if err != nil || types(answer.GetEvents()) != tc.want || answer.GetThrough() != 4 || answer.GetMore() {
			t.Errorf("%s: %v, %v", name, answer, err)
		}
	}
	page, err := client.List(limit(t), &capsulev1.EventServiceListRequest{Limit: 1})
	if err != nil || types(page.GetEvents()) != "1 web created" || page.GetThrough() != 1 || !page.GetMore() {
		t.Errorf("%v, %v", page, err)
	}
	for filter, code := range map[*capsulev1.EventFilter]codes.Code{
		{After: 5}:          codes.OutOfRange,
		{Kind: "conatiner"}: codes.InvalidArgument,
		{Since: &timestamppb.Timestamp{Nanos: -1}}: codes.InvalidArgument,
	} {
		if _, err := client.List(limit(t), &capsulev1.EventServiceListRequest{Filter: filter}); status.Code(err) != code {
			t.Errorf("%v: %v", filter, err)
		}
	}
}

func TestWatchEvents(t *testing.T) {
	b := newBox(t, nil)
	b.note(t, "early", 3)
	client := capsulev1.NewEventServiceClient(b.dial(t, capsulev1.Role_ROLE_READER))
	watch, err := client.Watch(limit(t), &capsulev1.EventServiceWatchRequest{Filter: &capsulev1.EventFilter{After: 1, Kind: "Capsule"}})
	if err != nil {
		t.Fatal(err)
	}
	next := func(want string, through uint64) {
		t.Helper()
		r, err := watch.Recv()
		if err != nil || types(r.GetEvents()) != want || r.GetThrough() != through || r.GetMissed() != nil {
			t.Fatalf("%v, %v", r, err)
		}
	}
	next("2 capsule-test early, 3 capsule-test early", 3)
	b.note(t, "late", 1)
	next("4 capsule-test late", 4)
	// What does not match moves the number on, for whoever comes back by it.
	if _, err := b.apply(t, web("web")); err != nil {
		t.Fatal(err)
	}
	next("", 5)
}

// Whoever comes back too late is told what is gone; whoever names no number isn't.
func TestMissedEvents(t *testing.T) {
	b := newBox(t, nil)
	obj := web("web")
	obj.Meta.Name = "web"
	if _, err := b.apply(t, obj); err != nil {
		t.Fatal(err)
	}
	o, err := b.store.Get("", "web")
	if err != nil {
		t.Fatal(err)
	}
	const many = 2000
	for i := range (event.Max + many) / many {
		happened := make([]store.Happening, many)
		for j := range happened {
			happened[j] = store.Happening{Type: "tick", Text: "tock"}
		}
		err := b.store.PutStatus(o.Meta.Uid, &capsulev1.WorkloadStatus{Restarts: uint32(i + 1)}, happened...)
		if err != nil {
			t.Fatal(err)
		}
	}
	newest := uint64(1 + (event.Max+many)/many*many)
	gone := newest - event.Max
	client := capsulev1.NewEventServiceClient(b.dial(t, capsulev1.Role_ROLE_READER))
	for after, missed := range map[uint64]bool{0: false, 1: true, gone - 1: true, gone: false} {
		watch, err := client.Watch(limit(t), &capsulev1.EventServiceWatchRequest{Filter: &capsulev1.EventFilter{After: after}})
		if err != nil {
			t.Fatal(err)
		}
		r, err := watch.Recv()
		if err != nil || (r.GetMissed() != nil) != missed || missed && (r.GetMissed().GetThrough() != gone || r.GetMissed().GetOldest() != gone+1) {
			t.Errorf("after %d: missed %v, %v", after, r.GetMissed(), err)
		}
		if r.GetEvents()[0].GetId() != gone+1 {
			t.Errorf("after %d: from %d", after, r.GetEvents()[0].GetId())
		}
		list, err := client.List(limit(t), &capsulev1.EventServiceListRequest{Filter: &capsulev1.EventFilter{After: after}})
		if err != nil || (list.GetMissed() != nil) != missed || len(list.GetEvents()) != eventsMax || !list.GetMore() {
			t.Errorf("after %d: %v, %v", after, list.GetMissed(), err)
		}
	}
}
