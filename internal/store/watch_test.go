package store

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	v1 "capsule/api/capsule/v1"
)

func text(c Change) string {
	switch {
	case c.Synced:
		return "synced"
	case c.Deleted:
		return "deleted " + c.Object.Meta.Name
	}
	return fmt.Sprintf("%s %d %v", c.Object.Meta.Name, c.Object.Meta.Generation, c.Object.GetWorkload().Status.Phase)
}

func take(t *testing.T, changes <-chan Change, n int) (got []string) {
	t.Helper()
	for range n {
		c, ok := <-changes
		if !ok {
			t.Fatal("watch ended")
		}
		got = append(got, text(c))
	}
	return got
}

func TestWatch(t *testing.T) {
	s, _ := openTemp(t)
	uid := apply(t, s, container("a", "web:1"), container("b", "web:1"))[0].Object.Meta.Uid
	ctx, cancel := context.WithCancel(t.Context())
	all, err := s.Watch(ctx, "", "")
	if err != nil {
		t.Fatal(err)
	}
	one, err := s.Watch(ctx, "Container", "a")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"a 1 PHASE_PENDING", "b 1 PHASE_PENDING", "synced"}
	if diff := cmp.Diff(want, take(t, all, 3)); diff != "" {
		t.Error(diff)
	}
	// Nobody reads "one" meanwhile: its changes coalesce.
	for i := range 20 {
		apply(t, s, container("a", fmt.Sprint("web:", i+2)))
	}
	apply(t, s, container("c", "web:1"))
	if err := s.PutStatus(uid, &v1.WorkloadStatus{Generation: 21, Phase: v1.Phase_PHASE_RUNNING}); err != nil {
		t.Fatal(err)
	}
	got := take(t, one, 2)
	for !slices.Contains(got, "a 21 PHASE_RUNNING") {
		got = append(got, take(t, one, 1)...)
	}
	if len(got) > 5 {
		t.Errorf("changes did not coalesce: %q", got)
	}
	if err := s.Remove(uid); err != nil {
		t.Fatal(err)
	}
	if got := take(t, one, 1); got[0] != "deleted a" {
		t.Error(got)
	}
	cancel()
	for range one {
	}
	for range all {
	}
}

func TestWatchEndsWithTheStore(t *testing.T) {
	s, _ := openTemp(t)
	changes, err := s.Watch(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	take(t, changes, 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if c, ok := <-changes; ok {
		t.Error(c)
	}
}

func TestWatchDropsWhoLagsTooFar(t *testing.T) {
	w := &watcher{pending: map[string]Change{}, wake: make(chan struct{}, 1)}
	for i := range pendingMax + 1 {
		w.put(fmt.Sprint(i), Change{Deleted: true})
	}
	if _, _, ended := w.next(); !ended {
		t.Error("a watcher may hold without bound")
	}
}
