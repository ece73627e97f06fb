package volume

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/await"
	"capsule/internal/lvm"
)

const (
	recoverAgain    = time.Second // after the first failure, then ever longer
	recoverAgainMax = time.Minute
	watchAgain      = time.Second            // until a lost watch is taken up again
	busyAgain       = 500 * time.Millisecond // between two looks at a device that is held
	crowdedAgain    = 10 * time.Second       // between two looks at a pool that is too full
	// usedSteps is how finely the use of a volume is kept: more would be a write
	// to the disk for each look at it.
	usedSteps = 64
)

// Run works until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	for again := recoverAgain; ; again = min(2*again, recoverAgainMax) {
		err := m.Recover(ctx)
		if err == nil {
			break
		}
		m.log.Error("recover volumes", "error", err)
		if err := await.Pause(ctx, again); err != nil {
			return nil //nolint:nilerr // the end that was asked for
		}
	}
	var side sync.WaitGroup
	defer side.Wait()
	side.Go(func() { m.watch(ctx) })
	side.Go(func() { m.watchPool(ctx) })
	side.Go(func() { m.schedules.Run(ctx) })
	m.queue.Run(ctx)
	return nil
}

// keys are all volumes that are declared or kept.
func (m *Manager) keys(context.Context) []string {
	names := map[string]bool{}
	objs, err := m.opts.Store.List(manifest.KindVolume)
	if err != nil {
		m.log.Error("list volumes", "error", err)
	}
	for _, obj := range objs {
		names[obj.GetMeta().GetName()] = true
	}
	s := m.known()
	for name := range s.volumes {
		names[name] = true
	}
	for _, i := range s.intents {
		names[i.Volume] = true
	}
	keys := make([]string, 0, len(names))
	for name := range names {
		keys = append(keys, name)
	}
	return keys
}

// watch wakes volumes whose declaration changed.
func (m *Manager) watch(ctx context.Context) {
	seen := map[string]uint64{} // generation by uid
	for ctx.Err() == nil {
		changes, err := m.opts.Store.Watch(ctx, manifest.KindVolume, "")
		if err != nil {
			m.log.Error("watch volumes", "error", err)
			return // the full pass goes on
		}
		for c := range changes {
			meta := c.Object.GetMeta()
			switch {
			case c.Object.GetVolume() == nil:
			case c.Deleted:
				delete(seen, meta.GetUid())
				m.Wake(meta.GetName())
				m.freed(meta.GetName()) // its workloads may say why they wait
			case seen[meta.GetUid()] != meta.GetGeneration():
				seen[meta.GetUid()] = meta.GetGeneration()
				m.Wake(meta.GetName())
			}
		}
		_ = await.Pause(ctx, watchAgain)
	}
}

// reconcile brings one volume closer to what is declared. Workloads are told
// afterwards: they may be waiting for the volume's lock.
func (m *Manager) reconcile(ctx context.Context, name string) (time.Duration, error) {
	again, err := m.once(ctx, name)
	if err != nil {
		return again, err
	}
	r, ok := m.record(name)
	if !ok {
		return again, nil
	}
	if !m.grown.get(name) {
		err = m.growGuests(ctx, name, r)
	}
	return again, errors.Join(err, m.holdBroken(ctx, name, r))
}

// once does what is to be done to one volume, and shows where it stands.
func (m *Manager) once(ctx context.Context, name string) (time.Duration, error) {
	unlock, err := m.lock(ctx, name)
	if err != nil {
		return 0, nil //nolint:nilerr // the end that was asked for
	}
	defer unlock()
	swept := m.sweep(ctx, name)
	if swept != nil {
		swept = fmt.Errorf("remove what is left of volume %q: %w", name, swept)
	}
	again, err := m.look(ctx, name, swept)
	return again, errors.Join(err, swept)
}

// look decides what is to be done. swept is what kept leftovers from being
// removed: only the end of a volume has to wait for that.
func (m *Manager) look(ctx context.Context, name string, swept error) (time.Duration, error) {
	obj, err := m.opts.Store.Get(manifest.KindVolume, name)
	if errdefs.IsNotFound(err) {
		return 0, m.orphan(ctx, name)
	}
	if err != nil {
		return 0, err
	}
	r, made := m.record(name)
	if obj.Meta.DeletedAt != nil || made && r.UID != "" && r.UID != obj.Meta.Uid {
		return m.leave(ctx, obj, r, made, swept)
	}
	if made && r.UID == "" {
		if err := m.adopt(name, obj.Meta.Uid); err != nil {
			return 0, err
		}
	}
	now, err := m.converge(ctx, obj, r, made)
	if err != nil {
		now.message, now.failed = plain(err), true
	}
	return now.again, errors.Join(err, m.show(obj, now))
}

// stand is where a volume is after a step.
type stand struct {
	message string        // for the operator; may be empty
	failed  bool          // it can't be made, or its data is lost
	again   time.Duration // until it is looked at again; 0 is when something happens
}

// converge makes and grows a volume.
func (m *Manager) converge(ctx context.Context, obj *v1.Object, r record, made bool) (stand, error) {
	name, size := obj.Meta.Name, lvm.RoundUp(obj.GetVolume().GetSpec().GetSize())
	if !made && m.isAwaited(name) {
		return stand{message: waitsForData}, nil
	}
	if !made {
		if err := m.crowded(); err != nil {
			return stand{message: plain(err), failed: true, again: crowdedAgain}, nil
		}
		if err := m.create(ctx, obj); err != nil {
			return stand{}, fmt.Errorf("create volume %q: %w", name, err)
		}
		m.freed(name)
		return stand{}, nil
	}
	if err := m.appear(ctx, r.LV); err != nil {
		if errdefs.IsNotFound(err) {
			return stand{message: "lost: " + plain(err), failed: true}, nil
		}
		return stand{}, fmt.Errorf("activate volume %q: %w", name, err)
	}
	if size > r.Size {
		if err := m.crowded(); err != nil {
			return stand{message: "waits to grow: " + plain(err), again: crowdedAgain}, nil
		}
		if err := m.extend(ctx, name, r, size); err != nil {
			return stand{}, fmt.Errorf("grow volume %q: %w", name, err)
		}
	}
	if !m.grown.get(name) {
		if err := m.fillDevice(name, r); err != nil {
			return stand{}, fmt.Errorf("grow volume %q: %w", name, err)
		}
	}
	return stand{again: m.giveBack(name, r.LV)}, nil
}

// giveBack tells waiting workloads once the kernel has let go of a device.
func (m *Manager) giveBack(name, lv string) time.Duration {
	if !m.busy.get(name) {
		return 0
	}
	if inUse(lvm.Device(lv)) {
		return busyAgain
	}
	m.busy.set(name, false)
	m.freed(name)
	return 0
}

// leave removes a volume that is being deleted, or that was deleted and is
// declared anew, once no workload has it.
func (m *Manager) leave(ctx context.Context, obj *v1.Object, r record, made bool, swept error) (time.Duration, error) {
	name := obj.Meta.Name
	if len(r.Claims) > 0 {
		return 0, m.show(obj, stand{message: fmt.Sprintf("waits for workload %q, which holds it", r.Claims[0].Workload)})
	}
	if made {
		if err := m.show(obj, stand{}); err != nil {
			return 0, err
		}
		if err := m.remove(ctx, name); err != nil {
			return 0, errors.Join(fmt.Errorf("delete volume %q: %w", name, err), m.show(obj, stand{message: plain(err)}))
		}
	}
	if obj.Meta.DeletedAt == nil {
		return time.Millisecond, nil // the new one is next
	}
	if m.isAwaited(name) { // its data is given up
		if err := m.change(func(c *change) error { return c.dropAwaited(name) }); err != nil {
			return 0, err
		}
	}
	if swept != nil {
		return 0, m.show(obj, stand{message: plain(swept)})
	}
	return 0, m.opts.Store.Remove(obj.Meta.Uid)
}

// orphan looks at what is kept of a volume that no object declares: a clone or an
// import that could not be declared goes, all else stays for a person to see.
func (m *Manager) orphan(ctx context.Context, name string) error {
	r, made := m.record(name)
	switch {
	case !made:
	case r.UID == "" && len(r.Claims) == 0:
		return m.remove(ctx, name)
	default:
		m.log.Error("a volume is kept that is not declared", "volume", name, "logical volume", r.LV)
	}
	return nil
}

// holdBroken stops the workloads of a volume that an error made read-only: they
// get it back checked.
func (m *Manager) holdBroken(ctx context.Context, name string, r record) error {
	broken, err := m.brokenHere(name, r)
	if err != nil || !broken {
		return err
	}
	guests := m.running()
	if guests == nil {
		return nil
	}
	var errs []error
	for _, c := range r.Claims {
		if c.VM {
			continue
		}
		reason := fmt.Sprintf("volume %q became read-only after an error; it is checked before the next start", name)
		if err := guests.Hold(ctx, c.Workload, reason); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("stop workload %q of volume %q: %w", c.Workload, name, err))
		}
	}
	return errors.Join(errs...)
}

// show writes the status of a volume.
func (m *Manager) show(obj *v1.Object, now stand) error {
	r, made := m.record(obj.Meta.Name)
	snaps := m.snapshotsOf(obj.Meta.Name)
	status := &v1.VolumeStatus{
		Generation: obj.Meta.Generation, Size: r.Size, Snapshots: uint32(len(snaps)),
	}
	for _, snap := range snaps {
		if at := timestamppb.New(snap.CreatedAt); status.LastSnapshotAt == nil || at.AsTime().After(status.LastSnapshotAt.AsTime()) {
			status.LastSnapshotAt = at
		}
	}
	if made {
		status.Holders = m.Holders(obj.Meta.Name)
		status.Used, _ = lvm.MappedBytes(r.LV) // 0 while that is not known
	}
	status.Phase, status.Message = m.phase(obj, r, made, now)
	old := obj.GetVolume().GetStatus()
	steady(status, old)
	if status.Phase == v1.VolumePhase_VOLUME_PHASE_FAILED && (old.GetPhase() != status.Phase || old.GetMessage() != status.Message) {
		if err := m.opts.Store.Note(obj, "failed", status.Message); err != nil {
			return err
		}
	}
	return m.opts.Store.PutVolumeStatus(obj.Meta.Uid, status)
}

// steady leaves the use of a volume as it was shown while nothing else is news
// and it is nearly the same: each change is a write to the disk.
func steady(status, old *v1.VolumeStatus) {
	used, step := status.Used, status.Size/usedSteps
	if diff := used - old.GetUsed(); diff > step || -diff > step {
		return
	}
	status.Used = old.GetUsed()
	if !proto.Equal(status, old) {
		status.Used = used
	}
}

// phase is where a volume stands, in a word and a sentence.
func (m *Manager) phase(obj *v1.Object, r record, made bool, now stand) (v1.VolumePhase, string) {
	broken, _ := m.brokenHere(obj.Meta.Name, r) // not known: the next look tells
	trouble := m.trouble.get(obj.Meta.Name)
	switch {
	case obj.Meta.DeletedAt != nil:
		return v1.VolumePhase_VOLUME_PHASE_DELETING, now.message
	case made && r.UID != "" && r.UID != obj.Meta.Uid:
		return v1.VolumePhase_VOLUME_PHASE_PENDING, now.message
	case now.failed:
		return v1.VolumePhase_VOLUME_PHASE_FAILED, now.message
	case broken:
		return v1.VolumePhase_VOLUME_PHASE_FAILED, "it became read-only after an error; it is checked before its next mount"
	case trouble != "":
		return v1.VolumePhase_VOLUME_PHASE_FAILED, trouble
	case !made:
		return v1.VolumePhase_VOLUME_PHASE_PENDING, now.message
	case len(r.Claims) > 0:
		return v1.VolumePhase_VOLUME_PHASE_IN_USE, now.message
	}
	return v1.VolumePhase_VOLUME_PHASE_READY, now.message
}
