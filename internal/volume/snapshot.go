package volume

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/timestamppb"

	"capsule/api/manifest"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/lvm"
)

const (
	purposeSnapshot = "snapshot"

	// snapshotsMax bounds the snapshots of one volume.
	snapshotsMax = 256

	// freezeMax is how long the writers of a volume are held at most.
	freezeMax = 30 * time.Second

	// stepMax bounds what goes on although nobody waits for it any more: a
	// command of lvm that is killed leaves a half-made volume.
	stepMax = 10 * time.Minute
)

// toTheEnd is ctx for a step that is done to its end.
func toTheEnd(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), stepMax)
}

// stamped is a name that says when: "at-20060102-150405", in UTC.
func stamped(prefix string, t time.Time) string {
	return prefix + "-" + t.UTC().Format("20060102-150405")
}

// unused is name, or name with the first number from 2 on that snaps has not.
func unused(snaps map[string]snapshot, name string) string {
	free := name
	for i := 2; ; i++ {
		if _, taken := snaps[free]; !taken {
			return free
		}
		free = fmt.Sprintf("%s-%d", name, i)
	}
}

// Snapshot keeps a volume as it is now; "" makes a name of the time. Its writers
// are held meanwhile, so that what is kept needs no repair.
func (m *Manager) Snapshot(ctx context.Context, volume, name string) (*v1.Snapshot, error) {
	if name != "" {
		if err := manifest.CheckName(name); err != nil {
			return nil, err
		}
	}
	s, err := m.takeSnapshot(ctx, volume, name, false)
	if err != nil {
		return nil, fmt.Errorf("snapshot of volume %q: %w", volume, err)
	}
	m.note(volume, "snapshot", fmt.Sprintf("snapshot %s", s.GetName()))
	return s, nil
}

func (m *Manager) takeSnapshot(ctx context.Context, volume, name string, scheduled bool) (*v1.Snapshot, error) {
	r, unlock, err := m.workOn(ctx, volume)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := m.crowded(); err != nil {
		return nil, err
	}
	snaps := m.known().snapshots[volume]
	if _, taken := snaps[name]; taken {
		return nil, fmt.Errorf("it has a snapshot %q already: %w", name, errdefs.ErrAlreadyExists)
	}
	if len(snaps) >= snapshotsMax {
		return nil, fmt.Errorf("it has %d snapshots, of at most %d: delete some first: %w", len(snaps), snapshotsMax, errdefs.ErrResourceExhausted)
	}
	if name == "" {
		prefix := "at"
		if scheduled {
			prefix = "auto"
		}
		name = unused(snaps, stamped(prefix, time.Now()))
	}
	s, err := m.makeSnapshot(ctx, volume, name, r, scheduled)
	if err != nil {
		return nil, err
	}
	m.Wake(volume) // its status counts them
	return s.message(volume, name), nil
}

// makeSnapshot makes the logical volume and the record; the volume is locked.
func (m *Manager) makeSnapshot(ctx context.Context, volume, name string, r record, scheduled bool) (snapshot, error) {
	ctx, cancel := toTheEnd(ctx)
	defer cancel()
	lv := newLV(prefixSnapshot, volume)
	if err := m.begin(intent{LV: lv, Purpose: purposeSnapshot, Volume: volume}); err != nil {
		return snapshot{}, err
	}
	s := snapshot{LV: lv, CreatedAt: time.Now().UTC(), Size: r.Size, Fresh: r.Fresh, Scheduled: scheduled}
	s.Used, _ = lvm.MappedBytes(r.LV) // 0 is not known
	err := m.frozen(ctx, r, func() error { return lvm.Snapshot(ctx, r.LV, lv, tagOf(volume)) })
	if err == nil {
		err = m.commit(lv, func(c *change) error {
			s.Seq = c.nextSeq(volume)
			if scheduled {
				r := c.volumes[volume]
				r.Scheduled = s.CreatedAt
				if err := c.putVolume(volume, r); err != nil {
					return err
				}
			}
			return c.putSnapshot(volume, name, s)
		})
	}
	if err != nil {
		return snapshot{}, m.undo(ctx, lv, err)
	}
	return s, nil
}

// nextSeq is the place in the order of a volume's snapshots that comes next.
func (s *state) nextSeq(volume string) uint64 {
	var last uint64
	for _, snap := range s.snapshots[volume] {
		last = max(last, snap.Seq)
	}
	return last + 1
}

// workOn locks a volume that is there to work with, and gives its record.
func (m *Manager) workOn(ctx context.Context, volume string) (r record, unlock func(), err error) {
	if err := m.usable(); err != nil {
		return record{}, nil, err
	}
	unlock, err = m.lock(ctx, volume)
	if err != nil {
		return record{}, nil, err
	}
	if r, err = m.made(volume); err != nil {
		unlock()
		return record{}, nil, err
	}
	return r, unlock, nil
}

// made is the record of a volume that is there to work with.
func (m *Manager) made(volume string) (record, error) {
	obj, err := m.opts.Store.Get(manifest.KindVolume, volume)
	if err != nil {
		return record{}, err
	}
	if obj.GetMeta().GetDeletedAt() != nil {
		return record{}, fmt.Errorf("it is being deleted: %w", errdefs.ErrFailedPrecondition)
	}
	r, ok := m.record(volume)
	if !ok || r.UID != "" && r.UID != obj.GetMeta().GetUid() {
		return record{}, fmt.Errorf("it is not made yet: %w", errdefs.ErrUnavailable)
	}
	return r, nil
}

// frozen does what takes the content of a volume at one moment. A kernel of its
// own that has the volume is made to write out and hold still; for what the
// capsule has mounted itself, device mapper does that.
func (m *Manager) frozen(ctx context.Context, r record, take func() error) error {
	i := slices.IndexFunc(r.Claims, func(c claim) bool { return c.VM })
	if i < 0 {
		return take()
	}
	workload, guests := r.Claims[i].Workload, m.running()
	if guests == nil {
		return fmt.Errorf("workload %q, which has it, can't be held yet: %w", workload, errdefs.ErrUnavailable)
	}
	start := time.Now()
	thaw, err := guests.Freeze(ctx, workload, freezeMax)
	if err != nil {
		return fmt.Errorf("hold the writes of workload %q: %w", workload, err)
	}
	err = take()
	late := time.Since(start) >= freezeMax // it went on by itself then
	thaw()
	if err == nil && late {
		return fmt.Errorf("it took longer than %s, for which workload %q holds its writes: try again when the capsule is less busy: %w",
			freezeMax, workload, errdefs.ErrUnavailable)
	}
	return err
}

// message is the snapshot for an operator.
func (s snapshot) message(volume, name string) *v1.Snapshot {
	return &v1.Snapshot{
		Volume: volume, Name: name, CreatedAt: timestamppb.New(s.CreatedAt),
		Size: s.Size, Used: s.Used, Scheduled: s.Scheduled,
	}
}

// Snapshots lists the snapshots of a volume, or of all for "", oldest first.
func (m *Manager) Snapshots(volume string) ([]*v1.Snapshot, error) {
	if err := m.usable(); err != nil {
		return nil, err
	}
	if volume != "" {
		if _, err := m.opts.Store.Get(manifest.KindVolume, volume); err != nil {
			return nil, err
		}
	}
	var all []*v1.Snapshot
	for of, snaps := range m.known().snapshots {
		if volume != "" && of != volume {
			continue
		}
		for _, name := range ordered(snaps) {
			all = append(all, snaps[name].message(of, name))
		}
	}
	slices.SortStableFunc(all, func(a, b *v1.Snapshot) int { return cmp.Compare(a.Volume, b.Volume) })
	return all, nil
}

// ordered are the names of a volume's snapshots as they were made, whatever the
// clock said then.
func ordered(snaps map[string]snapshot) []string {
	names := make([]string, 0, len(snaps))
	for name := range snaps {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(snaps[a].Seq, snaps[b].Seq), cmp.Compare(a, b))
	})
	return names
}

// DeleteSnapshot removes a snapshot for good.
func (m *Manager) DeleteSnapshot(ctx context.Context, volume, name string) error {
	err := m.dropSnapshot(ctx, volume, name)
	if err == nil {
		m.note(volume, "snapshot-deleted", fmt.Sprintf("snapshot %s deleted", name))
	}
	return err
}

func (m *Manager) dropSnapshot(ctx context.Context, volume, name string) error {
	if err := m.usable(); err != nil {
		return err
	}
	unlock, err := m.lock(ctx, volume)
	if err != nil {
		return err
	}
	defer unlock()
	s, ok := m.snapshot(volume, name)
	if !ok {
		return noSnapshot(volume, name)
	}
	if m.exports.has(s.LV) {
		return fmt.Errorf("snapshot %q of volume %q is being exported: wait for the end of that: %w", name, volume, errdefs.ErrFailedPrecondition)
	}
	ctx, cancel := toTheEnd(ctx)
	defer cancel()
	err = m.change(func(c *change) error {
		if err := c.putIntent(intent{LV: s.LV, Purpose: purposeRemove, Volume: volume}); err != nil {
			return err
		}
		return c.dropSnapshot(volume, name)
	})
	if err != nil {
		return err
	}
	m.Wake(volume)
	if err := m.sweep(ctx, volume); err != nil { // the loop goes on with it
		return fmt.Errorf("delete snapshot %q of volume %q: %w", name, volume, err)
	}
	return nil
}

func noSnapshot(volume, name string) error {
	return fmt.Errorf("volume %q has no snapshot %q: %w", volume, name, errdefs.ErrNotFound)
}
