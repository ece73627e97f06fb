package volume

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/ext4"
	"capsule/internal/lvm"
)

// Purposes of intents.
const (
	purposeCreate = "create"
	purposeRemove = "remove"
)

// Prefixes of logical volumes.
const (
	prefixVolume   = "vol"
	prefixSnapshot = "snap"
)

// tagOf marks a logical volume for people with other tools; nothing reads it.
func tagOf(volume string) string { return "capsule.volume=" + volume }

// create makes the logical volume and the file system of a volume that is
// declared. Nothing but this ever formats for it.
func (m *Manager) create(ctx context.Context, obj *v1.Object) error {
	name, size := obj.Meta.Name, lvm.RoundUp(obj.GetVolume().GetSpec().GetSize())
	lv := newLV(prefixVolume, name)
	if err := m.begin(intent{LV: lv, Purpose: purposeCreate, Volume: name}); err != nil {
		return err
	}
	err := lvm.CreateThin(ctx, lv, size, tagOf(name))
	if err == nil {
		err = ext4.Format(ctx, lvm.Device(lv))
	}
	if err == nil {
		err = m.commit(lv, func(c *change) error {
			return c.putVolume(name, record{UID: obj.Meta.Uid, LV: lv, Size: size, Fresh: true})
		})
	}
	if err != nil {
		return m.undo(ctx, lv, err)
	}
	return nil
}

// adopt notes which object declares a volume that was whole before it was
// declared.
func (m *Manager) adopt(name, uid string) error {
	return m.change(func(c *change) error {
		r := c.volumes[name]
		r.UID = uid
		return c.putVolume(name, r)
	})
}

// extend makes the logical volume as large as declared. The file system follows
// where it is mounted.
func (m *Manager) extend(ctx context.Context, name string, r record, size int64) error {
	if err := lvm.ExtendThin(ctx, r.LV, size); err != nil {
		return err
	}
	m.grown.set(name, false)
	return m.change(func(c *change) error {
		r, ok := c.volumes[name]
		if !ok {
			return nil
		}
		r.Size = size
		return c.putVolume(name, r)
	})
}

// remove removes a volume that nobody has, with its snapshots. Once that is
// written down there is no way back.
func (m *Manager) remove(ctx context.Context, name string) error {
	if err := unmountFS(m.dirOf(name)); err != nil {
		return err
	}
	err := m.change(func(c *change) error {
		if r := c.volumes[name]; len(r.Claims) > 0 { // claimed just now
			return fmt.Errorf("workload %q has it: %w", r.Claims[0].Workload, errdefs.ErrFailedPrecondition)
		}
		return c.giveUp(name)
	})
	if err != nil {
		return err
	}
	m.trouble.set(name, "")
	m.grown.set(name, false)
	return m.sweep(ctx, name)
}

// sweep removes the logical volumes of a volume that nothing refers to any more:
// removal is written down, or making them failed.
func (m *Manager) sweep(ctx context.Context, name string) error {
	lvs := m.leftovers(name)
	if len(lvs) == 0 {
		return nil
	}
	for _, lv := range lvs {
		if err := unmountFS(m.dirOf(lv)); err != nil {
			return err
		}
	}
	if err := lvm.RemoveThin(ctx, lvs...); err != nil {
		return err
	}
	return m.change(func(c *change) error { return c.dropIntents(lvs) })
}

// fillDevice makes the file system of a volume fill its device where the
// capsule has it mounted, and tells whether that is the case.
func (m *Manager) fillDevice(name string, r record) error {
	at, mounted, err := mountedAt(m.dirOf(name))
	if err != nil || !mounted || at.failed(r.LV) {
		return err
	}
	if _, err := ext4.Grow(at.dir); err != nil {
		return err
	}
	m.grown.set(name, true)
	return nil
}

// growGuests has microVMs use all of a volume. One that does not run yet does so
// when it starts.
func (m *Manager) growGuests(ctx context.Context, name string, r record) error {
	guests := m.running()
	if guests == nil {
		return nil
	}
	var errs []error
	for _, c := range r.Claims {
		if !c.VM {
			continue
		}
		err := guests.Grown(ctx, c.Workload, name, r.Size)
		switch {
		case err == nil:
			m.grown.set(name, true)
		case errdefs.IsNotFound(err), errdefs.IsFailedPrecondition(err), errdefs.IsUnavailable(err):
		default:
			errs = append(errs, fmt.Errorf("grow volume %q in workload %q: %w", name, c.Workload, err))
		}
	}
	return errors.Join(errs...)
}
