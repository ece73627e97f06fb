package volume

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/lvm"
	"capsule/internal/store"
)

const purposeClone = "clone"

// Clone makes a new volume of a volume as it is now, for the snapshot "", or of
// one of its snapshots. The two share what neither of them changes.
func (m *Manager) Clone(ctx context.Context, volume, snapshot, name string) (*v1.Object, error) {
	obj, err := m.clone(ctx, volume, snapshot, name)
	if err != nil {
		return nil, fmt.Errorf("clone volume %q: %w", volume, err)
	}
	return obj, nil
}

func (m *Manager) clone(ctx context.Context, volume, snapshot, name string) (*v1.Object, error) {
	if err := errors.Join(manifest.CheckName(name), m.usable()); err != nil {
		return nil, err
	}
	if name == volume {
		return nil, taken(name)
	}
	unlock, err := m.lockBoth(ctx, volume, name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	r, err := m.made(volume)
	if err != nil {
		return nil, err
	}
	if err := m.vacant(name); err != nil {
		return nil, err
	}
	origin, from := r.LV, record{Size: r.Size, Fresh: r.Fresh}
	if snapshot != "" {
		s, ok := m.snapshot(volume, snapshot)
		if !ok {
			return nil, noSnapshot(volume, snapshot)
		}
		origin, from, r.Claims = s.LV, record{Size: s.Size, Fresh: s.Fresh}, nil // nobody writes to it
	}
	if err := m.takes(from.Size); err != nil {
		return nil, err
	}
	ctx, cancel := toTheEnd(ctx)
	defer cancel()
	from.LV = newLV(prefixVolume, name)
	if err := m.begin(intent{LV: from.LV, Purpose: purposeClone, Volume: name}); err != nil {
		return nil, err
	}
	err = m.frozen(ctx, r, func() error { return lvm.Clone(ctx, origin, from.LV, tagOf(name)) })
	if err != nil {
		return nil, m.undo(ctx, from.LV, err)
	}
	return m.declare(ctx, name, from)
}

// lockBoth locks two volumes, always in the same order.
func (m *Manager) lockBoth(ctx context.Context, a, b string) (unlock func(), err error) {
	first, err := m.lock(ctx, min(a, b))
	if err != nil {
		return nil, err
	}
	second, err := m.lock(ctx, max(a, b))
	if err != nil {
		first()
		return nil, err
	}
	return func() { second(); first() }, nil
}

func taken(name string) error {
	return fmt.Errorf("volume %q exists already: %w", name, errdefs.ErrAlreadyExists)
}

// vacant is an error when a volume of that name is there, or was a moment ago.
func (m *Manager) vacant(name string) error {
	_, err := m.opts.Store.Get(manifest.KindVolume, name)
	if err == nil {
		return taken(name)
	}
	if !errdefs.IsNotFound(err) {
		return err
	}
	if _, kept := m.record(name); kept {
		return fmt.Errorf("volume %q is still being removed: try again soon: %w", name, errdefs.ErrUnavailable)
	}
	return nil
}

// declare makes a volume of a logical volume that was begun and is whole: first
// its record, then its object. Cut in between, it was never acknowledged, and is
// removed. The name is locked.
func (m *Manager) declare(ctx context.Context, name string, r record) (*v1.Object, error) {
	if err := m.commit(r.LV, func(c *change) error { return c.putVolume(name, r) }); err != nil {
		return nil, m.undo(ctx, r.LV, err)
	}
	spec := &v1.VolumeSpec{Size: r.Size}
	obj := &v1.Object{
		Meta: &v1.Meta{Kind: manifest.KindVolume, Name: name},
		Kind: &v1.Object_Volume{Volume: &v1.Volume{Spec: spec}},
	}
	results, err := m.opts.Store.Apply(ctx, []*v1.Object{obj}, false, func(tx store.View, objs []*v1.Object) error {
		if tx.Old(objs[0]) != nil { // declared meanwhile, by somebody who wants an empty one
			return taken(name)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, m.remove(ctx, name))
	}
	obj = results[0].GetObject()
	if err := m.adopt(name, obj.GetMeta().GetUid()); err != nil { // the loop does it then
		m.log.Error("note whose a volume is", "volume", name, "error", err)
	}
	m.Wake(name)
	m.freed(name)
	return obj, nil
}
