package store

import (
	"fmt"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
)

func noteMany(t *testing.T, s *Store, n int) {
	t.Helper()
	obj := &v1.Object{Meta: &v1.Meta{Kind: "Capsule", Name: "test"}}
	for i := range n {
		if err := s.Note(obj, "tick", fmt.Sprint(i+1)); err != nil {
			t.Fatal(err)
		}
	}
}

// Pages go on where the one before ended, whatever of it matched.
func TestEventPages(t *testing.T) {
	s, _ := openTemp(t)
	noteMany(t, s, 10)
	third := func(e *v1.Event) bool { return e.GetId()%3 == 0 }
	var ids []uint64
	after := uint64(0)
	for more := true; more; {
		page, err := s.Events(after, 2, third)
		if err != nil || page.Oldest != 1 || page.Newest != 10 {
			t.Fatalf("%+v, %v", page, err)
		}
		for _, e := range page.Events {
			ids = append(ids, e.GetId())
		}
		after, more = page.Through, page.More
	}
	if fmt.Sprint(ids) != "[3 6 9]" || after != 10 {
		t.Errorf("%v through %d", ids, after)
	}
	if page, err := s.Events(99, 2, nil); err != nil || len(page.Events) > 0 || page.Newest != 10 {
		t.Errorf("%+v, %v", page, err)
	}
}

func TestEventAdded(t *testing.T) {
	s, _ := openTemp(t)
	added := s.EventAdded()
	if err := s.PutStatus("none", &v1.WorkloadStatus{}, Happening{"ran", "it ran"}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-added:
		t.Fatal("told of an event that is none")
	default:
	}
	noteMany(t, s, 1)
	select {
	case <-added:
	case <-time.After(time.Minute):
		t.Fatal("not told")
	}
	added = s.EventAdded()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	<-added
	if _, err := s.Events(0, 1, nil); !errdefs.IsUnavailable(err) {
		t.Errorf("of a closed store: %v", err)
	}
}

// A status and what happened are one change.
func TestStatusWithEvents(t *testing.T) {
	s, _ := openTemp(t)
	uid := apply(t, s, container("web", "web:1"))[0].Object.Meta.Uid
	for range 2 { // the second time nothing differs
		err := s.PutStatus(uid, &v1.WorkloadStatus{Phase: v1.Phase_PHASE_RUNNING}, Happening{"running", "it runs"})
		if err != nil {
			t.Fatal(err)
		}
	}
	page, err := s.Events(1, 10, nil)
	if err != nil || len(page.Events) != 1 || page.Events[0].Type != "running" || page.Events[0].Message != "container web: it runs" {
		t.Errorf("%v, %v", page.Events, err)
	}
}

func TestNoteChange(t *testing.T) {
	s, _ := openTemp(t)
	obj := &v1.Object{Meta: &v1.Meta{Kind: "Capsule", Name: "test"}}
	for _, text := range []string{"up", "up", "down", "up"} {
		if err := s.NoteChange(obj, "uplink", text); err != nil {
			t.Fatal(err)
		}
		noteMany(t, s, 1)
	}
	page, err := s.Events(0, 100, func(e *v1.Event) bool { return e.GetType() == "uplink" })
	if err != nil || len(page.Events) != 3 {
		t.Errorf("%v, %v", page.Events, err)
	}
}
