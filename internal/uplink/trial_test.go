package uplink

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/store"
)

// box is a capsule's store, and the network that is declared there.
type box struct {
	*Trials
	path  string
	store *store.Store
	end   func()
}

// openBox starts it as at a boot.
func openBox(t *testing.T, path string) *box {
	t.Helper()
	st, err := store.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	trials, err := OpenTrials(t.Context(), TrialOptions{Store: st, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- trials.Run(ctx) }()
	return &box{trials, path, st, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	}}
}

// cut starts it again without an end.
func (b *box) cut(t *testing.T) *box {
	t.Helper()
	b.end()
	return openBox(t, b.path)
}

func network(address string) *v1.CapsuleNetwork {
	if address == "" {
		return nil
	}
	return &v1.CapsuleNetwork{Links: []*v1.LinkSpec{{Link: "eth0", Addresses: []string{address}}}}
}

// apply declares it as the server does, and gives the generation.
func (b *box) apply(t *testing.T, spec *v1.CapsuleSpec) (uint64, error) {
	t.Helper()
	obj := &v1.Object{Meta: &v1.Meta{Kind: manifest.KindCapsule, Name: manifest.CapsuleName}, Kind: &v1.Object_Capsule{Capsule: &v1.Capsule{Spec: spec}}}
	results, err := b.store.Apply(t.Context(), []*v1.Object{obj}, false, func(tx store.View, objs []*v1.Object) error { return b.Admit(tx, objs[0]) })
	if err != nil {
		return 0, err
	}
	b.Follow()
	return results[0].GetObject().GetMeta().GetGeneration(), nil
}

func (b *box) try(t *testing.T, address string) uint64 {
	t.Helper()
	generation, err := b.apply(t, &v1.CapsuleSpec{Network: network(address)})
	if err != nil {
		t.Fatal(err)
	}
	return generation
}

// made says that the links are as the settings have it, once they are told.
func (b *box) made(conflicts ...string) {
	time.Sleep(answerTime)
	synctest.Wait()
	_, number := b.Settings.now()
	b.Heard(State{Number: number, Conflicts: conflicts})
}

// is checks what is declared, what the links follow, whether it is tried, and why it
// was taken back.
func (b *box) is(t *testing.T, address string, tried bool, reverted string) {
	t.Helper()
	time.Sleep(answerTime)
	synctest.Wait()
	obj, err := b.store.Get(manifest.KindCapsule, manifest.CapsuleName)
	if err != nil {
		t.Fatal(err)
	}
	if got := obj.GetCapsule().GetSpec().GetNetwork(); !manifest.SameNetwork(got, network(address)) {
		t.Errorf("declared %v, want %q", got, address)
	}
	if now, _ := b.Settings.now(); !slices.EqualFunc(now.Links, ConfigOf(network(address)).Links, func(a, b LinkConfig) bool { return a.Addresses[0] == b.Addresses[0] }) {
		t.Errorf("the links follow %+v, want %q", now, address)
	}
	s, err := b.Status()
	if err != nil || (s.Trial != nil) != tried || !strings.Contains(s.Reverted, reverted) || (s.Reverted == "") != (reverted == "") {
		t.Errorf("status %+v, %v, want tried %t, reverted %q", s, err, tried, reverted)
	}
}

func (b *box) confirm(t *testing.T, generation uint64) error {
	t.Helper()
	proof, done, err := b.Confirm(t.Context(), generation, nil)
	if err == nil && !done {
		_, done, err = b.Confirm(t.Context(), generation, proof)
	}
	if err == nil && !done {
		t.Error("not confirmed by the proof")
	}
	return err
}

// events of the machine's network, in order.
func (b *box) events(t *testing.T) (types []string) {
	t.Helper()
	page, err := b.store.Events(0, 1000, func(*v1.Event) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range page.Events {
		if name, ok := strings.CutPrefix(e.GetType(), "network-"); ok {
			types = append(types, name)
		}
	}
	return types
}

// What becomes of a change that is tried.
func TestTrial(t *testing.T) {
	const first, second = "192.0.2.5/24", "192.0.2.6/24"
	for name, test := range map[string]struct {
		run    func(t *testing.T, b *box) *box
		events string
	}{
		"confirmed": {func(t *testing.T, b *box) *box {
			n := b.try(t, second)
			b.is(t, second, true, "")
			b.made()
			time.Sleep(manifest.TrialMax - 3*answerTime)
			if err := b.confirm(t, n); err != nil {
				t.Error(err)
			}
			b.is(t, second, false, "")
			time.Sleep(time.Hour)
			b.is(t, second, false, "")
			if err := b.confirm(t, n); err != nil {
				t.Errorf("a confirmation whose answer was lost: %v", err)
			}
			b = b.cut(t)
			b.is(t, second, false, "")
			if err := b.confirm(t, n); err != nil {
				t.Errorf("a confirmation whose answer was lost: %v", err)
			}
			return b
		}, "tried confirmed"},
		"nobody confirms": {func(t *testing.T, b *box) *box {
			n := b.try(t, second)
			b.made()
			time.Sleep(manifest.TrialMax - 3*answerTime)
			b.is(t, second, true, "")
			b.is(t, first, false, "not confirmed within 1m0s")
			if err := b.confirm(t, n); err == nil || !strings.Contains(err.Error(), "taken back: it was not confirmed") {
				t.Errorf("confirmed too late: %v", err)
			}
			b = b.cut(t)
			b.is(t, first, false, "not confirmed within 1m0s")
			return b
		}, "tried reverted"},
		"the answer came by no way": {func(t *testing.T, b *box) *box {
			n := b.try(t, second)
			b.made()
			for range 3 {
				proof, done, err := b.Confirm(t.Context(), n, nil)
				if len(proof) != proofBytes || done || err != nil {
					t.Errorf("proof %x, %t, %v", proof, done, err)
				}
			}
			if _, done, err := b.Confirm(t.Context(), n, []byte("a guess of 16 by")); done || err != nil {
				t.Errorf("guessed: %t, %v", done, err)
			}
			time.Sleep(manifest.TrialMax)
			b.is(t, first, false, "not confirmed")
			return b
		}, "tried reverted"},
		"confirmed before it is made": {func(t *testing.T, b *box) *box {
			b.made()
			n := b.try(t, second)
			b.Heard(State{Number: 1}) // of before
			if proof, done, err := b.Confirm(t.Context(), n, nil); proof != nil || done || err == nil {
				t.Errorf("proof %x, %t, %v", proof, done, err)
			}
			b.is(t, second, true, "")
			return b
		}, "tried"},
		"power cut": {func(t *testing.T, b *box) *box {
			n := b.try(t, second)
			b.made()
			b = b.cut(t)
			b.is(t, first, false, "started again")
			if err := b.confirm(t, n); err == nil || !strings.Contains(err.Error(), "started again") {
				t.Errorf("confirmed after the cut: %v", err)
			}
			return b
		}, "tried reverted"},
		"an address is somebody else's": {func(t *testing.T, b *box) *box {
			b.Heard(State{Number: 1, Conflicts: []string{"old trouble"}})
			b.try(t, second)
			b.made("old trouble")
			b.is(t, second, true, "")
			b.made("old trouble", "192.0.2.6 is taken")
			b.is(t, first, false, "192.0.2.6 is taken")
			return b
		}, "tried reverted"},
		"two at once": {func(t *testing.T, b *box) *box {
			n := b.try(t, second)
			if _, err := b.apply(t, &v1.CapsuleSpec{Network: network("192.0.2.7/24")}); err == nil || !strings.Contains(err.Error(), "the network is busy") {
				t.Errorf("a second change: %v", err)
			}
			if _, err := b.apply(t, &v1.CapsuleSpec{Network: network(second), Hostname: "attic"}); err != nil {
				t.Errorf("a change of something else: %v", err)
			}
			b.is(t, second, true, "")
			b.made()
			if err := b.confirm(t, n); err != nil {
				t.Error(err)
			}
			b.is(t, second, false, "")
			return b
		}, "tried confirmed"},
		"what else changed meanwhile stays": {func(t *testing.T, b *box) *box {
			b.try(t, second)
			if _, err := b.apply(t, &v1.CapsuleSpec{Network: network(second), Hostname: "attic"}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(manifest.TrialMax)
			b.is(t, first, false, "not confirmed")
			obj, err := b.store.Get(manifest.KindCapsule, manifest.CapsuleName)
			if err != nil || obj.GetCapsule().GetSpec().GetHostname() != "attic" {
				t.Errorf("%v, %v", obj, err)
			}
			return b
		}, "tried reverted"},
		"taken back by hand": {func(t *testing.T, b *box) *box {
			b.try(t, second)
			b.try(t, first)
			b.is(t, first, false, "")
			time.Sleep(time.Hour)
			b.is(t, first, false, "")
			return b
		}, "tried reverted"},
		"again after it went back": {func(t *testing.T, b *box) *box {
			b.try(t, second)
			time.Sleep(manifest.TrialMax)
			b.is(t, first, false, "not confirmed")
			n := b.try(t, second)
			b.is(t, second, true, "")
			b.made()
			if err := b.confirm(t, n); err != nil {
				t.Error(err)
			}
			b.is(t, second, false, "")
			return b
		}, "tried reverted tried confirmed"},
		"to the default and back": {func(t *testing.T, b *box) *box {
			b.try(t, "")
			b.is(t, "", true, "")
			time.Sleep(manifest.TrialMax)
			b.is(t, first, false, "not confirmed")
			return b
		}, "tried reverted"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := openBox(t, filepath.Join(t.TempDir(), "state.db"))
				n := b.try(t, first)
				b.made()
				if err := b.confirm(t, n); err != nil {
					t.Fatal(err)
				}
				b = test.run(t, b)
				if got := strings.Join(b.events(t)[2:], " "); got != test.events {
					t.Errorf("events %q, want %q", got, test.events)
				}
				b.end()
			})
		})
	}
}

// A trial run shows what would be, and starts nothing.
func TestTrialDryRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBox(t, filepath.Join(t.TempDir(), "state.db"))
		defer b.end()
		obj := &v1.Object{Meta: &v1.Meta{Kind: manifest.KindCapsule, Name: manifest.CapsuleName},
			Kind: &v1.Object_Capsule{Capsule: &v1.Capsule{Spec: &v1.CapsuleSpec{Network: network("192.0.2.5/24")}}}}
		if _, err := b.store.Apply(t.Context(), []*v1.Object{obj}, true, func(tx store.View, objs []*v1.Object) error { return b.Admit(tx, objs[0]) }); err != nil {
			t.Fatal(err)
		}
		b.Follow()
		if s, err := b.Status(); err != nil || s.Trial != nil {
			t.Errorf("%+v, %v", s, err)
		}
	})
}

// In recovery mode, with a copy of the store to look at, the links have what was
// confirmed.
func TestTrialOfACopy(t *testing.T) { synctest.Test(t, testTrialOfACopy) }

func testTrialOfACopy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	b := openBox(t, path)
	n := b.try(t, "192.0.2.5/24")
	b.made()
	if err := b.confirm(t, n); err != nil {
		t.Fatal(err)
	}
	b.try(t, "192.0.2.6/24")
	b.end() // makes the copy
	st, err := store.OpenCopy(path)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	trials, err := OpenTrials(t.Context(), TrialOptions{Store: st, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if now, _ := trials.Settings.now(); len(now.Links) != 1 || now.Links[0].Addresses[0].String() != "192.0.2.5/24" {
		t.Errorf("the links follow %+v", now)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := trials.Run(ctx); err != nil || trials.left() != forever {
		t.Error(err, "something is to be written")
	}
}

// A network that is as by default is none.
func TestSameNetwork(t *testing.T) {
	if !manifest.SameNetwork(nil, &v1.CapsuleNetwork{}) || manifest.SameNetwork(nil, network("192.0.2.5/24")) ||
		!manifest.SameNetwork(network("192.0.2.5/24"), proto.CloneOf(network("192.0.2.5/24"))) {
		t.Error("networks are compared wrong")
	}
}

// Whoever is told of a change follows what is declared: that is no change by itself.
func TestFollowTellsOfChangesOnly(t *testing.T) {
	st, err := store.Open(filepath.Join(t.TempDir(), "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	told := 0
	trials, err := OpenTrials(t.Context(), TrialOptions{Store: st, OnChange: func() { told++ }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		trials.Follow()
	}
	if told > 0 {
		t.Errorf("told %d times of nothing", told)
	}
	_, err = st.Apply(t.Context(), []*v1.Object{{
		Meta: &v1.Meta{Kind: manifest.KindCapsule, Name: manifest.CapsuleName},
		Kind: &v1.Object_Capsule{Capsule: &v1.Capsule{Spec: &v1.CapsuleSpec{Network: network("192.0.2.10/24")}}},
	}}, false, func(tx store.View, objs []*v1.Object) error { return trials.Admit(tx, objs[0]) })
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		trials.Follow()
	}
	if told != 1 {
		t.Errorf("told %d times of one change", told)
	}
}
