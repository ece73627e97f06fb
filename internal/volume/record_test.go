package volume

import (
	"errors"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var stateFields = cmp.AllowUnexported(state{})

// What a change writes is what the next daemon reads.
func TestJournal(t *testing.T) {
	s := newStore(t)
	m := open(t, s, nil)
	when := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	want := state{
		volumes:   map[string]record{"a": {UID: "u", LV: "vol-a.1", Size: 4 << 20, Fresh: true, Claims: []claim{{Workload: "w", Shared: true}}}},
		snapshots: map[string]map[string]snapshot{"a": {"s": {LV: "snap-a.2", CreatedAt: when, Size: 4 << 20, Scheduled: true, Seq: 3}}},
		intents:   map[string]intent{"vol-b.3": {LV: "vol-b.3", Purpose: purposeCreate, Volume: "b"}},
		awaited:   map[string]bool{},
	}
	err := m.change(func(c *change) error {
		return errors.Join(
			c.putVolume("a", want.volumes["a"]), c.putVolume("gone", record{}), c.dropVolume("gone"),
			c.putSnapshot("a", "s", want.snapshots["a"]["s"]), c.putSnapshot("gone", "s", snapshot{}), c.dropSnapshot("gone", "s"),
			c.putIntent(want.intents["vol-b.3"]), c.putIntent(intent{LV: "gone"}), c.dropIntent("gone"),
		)
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, m.known(), stateFields); diff != "" {
		t.Error("remembered:", diff)
	}
	if err := m.bucket.Put("later/x", []byte("of a newer version")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, open(t, s, nil).known(), stateFields); diff != "" {
		t.Error("read:", diff)
	}
}

// A change that fails leaves nothing, neither on disk nor in memory.
func TestChangeIsWhole(t *testing.T) {
	s := newStore(t)
	m := open(t, s, nil)
	broken := errors.New("broken")
	err := m.change(func(c *change) error {
		return errors.Join(c.putVolume("a", record{LV: "x"}), broken)
	})
	if !errors.Is(err, broken) {
		t.Fatal(err)
	}
	for _, got := range []state{m.known(), open(t, s, nil).known()} {
		if len(got.volumes) != 0 {
			t.Errorf("kept %v", got.volumes)
		}
	}
}

// An intent goes in the same step in which its logical volume becomes a volume.
func TestCommit(t *testing.T) {
	m := open(t, newStore(t), nil)
	i := intent{LV: "vol-a.1", Purpose: purposeCreate, Volume: "a"}
	if err := m.begin(i); err != nil {
		t.Fatal(err)
	}
	if got := m.leftovers("a"); got != nil {
		t.Errorf("swept while it is worked on: %q", got)
	}
	broken := errors.New("broken")
	if err := m.commit(i.LV, func(*change) error { return broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
	if _, ok := m.known().intents[i.LV]; !ok {
		t.Error("the intent is gone though nothing was committed")
	}
	err := m.commit(i.LV, func(c *change) error { return c.putVolume("a", record{LV: i.LV}) })
	if err != nil {
		t.Error(err)
	}
	if s := m.known(); len(s.intents) != 0 || s.volumes["a"].LV != i.LV {
		t.Errorf("kept %+v", s)
	}
	// What a daemon before this one had begun is a leftover.
	if err := m.begin(i); err != nil {
		t.Fatal(err)
	}
	m = open(t, m.opts.Store, nil)
	if got := m.leftovers("a"); !cmp.Equal(got, []string{i.LV}) {
		t.Errorf("leftovers %q", got)
	}
}

func TestNewLV(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		name := newLV(prefixVolume, "my-photos")
		if !regexp.MustCompile(`^vol-my-photos\.[0-9a-f]{6}$`).MatchString(name) {
			t.Fatal(name)
		}
		seen[name] = true
	}
	if len(seen) < 90 {
		t.Errorf("only %d different names of 100", len(seen))
	}
}
