package volume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/lvm"
)

// Recover reads what the store has of volumes and removes what was half-made or
// half-removed when the machine or the daemon ended. It comes before everything
// else, and before any other thin volume is made: that would finish what is half
// made. Until it succeeded, volumes can't be used; Run tries it again.
func (m *Manager) Recover(ctx context.Context) error {
	m.recovering.Lock()
	defer m.recovering.Unlock()
	if m.usable() == nil {
		return nil
	}
	s, err := readState(m.bucket)
	if err != nil {
		return fmt.Errorf("read what is kept of volumes: %w", err)
	}
	m.mu.Lock()
	m.state = s
	m.mu.Unlock()
	thin, err := lvm.List(ctx)
	if err != nil {
		return fmt.Errorf("list logical volumes: %w", err)
	}
	objs, err := m.opts.Store.List("")
	if err != nil {
		return fmt.Errorf("list objects: %w", err)
	}
	if err := m.change(func(c *change) error { return c.settle(objs) }); err != nil {
		return fmt.Errorf("settle what is kept of volumes: %w", err)
	}
	m.unmountStrays()
	thin, err = m.removeBegun(ctx, thin)
	if err != nil {
		return err
	}
	m.report(thin)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.recovered = true
	return nil
}

// settle brings records in line with the objects of the store. A record that no
// object ever had is of a clone or an import that was cut before it was
// declared, so never acknowledged: it goes. Claims of workloads that are gone go.
func (c *change) settle(objs []*v1.Object) error {
	volumes, workloads := map[string]bool{}, map[string]bool{}
	for _, obj := range objs {
		if obj.GetVolume() != nil {
			volumes[obj.GetMeta().GetName()] = true
		}
		if obj.GetWorkload() != nil {
			workloads[obj.GetMeta().GetName()] = true
		}
	}
	for name := range c.awaited {
		if !volumes[name] {
			if err := c.dropAwaited(name); err != nil {
				return err
			}
		}
	}
	for name, r := range c.volumes {
		if r.UID == "" && !volumes[name] {
			if err := c.giveUp(name); err != nil {
				return err
			}
			continue
		}
		gone := func(held claim) bool { return !workloads[held.Workload] }
		if slices.ContainsFunc(r.Claims, gone) {
			r.Claims = slices.DeleteFunc(r.Claims, gone)
			if err := c.putVolume(name, r); err != nil {
				return err
			}
		}
	}
	return nil
}

// giveUp makes a volume and its snapshots be logical volumes to remove.
func (c *change) giveUp(volume string) error {
	lvs := []string{c.volumes[volume].LV}
	for name, s := range c.snapshots[volume] {
		lvs = append(lvs, s.LV)
		if err := c.dropSnapshot(volume, name); err != nil {
			return err
		}
	}
	for _, lv := range lvs {
		if err := c.putIntent(intent{LV: lv, Purpose: purposeRemove, Volume: volume}); err != nil {
			return err
		}
	}
	return c.dropVolume(volume)
}

// unmountStrays unmounts what a daemon before this one mounted for itself or
// left on its way to the next workload.
func (m *Manager) unmountStrays() {
	all, err := mountings(m.dir)
	if err != nil {
		m.log.Error("read the mount table", "error", err)
	}
	for _, at := range slices.Backward(all) {
		if m.wantedAt(at) {
			continue
		}
		if err := unmountFS(at.dir); err != nil {
			m.log.Error("unmount what a former run left", "error", err)
		}
	}
}

// wantedAt tells whether a mount is that of a volume for the containers that
// have it.
func (m *Manager) wantedAt(at mounting) bool {
	r, ok := m.record(filepath.Base(at.dir))
	if !ok || at.dir == m.dir || !slices.ContainsFunc(r.Claims, func(c claim) bool { return !c.VM }) {
		return false
	}
	number, err := numberOf(lvm.Device(r.LV))
	return err == nil && at.device == number
}

// removeBegun removes the logical volumes of all intents and gives those that
// are left. One that can't be removed holds up everything when it is half-made,
// else only itself.
func (m *Manager) removeBegun(ctx context.Context, thin []lvm.Thin) (left []lvm.Thin, err error) {
	intents := m.known().intents
	var begun []lvm.Thin
	for _, t := range thin {
		if _, ok := intents[t.Name]; ok {
			begun = append(begun, t)
			delete(intents, t.Name)
		} else {
			left = append(left, t)
		}
	}
	gone := slices.Sorted(maps.Keys(intents)) // of these nothing was made yet, or nothing is left
	stay, errs := m.removeThin(ctx, begun)
	for _, t := range begun {
		if slices.ContainsFunc(stay, func(s lvm.Thin) bool { return s.Name == t.Name }) {
			left = append(left, t)
		} else {
			gone = append(gone, t.Name)
		}
	}
	if len(gone) > 0 {
		m.log.Info("removed what a former run had begun", "volumes", strings.Join(gone, " "))
		errs = errors.Join(errs, m.change(func(c *change) error { return c.dropIntents(gone) }))
	}
	return left, errs
}

// removeThin removes logical volumes in one go, or else one by one, and gives
// those that stay. The error is of those that are half-made.
func (m *Manager) removeThin(ctx context.Context, all []lvm.Thin) (stay []lvm.Thin, err error) {
	names := make([]string, 0, len(all))
	for _, t := range all {
		names = append(names, t.Name)
	}
	if lvm.RemoveThin(ctx, names...) == nil {
		return nil, nil
	}
	var errs []error
	for _, t := range all {
		err := lvm.RemoveThin(ctx, t.Name)
		if err == nil {
			continue
		}
		stay = append(stay, t)
		if t.Active {
			m.log.Error("remove what was begun: tried again later", "logical volume", t.Name, "error", err)
		} else {
			errs = append(errs, fmt.Errorf("remove half-made volume %s: %w", t.Name, err))
		}
	}
	return stay, errors.Join(errs...)
}

// report tells of logical volumes without record, which stay as they are, and
// of records without a logical volume.
func (m *Manager) report(thin []lvm.Thin) {
	s := m.known()
	here := map[string]bool{}
	for _, t := range thin {
		here[t.Name] = true
	}
	for name, r := range s.volumes {
		if !here[r.LV] {
			m.log.Error("a volume is lost", "volume", name, "logical volume", r.LV)
		}
		delete(here, r.LV)
	}
	for volume, all := range s.snapshots {
		for name, snap := range all {
			if !here[snap.LV] {
				m.log.Error("a snapshot is lost", "volume", volume, "snapshot", name, "logical volume", snap.LV)
			}
			delete(here, snap.LV)
		}
	}
	for lv := range s.intents {
		delete(here, lv)
	}
	for lv := range here {
		m.log.Warn("a logical volume that no volume is known to use stays untouched", "logical volume", lv)
	}
}
