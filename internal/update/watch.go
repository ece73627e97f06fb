package update

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/disk"
	"capsule/internal/slot"
)

const (
	lookEvery = 5 * time.Second // at the health of a tentative system
	// againSoak is how long a system that was gone back to must be healthy. It was
	// confirmed once: nobody has to do it again.
	againSoak = time.Minute
	// startMax is what of a window may pass until a system is up.
	startMax = 30 * time.Second
)

// trial is the time in which a tentative system must be confirmed.
type trial struct {
	addressed   bool          // an uplink had an address before
	window      time.Duration // by Uptime
	autoConfirm time.Duration // 0: never
	again       bool          // it was good before, and gone back to

	problems []string
	since    time.Duration // uptime from when on it was healthy; 0 when it isn't
}

// newTrial takes what was asked for at the push. Of a system that nobody pushed r
// is nil.
func newTrial(r *record) *trial {
	t := &trial{window: WindowDefault}
	if r != nil {
		t.addressed, t.autoConfirm = r.Addressed, r.AutoConfirm
		if r.Window >= WindowMin && r.Window <= WindowMax {
			t.window = r.Window
		}
	}
	return t
}

// judge takes in what is wrong now.
func (t *trial) judge(problems []string, now time.Duration) {
	t.problems = problems
	switch {
	case len(problems) > 0:
		t.since = 0
	case t.since == 0:
		t.since = now
	}
}

// soaked: it was healthy for as long as was asked for.
func (t *trial) soaked(now time.Duration) bool {
	return t.autoConfirm > 0 && t.since > 0 && now-t.since >= t.autoConfirm
}

// praise is why it is confirmed without an operator.
func (t *trial) praise() string {
	text := fmt.Sprintf("healthy for %v", t.autoConfirm)
	if t.again {
		return "it was gone back to, and " + text
	}
	return text
}

// verdict is why the system goes at its deadline.
func (t *trial) verdict() string {
	if len(t.problems) > 0 {
		return strings.Join(t.problems, "; ")
	}
	return fmt.Sprintf("not confirmed within %v", t.window)
}

func (t *trial) proto(now time.Duration) *v1.TentativeSystem {
	out := &v1.TentativeSystem{Left: durationpb.New(max(0, t.window-now)), Problems: slices.Clone(t.problems)}
	if t.autoConfirm > 0 {
		healthy := time.Duration(0)
		if t.since > 0 {
			healthy = now - t.since
		}
		out.ConfirmsIn = durationpb.New(max(0, t.autoConfirm-healthy))
	}
	return out
}

// Run writes down what became of former updates, tidies what cut ones left, and
// watches a tentative system until it's confirmed or rolled back. It returns nil
// when there is nothing to watch any more. Call it again after an error.
func (m *Manager) Run(ctx context.Context) error {
	if !m.Machine.Normal() {
		return nil // process 1 cares for it
	}
	t, err := m.trial()
	if err != nil {
		return err
	}
	// Neither keeps the watch from its work. What is tidied tells what happened.
	if err := m.settle(); err != nil {
		m.Log.Error("update", "error", err)
	}
	if err := m.tidy(); err != nil {
		m.Log.Error("update: tidy the boot partition", "error", err)
	}
	if t == nil {
		return nil
	}
	return m.watch(ctx, t)
}

// tidy removes what cut updates left on the ESP, and the variable that would make
// the loader start one entry for ever. Each is an event.
func (m *Manager) tidy() error {
	was, err := slot.RemoveDefault(m.EFIVars)
	if err == nil && was != "" {
		m.Event("tidied", fmt.Sprintf("the firmware was told to start %q in any case: that is undone, for it would keep a broken system running", was))
	}
	m.esp.Lock()
	defer m.esp.Unlock()
	untidy := false
	look := m.ESP(disk.ReadOnly, func(esp string) (err error) {
		untidy, err = slot.Untidy(esp, m.boot.Slot)
		return err
	})
	if look != nil || !untidy {
		return errors.Join(err, look)
	}
	clean := m.ESP(disk.Writable, func(esp string) error {
		did, err := slot.Tidy(esp, m.boot.Slot)
		for _, text := range did {
			m.Event("tidied", text)
		}
		return err
	})
	return errors.Join(err, clean)
}

// settle writes down what became of former updates: from the reason that was left,
// else from what the loader did.
func (m *Manager) settle() error {
	why, err := m.readReason()
	if err != nil {
		return err
	}
	if why != nil && why.Slot == m.boot.Slot && why.Version == m.Version {
		why = nil // a cut came before anything was done
	}
	h, err := readHistory(m.Bucket)
	if err != nil {
		return err
	}
	if why != nil {
		if err := m.settleReason(h, why); err != nil {
			return err
		}
	}
	for _, r := range h {
		if !r.open() {
			continue
		}
		if err := m.settleOpen(h, r); err != nil {
			return err
		}
	}
	if err := m.settleRunning(h); err != nil {
		return err
	}
	return m.dropReason()
}

// settleReason gives the reason to the record of the system that was rolled back.
func (m *Manager) settleReason(h history, why *slot.Reason) error {
	r := h.last(func(r *record) bool { return r.Slot == why.Slot && r.Version == why.Version })
	if r != nil && r.Outcome == rolledBack && r.Ended.Equal(why.Time) {
		return nil // a cut came before the file was removed
	}
	m.Event("rolled-back", fmt.Sprintf("version %s in %s: %s", why.Version, why.Slot, why.Reason))
	if r == nil {
		_, err := addRecord(m.Bucket, facts{Version: why.Version, Slot: why.Slot, Time: why.Time,
			Outcome: rolledBack, Ended: why.Time, Reason: why.Reason, Activated: true})
		return err
	}
	r.end(rolledBack, why.Time, why.Reason)
	return putRecord(m.Bucket, r)
}

// settleOpen closes the record of a system that doesn't run and isn't to.
func (m *Manager) settleOpen(h history, r *record) error {
	if m.runs(r) && h.last(m.runs) == r {
		return nil
	}
	var entry *slot.Entry
	err := m.ESP(disk.ReadOnly, func(esp string) (err error) {
		entry, err = entryOf(esp, r.Slot)
		return err
	})
	if err != nil {
		return fmt.Errorf("look what became of version %s: %w", r.Version, err)
	}
	if entry != nil && entry.Version != r.Version {
		entry = nil
	}
	switch {
	case entry == nil && r.Outcome == installed && !r.Activated:
		return m.Bucket.Delete(r.key) // cut before it could ever start
	case entry != nil && entry.Exhausted():
		r.end(rolledBack, time.Now(), "did not come up: its boot tries are used up")
	case entry != nil && r.Outcome == installed:
		return nil // it's what the next restart starts
	case entry != nil:
		r.end(rolledBack, time.Now(), "another system was started instead")
	default:
		r.end(rolledBack, time.Now(), "its boot entry is gone, and nobody left a reason")
	}
	m.Event("rolled-back", fmt.Sprintf("version %s in %s: %s", r.Version, r.Slot, r.Reason))
	return putRecord(m.Bucket, r)
}

// settleRunning writes down that the running system is up.
func (m *Manager) settleRunning(h history) error {
	t, err := m.trial()
	if err != nil {
		return err
	}
	r := h.last(m.runs)
	switch {
	case t != nil && r == nil:
		_, err := addRecord(m.Bucket, facts{Version: m.Version, Slot: m.boot.Slot, Time: time.Now(), Outcome: tentative,
			Activated: true, Window: t.window})
		return err
	case t != nil && r.Outcome != tentative:
		r.end(tentative, time.Time{}, "")
	case t == nil && r != nil && r.open():
		r.end(confirmed, time.Now(), "its boot entry is kept")
	case t == nil && r != nil && r.Outcome == rolledBack:
		r.end(confirmed, time.Now(), "it was gone back to")
	default:
		return nil
	}
	return putRecord(m.Bucket, r)
}

// watch looks at the tentative system's health until its end.
func (m *Manager) watch(ctx context.Context, t *trial) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for told := false; ; {
		if !told {
			err := m.Machine.Tell(fmt.Sprintf("CAPSULE_WINDOW=%d", int64(t.window/time.Second)))
			if told = err == nil; !told {
				m.Log.Error("update: tell process 1 of the deadline", "error", err) // it has one of its own until then
			}
		}
		over, err := m.look(t)
		if err != nil {
			m.Log.Error("update", "error", err) // again in a moment
		}
		if over {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// look judges the tentative system once, and says whether its trial is over.
func (m *Manager) look(t *trial) (over bool, err error) {
	problems, now := m.problems(t), m.Uptime()
	m.mu.Lock()
	if m.tentative == nil || m.restarts != "" {
		m.mu.Unlock()
		return true, nil
	}
	t.judge(problems, now)
	soaked, late, verdict := t.soaked(now), now >= t.window, t.verdict()
	m.mu.Unlock()
	switch {
	case soaked:
		_, err := m.confirm(t.praise())
		return err == nil, err
	case late:
		return m.giveUp(verdict)
	}
	return false, nil
}

// giveUp rolls the tentative system back at its deadline.
func (m *Manager) giveUp(verdict string) (over bool, err error) {
	m.ending.Lock()
	defer m.ending.Unlock()
	if t, err := m.trial(); err != nil || t == nil || m.restarting() != nil {
		return err == nil, err
	}
	if err := m.goBack(true, verdict); err != nil {
		return false, err
	}
	return true, nil
}

// problems are what is wrong with a tentative system: the health rule. That the API
// answers is for process 1 to watch, since a daemon that hangs can't.
func (m *Manager) problems(t *trial) []string {
	var out []string
	if !m.Machine.Normal() {
		out = append(out, "recovery mode")
	}
	if t.addressed && !m.Machine.Addressed() {
		out = append(out, "no uplink has an address, and one had before the update")
	}
	return append(out, m.Machine.Unready()...)
}
