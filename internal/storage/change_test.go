package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"capsule/internal/store"
)

func TestNext(t *testing.T) {
	add := change{Disk: identity{Serial: "NEW"}}
	replace := change{Disk: identity{Serial: "NEW"}, Old: "old"}
	kept := replace
	kept.Kept = true
	for name, tc := range map[string]struct {
		c    change
		s    sight
		want step
		says string
	}{
		"as agreed":               {c: add, s: sight{there: true, holds: holdsShown}, want: stepJoin},
		"cut after it was clear":  {c: add, s: sight{there: true, holds: holdsNought}, want: stepJoin},
		"cut before it was in":    {c: add, s: sight{there: true, holds: holdsOurs}, want: stepJoin},
		"something else on it":    {c: add, s: sight{there: true}, want: stepGiveUp, says: "something else"},
		"it may be late":          {c: add, s: sight{late: true, why: "not there"}, want: stepWait, says: "not there"},
		"it's gone":               {c: add, s: sight{why: "not there"}, want: stepGiveUp, says: "not there"},
		"another one is missing":  {c: add, s: sight{there: true, holds: holdsShown, missing: "X"}, want: stepWait, says: "X is missing"},
		"it's in":                 {c: add, s: sight{member: true}, want: stepFinish},
		"in, then pulled out":     {c: replace, s: sight{missing: "NEW", oldMember: true}, want: stepWait, says: "NEW is missing"},
		"in the place of another": {c: replace, s: sight{member: true, oldMember: true, oldUsed: 1}, want: stepClose},
		"closed":                  {c: replace, s: sight{member: true, oldMember: true, oldClosed: true, oldUsed: 1}, want: stepMove},
		"moved, but not over":     {c: replace, s: sight{member: true, oldMember: true, oldClosed: true, moving: true}, want: stepMove},
		"moved":                   {c: replace, s: sight{member: true, oldMember: true, oldClosed: true}, want: stepReduce},
		"an old one of nothing":   {c: replace, s: sight{member: true, oldMember: true}, want: stepClose},
		"out":                     {c: replace, s: sight{member: true}, want: stepFinish},
		"called off before":       {c: kept, s: sight{there: true, holds: holdsShown}, want: stepGiveUp, says: "called off"},
		"called off, moving":      {c: kept, s: sight{member: true, oldMember: true, oldClosed: true, moving: true, oldUsed: 1}, want: stepUnmove},
		"called off, closed":      {c: kept, s: sight{member: true, oldMember: true, oldClosed: true, oldUsed: 1}, want: stepOpen},
		"called off, open":        {c: kept, s: sight{member: true, oldMember: true, oldUsed: 1}, want: stepFinish},
		"called off, too late":    {c: kept, s: sight{member: true}, want: stepFinish},
	} {
		got, why := next(tc.c, tc.s)
		if got != tc.want || !strings.Contains(why, tc.says) || (why == "") != (tc.says == "") {
			t.Errorf("%s: %q, %q", name, got, why)
		}
	}
}

var errCut = errors.New("cut")

const (
	newID, oldID = "new", "old"
	extents      = 3 // of the old disk that belong to volumes
)

// A model is a machine whose power can be cut at any write.
type model struct {
	left int // writes until the cut; negative is never

	holds    holding
	group    map[string]bool
	closed   bool
	oldUsed  int
	newUsed  int
	moving   bool
	grown    bool
	begun    chan struct{} // closed when moving begins, and it waits for its end then
	writes   int
	violated string
}

func newModel() *model {
	return &model{left: -1, holds: holdsShown, group: map[string]bool{oldID: true}, oldUsed: extents}
}

// write does one thing that is on the disk at once, or not at all.
func (w *model) write(do func()) error {
	if w.left == 0 {
		return errCut
	}
	w.left--
	w.writes++
	do()
	return nil
}

// all does writes one after the other.
func (w *model) all(writes ...func()) error {
	for _, do := range writes {
		if err := w.write(do); err != nil {
			return err
		}
	}
	return nil
}

func (w *model) look(context.Context, change) (sight, error) {
	return sight{there: true, holds: w.holds, member: w.group[newID], oldMember: w.group[oldID], oldClosed: w.closed, oldUsed: int64(w.oldUsed), moving: w.moving}, nil
}

func (w *model) do(ctx context.Context, s step, c change) error {
	switch s {
	case stepJoin:
		if w.group[newID] {
			w.violated = "a disk of the group was cleared"
		}
		return w.all(func() { w.holds = holdsNought }, func() { w.holds = holdsOurs }, func() { w.group[newID] = true })
	case stepClose:
		return w.all(func() { w.closed = true })
	case stepOpen:
		return w.all(func() { w.closed = false })
	case stepMove:
		return w.move(ctx)
	case stepUnmove:
		return w.all(func() { w.moving = false })
	case stepReduce:
		if w.oldUsed > 0 || w.moving {
			w.violated = "a disk with volumes was taken out"
		}
		return w.all(func() { delete(w.group, oldID) })
	case stepFinish:
		return w.all(func() { w.grown = true })
	}
	return fmt.Errorf("no step %q", s)
}

func (w *model) move(ctx context.Context) error {
	if err := w.write(func() { w.moving = true }); err != nil {
		return err
	}
	if w.begun != nil {
		close(w.begun)
		<-ctx.Done()
		return ctx.Err()
	}
	for w.oldUsed > 0 {
		if err := w.write(func() { w.oldUsed--; w.newUsed++ }); err != nil {
			return err
		}
	}
	return w.write(func() { w.moving = false })
}

// start is a daemon that has begun.
func start(t *testing.T, st *store.Store, w world) *Manager {
	t.Helper()
	m, err := New(Options{Store: st, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	m.world = w
	return m
}

func openStore(t *testing.T) *store.Store {
	t.Helper()
	st, err := store.Open(filepath.Join(t.TempDir(), "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	return st
}

func replacing() change {
	return change{ID: newID, Disk: identity{Serial: "NEW"}, Old: oldID, OldDisk: identity{Serial: "OLD"}, Begun: time.Now().UTC()}
}

// Whatever the write before which the power is cut, and then cut once more, the next
// start brings a replacement to its end, or calls it off, and no volume is lost.
func TestCuts(t *testing.T) {
	for _, keep := range []bool{false, true} {
		whole := newModel()
		run(t, openStore(t), whole, keep)
		for first := range whole.writes + 1 {
			for second := range whole.writes - first + 1 {
				t.Run(fmt.Sprintf("kept %t, cut before write %d, and %d later", keep, first, second), func(t *testing.T) {
					st, w := openStore(t), newModel()
					w.left = first
					m := start(t, st, w)
					if err := m.begin(replacing()); err != nil {
						t.Fatal(err)
					}
					m.advance(t.Context())
					w.left = second
					m = start(t, st, w)
					if _, under := m.underWay(); under && keep {
						if err := m.keep(); err != nil {
							t.Fatal(err)
						}
					}
					m.advance(t.Context())
					w.left = -1
					m = start(t, st, w)
					m.advance(t.Context())
					check(t, m, w)
				})
			}
		}
	}
}

// run replaces a disk without a cut.
func run(t *testing.T, st *store.Store, w *model, keep bool) {
	t.Helper()
	m := start(t, st, w)
	if err := m.begin(replacing()); err != nil {
		t.Fatal(err)
	}
	m.advance(t.Context())
	check(t, m, w)
	if keep {
		w.writes += 2 // to stop moving, and to open the old disk again
	}
}

func check(t *testing.T, m *Manager, w *model) {
	t.Helper()
	if _, under := m.underWay(); under || w.violated != "" || w.oldUsed+w.newUsed != extents || w.moving {
		t.Fatalf("under way: %t; %+v", under, w)
	}
	known, err := New(Options{Store: m.Store, Log: m.Log})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m.known, known.known); diff != "" {
		t.Error("what is kept:", diff)
	}
	switch {
	case !w.group[newID]: // called off before it was in
		if !w.group[oldID] || w.oldUsed != extents || w.closed || len(m.known) != 0 {
			t.Errorf("%+v, known %v", w, m.known)
		}
	case w.group[oldID]: // called off
		if w.closed || !w.grown {
			t.Errorf("%+v", w)
		}
	case w.newUsed != extents || !w.grown || m.known[newID].Serial != "NEW":
		t.Errorf("%+v, known %v", w, m.known)
	}
}

// Who follows hears the end, also of a change that is called off while it moves.
func TestKeepWhileMoving(t *testing.T) {
	w := newModel()
	w.begun = make(chan struct{})
	m := start(t, openStore(t), w)
	if err := m.begin(replacing()); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); m.advance(t.Context()) }()
	followed := make(chan error, 1)
	go func() { followed <- m.follow(t.Context(), newID, func(Progress) error { return nil }) }()
	<-w.begun
	if err := m.keep(); err != nil {
		t.Fatal(err)
	}
	<-ended
	if err := <-followed; err != nil {
		t.Error(err)
	}
	check(t, m, w)
	if !w.group[newID] || !w.group[oldID] {
		t.Errorf("%+v", w)
	}
}

// What is given up says why, and leaves the disk as it is.
func TestGivenUp(t *testing.T) {
	w := newModel()
	w.holds = holdsOther
	m := start(t, openStore(t), w)
	c := replacing()
	if err := m.begin(c); err != nil {
		t.Fatal(err)
	}
	m.advance(t.Context())
	err := m.follow(t.Context(), c.ID, func(Progress) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "something else") || w.writes != 0 {
		t.Error(err, w.writes)
	}
	check(t, m, w)
}
