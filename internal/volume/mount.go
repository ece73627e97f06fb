package volume

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/ext4"
	"capsule/internal/image"
	"capsule/internal/lvm"
)

// Mount gives a workload the volumes of its mounts, as Claim does, and makes
// them ready: checked, grown and, at the first mount, filled. What is mounted
// already stays. A *HeldError says what the workload has to wait for.
func (m *Manager) Mount(ctx context.Context, c Claimant, mounts []*v1.Mount, img image.Image) ([]Mounted, error) {
	if err := m.Claim(ctx, c, mounts); err != nil {
		return nil, err
	}
	sources := map[string]string{}
	var all []Mounted
	for _, mount := range mounts {
		volume := mount.GetVolume()
		source, done := sources[volume]
		if !done {
			own := slices.DeleteFunc(slices.Clone(mounts), func(o *v1.Mount) bool { return o.GetVolume() != volume })
			var err error
			if source, err = m.ready(ctx, c, volume, filling{mounts: own, img: img}); err != nil {
				return nil, err
			}
			sources[volume] = source
		}
		one := Mounted{Volume: volume, Source: source, Path: mount.GetPath(), ReadOnly: mount.GetReadOnly()}
		if c.VM {
			one.Folder = dataDir
		}
		all = append(all, one)
	}
	return all, nil
}

// ready makes one volume ready for a workload that has claimed it, and gives the
// source of its mounts.
func (m *Manager) ready(ctx context.Context, c Claimant, volume string, f filling) (source string, err error) {
	unlock, err := m.lock(ctx, volume)
	if err != nil {
		return "", err
	}
	defer unlock()
	r, ok := m.record(volume)
	if !ok { // deleted since it was claimed
		return "", &HeldError{Volume: volume, Reason: reasonMissing}
	}
	mounted, err := m.open(ctx, c, volume, r)
	if err != nil {
		return "", m.held(volume, err)
	}
	if mounted {
		if err := m.fill(ctx, volume, r, f); err != nil {
			return "", m.unfilled(volume, err)
		}
	}
	source = filepath.Join(m.dirOf(volume), dataDir)
	if c.VM {
		source = lvm.Device(r.LV)
		if err := unmountFS(m.dirOf(volume)); err != nil {
			return "", m.held(volume, err)
		}
	}
	m.trouble.set(volume, "")
	return source, nil
}

// open checks a volume and mounts it, but for one that a microVM takes as it is.
func (m *Manager) open(ctx context.Context, c Claimant, volume string, r record) (mounted bool, err error) {
	if err := m.appear(ctx, r.LV); err != nil {
		return false, err
	}
	if !c.VM {
		sound, err := m.soundlyMounted(m.dirOf(volume), r.LV)
		if sound || err != nil {
			return sound, err
		}
		return true, m.mountSound(ctx, volume, r.LV)
	}
	if err := unmountFS(m.dirOf(volume)); err != nil {
		return false, err
	}
	device := lvm.Device(r.LV)
	if err := ext4.Check(ctx, device); err != nil {
		return false, err
	}
	super, err := ext4.ReadSuper(device)
	if err != nil || !r.Fresh && super.SizeBytes >= r.Size {
		return false, err
	}
	return true, m.mountSound(ctx, volume, r.LV)
}

// soundlyMounted tells whether the logical volume is mounted at dir already, as
// it is when the daemon was started again. After an error of the file system it
// is not: then a check has to come first.
func (m *Manager) soundlyMounted(dir, lv string) (bool, error) {
	at, mounted, err := mountedAt(dir)
	if err != nil || !mounted {
		return false, err
	}
	number, err := numberOf(lvm.Device(lv))
	return err == nil && at.device == number && !at.failed(lv), err
}

// failed tells whether an error ended the writes to a file system. Not every
// Linux shows that in the mount table; all note it in the superblock, which a
// check clears.
func (at mounting) failed(lv string) bool {
	super, err := ext4.ReadSuper(lvm.Device(lv))
	return at.readOnly || err == nil && super.Errors || errdefs.IsDataLoss(err)
}

// brokenHere tells whether a volume that the capsule has mounted failed.
func (m *Manager) brokenHere(volume string, r record) (bool, error) {
	at, mounted, err := mountedAt(m.dirOf(volume))
	return err == nil && mounted && at.failed(r.LV), err
}

// mountSound checks a file system, mounts it at the volume's folder in place of
// what is there, and makes it fill its device.
func (m *Manager) mountSound(ctx context.Context, volume, lv string) error {
	dir := m.dirOf(volume)
	if err := unmountFS(dir); err != nil {
		return err
	}
	if err := ext4.Check(ctx, lvm.Device(lv)); err != nil {
		return err
	}
	if err := mountFS(lvm.Device(lv), dir, false); err != nil {
		return err
	}
	if _, err := ext4.Grow(dir); err != nil { // it holds what it holds: no reason to keep a workload down
		m.log.Error("grow volume", "volume", volume, "error", err)
		return nil
	}
	m.grown.set(volume, true)
	return nil
}

// appear makes the device of a logical volume be there. One that is gone is
// never made again.
func (m *Manager) appear(ctx context.Context, lv string) error {
	if _, err := numberOf(lvm.Device(lv)); err == nil {
		return nil
	}
	all, err := lvm.List(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(all, func(t lvm.Thin) bool { return t.Name == lv }) {
		return fmt.Errorf("its logical volume %s is missing: %w", lv, errdefs.ErrNotFound)
	}
	return lvm.SetActive(ctx, lv, true)
}

// held turns what keeps a volume from being mounted into what the workload waits
// for. Other errors may be gone at the next try.
func (m *Manager) held(volume string, err error) error {
	var reason string
	switch {
	case errdefs.IsDataLoss(err):
		reason = "which is damaged: " + plain(err)
	case errdefs.IsNotFound(err):
		reason = "which is lost: " + plain(err)
	case errdefs.IsUnavailable(err):
		m.busy.set(volume, true)
		m.Wake(volume)
		return &HeldError{Volume: volume, Reason: reasonBusy}
	default:
		return fmt.Errorf("mount volume %q: %w", volume, err)
	}
	m.trouble.set(volume, strings.TrimPrefix(reason, "which is "))
	m.Wake(volume)
	return &HeldError{Volume: volume, Reason: reason + "; " + fmt.Sprintf(nextStep, volume, volume)}
}

// unfilled says why the first mount of a volume did not succeed.
func (m *Manager) unfilled(volume string, err error) error {
	if errors.Is(err, errNoData) {
		return m.held(volume, err)
	}
	if err := unmountFS(m.dirOf(volume)); err != nil {
		m.log.Error("unmount volume", "volume", volume, "error", err) // the next try or the release does it
	}
	if errors.Is(err, errNoSpace) {
		return &HeldError{Volume: volume, Reason: fmt.Sprintf(reasonNoSpace, plain(err))}
	}
	return fmt.Errorf("fill volume %q: %w", volume, err)
}

// Release takes a workload's volumes away, but for those in keep, and unmounts
// what nobody has any more. The workload must not run.
func (m *Manager) Release(ctx context.Context, workload string, keep []string) error {
	if err := m.usable(); err != nil {
		return err
	}
	var errs []error
	for volume, r := range m.known().volumes {
		if slices.Contains(keep, volume) || !r.has(workload) {
			continue
		}
		if err := m.release(ctx, volume, workload); err != nil {
			errs = append(errs, fmt.Errorf("release volume %q: %w", volume, err))
			continue
		}
		m.freed(volume)
		m.Wake(volume)
	}
	return errors.Join(errs...)
}

// release unmounts, then forgets the claim: cut in between, it is released again.
func (m *Manager) release(ctx context.Context, volume, workload string) error {
	unlock, err := m.lock(ctx, volume)
	if err != nil {
		return err
	}
	defer unlock()
	r, ok := m.record(volume)
	if !ok || !r.has(workload) {
		return nil
	}
	if len(without(r.Claims, workload)) == 0 {
		if err := unmountFS(m.dirOf(volume)); err != nil {
			return err
		}
	}
	return m.change(func(c *change) error {
		r, ok := c.volumes[volume]
		if !ok {
			return nil
		}
		r.Claims = without(r.Claims, workload)
		return c.putVolume(volume, r)
	})
}

func (r record) has(workload string) bool {
	return slices.ContainsFunc(r.Claims, func(c claim) bool { return c.Workload == workload })
}
