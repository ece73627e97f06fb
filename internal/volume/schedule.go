package volume

import (
	"context"
	"fmt"
	"time"

	"capsule/api/manifest"
	"capsule/internal/reconcile"
)

const (
	scheduleEvery = 30 * time.Second // clocks may jump: nothing is slept through
	retryMin      = 30 * time.Second
	retryMax      = 10 * time.Minute
)

// scheduling are the options of the queue of schedules: one snapshot at a time, so
// that a capsule that was off for long does not hold all its workloads at once.
func scheduling(keys func(context.Context) []string) reconcile.Options {
	return reconcile.Options{Workers: 1, Resync: scheduleEvery, BackoffMin: retryMin, BackoffMax: retryMax, Keys: keys}
}

// due is when a schedule wants the next snapshot. last is when it made one, or
// when the volume was created. Times that were missed are made up for by one
// snapshot. A last time in the future is a clock that was wrong or was set back:
// by less than every it only moves the next one; by more, one is due now, from
// which the schedule goes on.
func due(every time.Duration, last, now time.Time) time.Time {
	if last.Sub(now) >= every {
		return now
	}
	return last.Add(every)
}

// expired are the names of scheduled snapshots beyond the newest so many. Newer is
// what was made later, whatever the clock said then.
func expired(snaps map[string]snapshot, keep int) []string {
	var names []string
	for _, name := range ordered(snaps) {
		if snaps[name].Scheduled {
			names = append(names, name)
		}
	}
	return names[:max(0, len(names)-max(keep, 1))]
}

// keepSchedule makes the snapshot of a volume that is due, and removes those that
// its schedule made before and doesn't keep.
func (m *Manager) keepSchedule(ctx context.Context, volume string) (again time.Duration, err error) {
	obj, err := m.opts.Store.Get(manifest.KindVolume, volume)
	schedule := obj.GetVolume().GetSpec().GetSnapshots()
	if err != nil || schedule == nil || obj.GetMeta().GetDeletedAt() != nil {
		return 0, nil //nolint:nilerr // deleted meanwhile
	}
	r, ok := m.record(volume)
	if !ok || r.UID != obj.GetMeta().GetUid() || r.Fresh { // nothing is in it yet
		return 0, nil
	}
	last := r.Scheduled
	if last.IsZero() {
		last = obj.GetMeta().GetCreatedAt().AsTime()
	}
	every := schedule.GetEvery().AsDuration()
	if left := time.Until(due(every, last, time.Now())); left > 0 {
		return left, m.expire(ctx, volume, int(schedule.GetKeep()))
	}
	s, err := m.takeSnapshot(ctx, volume, "", true)
	if err != nil {
		m.skipped(volume, err)
		return 0, fmt.Errorf("snapshot of volume %q by its schedule: %w", volume, err)
	}
	m.taken(volume, s.GetName())
	return every, m.expire(ctx, volume, int(schedule.GetKeep()))
}

// expire removes what the schedule doesn't keep any more.
func (m *Manager) expire(ctx context.Context, volume string, keep int) error {
	for _, name := range expired(m.known().snapshots[volume], keep) {
		s, _ := m.snapshot(volume, name)
		if m.exports.has(s.LV) {
			continue // later
		}
		if err := m.dropSnapshot(ctx, volume, name); err != nil {
			return fmt.Errorf("remove snapshot that is kept no longer: %w", err)
		}
	}
	return nil
}

// skipped keeps one event for a row of failures.
func (m *Manager) skipped(volume string, err error) {
	if m.complaints.add(volume) > 1 {
		return
	}
	m.note(volume, "snapshot-skipped", fmt.Sprintf("snapshot by schedule: %s", plain(err)))
}

func (m *Manager) taken(volume, name string) {
	m.complaints.clear(volume)
	m.note(volume, "snapshot", fmt.Sprintf("snapshot %s by schedule", name))
}

// note keeps an event of a volume.
func (m *Manager) note(volume, kind, text string) {
	obj, err := m.opts.Store.Get(manifest.KindVolume, volume)
	if err == nil {
		err = m.opts.Store.Note(obj, kind, text)
	}
	if err != nil {
		m.log.Error("keep event", "volume", volume, "event", kind, "error", err)
	}
}
