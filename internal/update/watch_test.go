package update

import (
	"context"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"capsule/internal/disk"
	"capsule/internal/slot"
)

// onTrial is a world that has just started v1.1.0.
func onTrial(t testing.TB, change func(*Offer)) (*world, *Manager) {
	t.Helper()
	w := newWorld(t, first(t))
	w.mustPush(w.manager(), second(t), change)
	return w, w.restart()
}

// watched runs fn beside Run in a bubble of time, then ends Run.
func watched(t *testing.T, change func(*Offer), fn func(*testing.T, *world, *Manager)) {
	synctest.Test(t, func(t *testing.T) {
		w, m := onTrial(t, change)
		defer w.close()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		synctest.Wait()
		fn(t, w, m)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestConfirm(t *testing.T) {
	watched(t, nil, func(t *testing.T, w *world, m *Manager) {
		pass(time.Minute)
		if s := m.Tentative(); s == nil || s.Left.AsDuration() != 9*time.Minute || s.ConfirmsIn != nil || len(s.Problems) > 0 {
			t.Error(s)
		}
		w.wantHistory(m, "v1.1.0 slot_b from v1.0.0: tentative: ")
		s, err := m.Status(t.Context())
		if err != nil || s.Version != "v1.1.0" || s.Slot != disk.SlotB || s.Tentative == nil || s.Other.GetVersion() != "v1.0.0" || s.Other.GetSlot() != disk.SlotA {
			t.Error(s, err)
		}
		for _, again := range []bool{false, true} {
			if r, err := m.Confirm(t.Context()); err != nil || r.Unchanged != again || r.Version != "v1.1.0" {
				t.Error(r, err)
			}
		}
		if m.Tentative() != nil || w.entry(disk.SlotB).Counted {
			t.Error("not confirmed")
		}
		pass(time.Hour)
		if diff := cmp.Diff([]string{"CAPSULE_WINDOW=600", "CAPSULE_CONFIRMED=1"}, w.heard()); diff != "" || w.restarted() != 0 {
			t.Error(diff, w.restarted())
		}
		m = w.settled(w.restart())
		w.wantHistory(m, "v1.1.0 slot_b from v1.0.0: confirmed: confirmed by an operator")
	})
}

func TestAutoConfirm(t *testing.T) {
	watched(t, func(o *Offer) { o.AutoConfirm = 2 * time.Minute }, func(t *testing.T, w *world, m *Manager) {
		pass(time.Minute)
		if s := m.Tentative(); s.ConfirmsIn.AsDuration() > 65*time.Second || s.ConfirmsIn.AsDuration() < 55*time.Second {
			t.Error(s)
		}
		// One moment of illness, and the soak starts anew.
		w.set(func() { w.unready = []string{`workload "blog" is not running: it ended with 1`} })
		pass(10 * time.Second)
		if s := m.Tentative(); s.ConfirmsIn.AsDuration() != 2*time.Minute || len(s.Problems) != 1 {
			t.Error(s)
		}
		w.set(func() { w.unready = nil })
		pass(110 * time.Second)
		if m.Tentative() == nil {
			t.Error("confirmed too early")
		}
		pass(20 * time.Second)
		if m.Tentative() != nil {
			t.Error("not confirmed")
		}
		w.wantHistory(m, "v1.1.0 slot_b from v1.0.0: confirmed: healthy for 2m0s")
	})
}

func TestDeadline(t *testing.T) {
	for name, tc := range map[string]struct {
		offer func(*Offer)
		hurt  func(*world)
		after time.Duration
		why   string
	}{
		"unconfirmed": {nil, func(*world) {}, 10 * time.Minute, "not confirmed within 10m0s"},
		"window":      {func(o *Offer) { o.Window = time.Hour }, func(*world) {}, time.Hour, "not confirmed within 1h0m0s"},
		"workload": {nil, func(w *world) {
			w.unready = []string{`workload "blog" is not running`, `workload "mail" is not healthy`}
		},
			10 * time.Minute, `workload "blog" is not running; workload "mail" is not healthy`},
		"no network": {nil, func(w *world) { w.addressed = false }, 10 * time.Minute, "no uplink has an address, and one had before the update"},
		"never healthy for long": {func(o *Offer) { o.AutoConfirm = time.Minute }, func(w *world) { w.unready = []string{"x"} },
			10 * time.Minute, "x"},
	} {
		t.Run(name, func(t *testing.T) {
			watched(t, tc.offer, func(t *testing.T, w *world, m *Manager) {
				w.set(func() { tc.hurt(w) })
				pass(tc.after - time.Second)
				if w.restarted() != 0 {
					t.Error("too early")
				}
				// Process 1 would do it 15 s after the deadline.
				pass(2*time.Second + lookEvery)
				if w.restarted() != 1 || w.entry(disk.SlotB) != nil {
					t.Error(w.restarted(), w.entry(disk.SlotB))
				}
				for call, err := range map[string]error{"confirm": second2(m.Confirm(t.Context())), "rollback": second2(m.Rollback(t.Context()))} {
					if !errdefs.IsFailedPrecondition(err) {
						t.Errorf("%s while it restarts: %v", call, err)
					}
				}
				w.addressed, w.unready = true, nil
				m = w.settled(w.restart())
				if w.running != "v1.0.0" || m.Tentative() != nil {
					t.Error(w.running)
				}
				w.wantHistory(m, "v1.1.0 slot_b from v1.0.0: rolled_back: "+tc.why)
				if _, _, err := w.push(m, second(t), nil); err == nil || !strings.Contains(err.Error(), tc.why) {
					t.Error(err)
				}
			})
		})
	}
}

func second2[A, B any](_ A, b B) B { return b }

// A capsule that had no address before isn't judged by one.
func TestNoAddressBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, first(t))
		defer w.close()
		w.addressed = false
		w.mustPush(w.manager(), second(t), func(o *Offer) { o.AutoConfirm = time.Minute })
		m := w.restart()
		if err := m.Run(t.Context()); err != nil || m.Tentative() != nil {
			t.Error(err, m.Tentative())
		}
	})
}

// A daemon that starts anew knows the deadline that was asked for, and soaks anew.
func TestRestartOfTheDaemon(t *testing.T) {
	watched(t, func(o *Offer) { o.Window = 30 * time.Minute; o.AutoConfirm = 20 * time.Minute }, func(t *testing.T, w *world, _ *Manager) {
		pass(15 * time.Minute)
		m := w.manager()
		if s := m.Tentative(); s == nil || s.Left.AsDuration() != 15*time.Minute || s.ConfirmsIn.AsDuration() != 20*time.Minute {
			t.Error(s)
		}
	})
}

func TestRollback(t *testing.T) {
	t.Parallel()
	t.Run("of a tentative system", func(t *testing.T) {
		w, m := onTrial(t, nil)
		w.settled(m)
		good := w.sums()["esp/loader/entries/capsule-slot_a.conf"]
		r, err := m.Rollback(t.Context())
		if err != nil || r.Version != "v1.0.0" || r.Slot != disk.SlotA || w.restarted() != 1 {
			t.Fatal(r, err)
		}
		m = w.settled(w.restart())
		if w.running != "v1.0.0" || w.sums()["esp/loader/entries/capsule-slot_a.conf"] != good {
			t.Error(w.running, "or the good entry was written")
		}
		w.wantHistory(m, "v1.1.0 slot_b from v1.0.0: rolled_back: rolled back by an operator")
		if _, err := m.Rollback(t.Context()); !errdefs.IsNotFound(err) {
			t.Errorf("forward to what was never confirmed: %v", err)
		}
		// It's all there still: a push of it costs next to nothing.
		if c := w.mustPush(m, second(t), func(o *Offer) { o.Force = true }); c.asked != testKernel+int64(len(second(t).tree)) {
			t.Errorf("%d bytes", c.asked)
		}
	})
	t.Run("after a confirm, and forth", func(t *testing.T) {
		w, m := onTrial(t, nil)
		w.settled(m)
		if _, err := m.Confirm(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"v1.0.0", "v1.1.0", "v1.0.0"} {
			if r, err := m.Rollback(t.Context()); err != nil || r.Version != want {
				t.Fatal(r, err)
			}
			if m = w.settled(w.restart()); w.running != want || m.Tentative().GetConfirmsIn().AsDuration() != time.Minute {
				t.Fatal(w.running, m.Tentative())
			}
			for _, over := range []bool{false, true} {
				if is, err := m.look(m.tentative); is != over || err != nil {
					t.Fatal(is, err)
				}
				w.begun = w.begun.Add(-time.Minute) // goes by
			}
		}
		w.wantHistory(m, "v1.0.0 slot_a from : confirmed: it was gone back to, and healthy for 1m0s",
			"v1.1.0 slot_b from v1.0.0: rolled_back: rolled back by an operator")
	})
	t.Run("to one that does not come up any more", func(t *testing.T) {
		w, m := onTrial(t, nil)
		w.settled(m)
		if _, err := m.Confirm(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 2 { // asking twice is asking once
			if r, err := m.Rollback(t.Context()); err != nil || r.Version != "v1.0.0" {
				t.Fatal(r, err)
			}
			m = w.manager() // the daemon ended before the machine
		}
		for range 3 {
			if w.restart(); w.running != "v1.0.0" {
				t.Fatal(w.running)
			}
		}
		if m = w.settled(w.restart()); w.running != "v1.1.0" || m.Tentative() != nil {
			t.Error(w.running, m.Tentative())
		}
	})
	t.Run("to a damaged slot", func(t *testing.T) {
		for name, hurt := range map[string]func(*world){
			"data":   func(w *world) { w.write("slot_a", flipped(w.read("slot_a"), 150*blockSize)) },
			"tree":   func(w *world) { w.write("slot_a", flipped(w.read("slot_a"), (testBlocks+3)*blockSize)) },
			"head":   func(w *world) { w.write("slot_a", flipped(w.read("slot_a"), testBlocks*blockSize)) },
			"kernel": func(w *world) { w.write("esp/EFI/capsule/first.efi", nil) },
			"entry":  func(w *world) { _ = os.Remove(w.path("esp/loader/entries/capsule-slot_a.conf")) },
		} {
			w, m := onTrial(t, nil)
			if _, err := m.Confirm(t.Context()); err != nil {
				t.Fatal(err)
			}
			hurt(w)
			before := w.sums()
			if _, err := m.Rollback(t.Context()); err == nil || !strings.Contains(err.Error(), "slot_a has no system to go back to") {
				t.Errorf("%s: %v", name, err)
			}
			if diff := cmp.Diff(before, w.sums()); diff != "" || w.restarted() != 0 {
				t.Error(name, diff, w.restarted())
			}
			if _, err := os.Stat(w.path("perm/rollback.json")); err == nil {
				t.Errorf("%s: a reason was left for what wasn't done", name)
			}
		}
	})
	t.Run("to nothing", func(t *testing.T) {
		w := newWorld(t, first(t))
		m := w.manager()
		if _, err := m.Rollback(t.Context()); !errdefs.IsNotFound(err) {
			t.Error(err)
		}
		w.mustPush(m, second(t), func(o *Offer) { o.NoReboot = true })
		if _, err := m.Rollback(t.Context()); !errdefs.IsFailedPrecondition(err) || w.restarted() != 0 {
			t.Errorf("to what was never started: %v", err)
		}
		if s, err := m.Status(t.Context()); err != nil || s.Other != nil {
			t.Error(s, err)
		}
	})
}

// What became of an update that ended without this package's doing.
func TestSettle(t *testing.T) {
	t.Parallel()
	reasonOf := func(in, version, why string) []byte {
		b, _ := json.Marshal(slot.Reason{Slot: in, Version: version, Reason: why, Time: time.Date(2031, 1, 1, 0, 0, 0, 0, time.UTC)})
		return b
	}
	const record = "v1.1.0 slot_b from v1.0.0: "
	for name, tc := range map[string]struct {
		offer  func(*Offer)
		happen func(*world) // between the push and the start of the manager that looks
		want   []string
	}{
		"not started yet": {func(o *Offer) { o.NoReboot = true }, func(*world) {}, []string{record + "installed: "}},
		"tries used up": {nil, func(w *world) {
			for range 4 {
				w.restart()
			}
		}, []string{record + "rolled_back: did not come up: its boot tries are used up"}},
		"process 1": {nil, func(w *world) {
			w.restart()
			w.write("perm/rollback.json", reasonOf("slot_b", "v1.1.0", "its daemon ended 5 times"))
			_ = os.Remove(w.path("esp/loader/entries/" + w.entry("slot_b").File))
			w.restart()
		}, []string{record + "rolled_back: its daemon ended 5 times"}},
		"process 1 without /perm": {nil, func(w *world) {
			w.restart()
			_ = os.Remove(w.path("esp/loader/entries/" + w.entry("slot_b").File))
			w.restart()
		}, []string{record + "rolled_back: its boot entry is gone, and nobody left a reason"}},
		"cut before it went": {nil, func(w *world) {
			w.restart()
			w.write("perm/rollback.json", reasonOf("slot_b", "v1.1.0", "its daemon ended 5 times"))
			w.restart()
		}, []string{record + "tentative: "}},
		"damaged reason": {nil, func(w *world) {
			w.restart()
			w.write("perm/rollback.json", []byte(`{"slot":`))
		}, []string{record + "tentative: "}},
		"unknown version": {func(o *Offer) { o.NoReboot = true }, func(w *world) {
			w.write("perm/rollback.json", reasonOf("slot_b", "v7", "why not"))
		}, []string{"v7 slot_b from : rolled_back: why not", record + "installed: "}},
		"blessed by process 1": {nil, func(w *world) {
			w.restart()
			_ = os.Rename(w.path("esp/loader/entries/"+w.entry("slot_b").File), w.path("esp/loader/entries/capsule-slot_b.conf"))
		}, []string{record + "confirmed: its boot entry is kept"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, first(t))
			w.mustPush(w.manager(), second(t), tc.offer)
			tc.happen(w)
			for range 2 { // a second look finds the same
				m := w.settled(w.manager())
				w.wantHistory(m, tc.want...)
			}
			if _, err := os.Stat(w.path("perm/rollback.json")); err == nil {
				t.Error("the reason is still there")
			}
		})
	}
}

// An update without a record, as after a loss of the store, is watched all the same.
func TestNoRecord(t *testing.T) {
	t.Parallel()
	w, m := onTrial(t, nil)
	h, err := readHistory(m.Bucket)
	if err != nil || len(h) != 1 || m.Bucket.Delete(h[0].key) != nil {
		t.Fatal(h, err)
	}
	w.settled(m)
	if s := m.Tentative(); s.GetLeft().AsDuration() < WindowDefault-time.Minute {
		t.Error(s)
	}
	w.wantHistory(m, "v1.1.0 slot_b from : tentative: ")
}

// Leftovers and what makes the loader obstinate go at the start, and are told.
func TestTidy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, first(t))
	w.write("esp/FSCK0000.REC", []byte("junk"))
	w.write("esp/EFI/capsule/capsule-v1.1.0.efi", []byte("half"))
	w.write("efivars/LoaderEntryDefault-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f", []byte("\x07\x00\x00\x00a\x00\x00\x00"))
	m := w.manager()
	if err := m.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(w.seen()) != 3 || !slices.ContainsFunc(w.seen(), func(s string) bool { return strings.Contains(s, `"a"`) }) {
		t.Error(w.seen())
	}
	for _, gone := range []string{"esp/FSCK0000.REC", "esp/EFI/capsule/capsule-v1.1.0.efi", "efivars/LoaderEntryDefault-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"} {
		if _, err := os.Stat(w.path(gone)); err == nil {
			t.Errorf("%s is still there", gone)
		}
	}
	if err := w.manager().Run(t.Context()); err != nil || len(w.seen()) != 3 {
		t.Error(err, w.seen())
	}
}

func TestRecoveryMode(t *testing.T) {
	t.Parallel()
	w, _ := onTrial(t, nil)
	w.recovery = true
	m := w.manager()
	m.Bucket = nil
	if err := m.Run(t.Context()); err != nil {
		t.Error(err)
	}
	if s, err := m.Status(t.Context()); err != nil || s.Version != "v1.1.0" || s.Tentative == nil {
		t.Error(s, err)
	}
	if _, err := m.Confirm(t.Context()); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
	// One can go back, and nothing is written to /perm.
	if r, err := m.Rollback(t.Context()); err != nil || r.Version != "v1.0.0" || w.restarted() != 1 {
		t.Error(r, err)
	}
	if _, err := os.Stat(w.path("perm/rollback.json")); err == nil {
		t.Error("a reason was written")
	}
}
