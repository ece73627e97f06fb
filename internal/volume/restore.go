package volume

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/lvm"
)

const purposeRestore = "restore"

// Restore makes a volume that no workload has what a snapshot of it is. What it
// was before is kept as another snapshot, which is returned.
func (m *Manager) Restore(ctx context.Context, volume, snapshot string) (*v1.Snapshot, error) {
	kept, err := m.restore(ctx, volume, snapshot)
	if err != nil {
		return nil, fmt.Errorf("restore volume %q: %w", volume, err)
	}
	return kept, nil
}

func (m *Manager) restore(ctx context.Context, volume, name string) (*v1.Snapshot, error) {
	r, unlock, err := m.workOn(ctx, volume)
	if err != nil {
		return nil, err
	}
	defer unlock()
	s, ok := m.snapshot(volume, name)
	if !ok {
		return nil, noSnapshot(volume, name)
	}
	if len(r.Claims) > 0 {
		return nil, inUseBy(r.Claims[0].Workload)
	}
	if len(m.known().snapshots[volume]) >= snapshotsMax {
		return nil, fmt.Errorf("it has %d snapshots, and what it is now would be one more than is kept: delete some first: %w",
			snapshotsMax, errdefs.ErrResourceExhausted)
	}
	if err := m.crowded(); err != nil {
		return nil, err
	}
	if err := unmountFS(m.dirOf(volume)); err != nil { // a former run may have left it
		return nil, err
	}
	ctx, cancel := toTheEnd(ctx)
	defer cancel()
	lv := newLV(prefixVolume, volume)
	if err := m.begin(intent{LV: lv, Purpose: purposeRestore, Volume: volume}); err != nil {
		return nil, err
	}
	err = lvm.Clone(ctx, s.LV, lv, tagOf(volume))
	if err == nil && s.Size < r.Size { // it has grown since
		err = lvm.ExtendThin(ctx, lv, r.Size)
	}
	if err != nil {
		return nil, m.undo(ctx, lv, err)
	}
	used, _ := lvm.MappedBytes(r.LV) // 0 is not known
	kept, err := m.exchange(volume, lv, s, used)
	if err != nil {
		return nil, m.undo(ctx, lv, err)
	}
	m.grown.set(volume, false)
	m.trouble.set(volume, "") // that was what it has no longer
	if err := lvm.SetActive(ctx, r.LV, false); err != nil {
		m.log.Error("close what a volume was before", "logical volume", r.LV, "error", err)
	}
	m.note(volume, "restored", fmt.Sprintf("restored to snapshot %s; what it was before is snapshot %s", name, kept.GetName()))
	m.Wake(volume)
	m.freed(volume)
	return kept, nil
}

func inUseBy(workload string) error {
	return fmt.Errorf("workload %q has it: stop that first with capsulectl workload stop %s: %w", workload, workload, errdefs.ErrFailedPrecondition)
}

// exchange makes the logical volume lv the volume, and what was it a snapshot, in
// one step.
func (m *Manager) exchange(volume, lv string, from snapshot, used int64) (*v1.Snapshot, error) {
	now := time.Now().UTC()
	var kept *v1.Snapshot
	err := m.commit(lv, func(c *change) error {
		r, ok := c.volumes[volume]
		if !ok {
			return fmt.Errorf("it is gone: %w", errdefs.ErrNotFound)
		}
		if len(r.Claims) > 0 { // just now
			return inUseBy(r.Claims[0].Workload)
		}
		before := snapshot{LV: r.LV, CreatedAt: now, Size: r.Size, Fresh: r.Fresh, Used: used, Seq: c.nextSeq(volume)}
		name := unused(c.snapshots[volume], stamped("before-restore", now))
		kept = before.message(volume, name)
		r.LV, r.Fresh = lv, from.Fresh
		if err := c.putSnapshot(volume, name, before); err != nil {
			return err
		}
		return c.putVolume(volume, r)
	})
	return kept, err
}
