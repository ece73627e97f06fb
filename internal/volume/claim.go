package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

// blocker is the workload because of which another can't have a volume; "" when
// it can. Several have it only when all are containers and all share it. What
// the workload itself had before does not stand in its way.
func blocker(claims []claim, want claim) string {
	for _, have := range claims {
		if have.Workload == want.Workload {
			continue
		}
		if have.VM || want.VM || !have.Shared || !want.Shared {
			return have.Workload
		}
	}
	return ""
}

// with is claims with that of want's workload replaced by want.
func with(claims []claim, want claim) []claim {
	return append(without(claims, want.Workload), want)
}

// without is claims but those of a workload.
func without(claims []claim, workload string) []claim {
	return slices.DeleteFunc(slices.Clone(claims), func(c claim) bool { return c.Workload == workload })
}

// wanted are the claims of a workload by volume. A volume that is mounted at
// several paths is shared when each of them says so.
func wanted(c Claimant, mounts []*v1.Mount) map[string]claim {
	want := map[string]claim{}
	for _, mount := range mounts {
		shared := mount.GetShared() && !c.VM
		if before, ok := want[mount.GetVolume()]; ok {
			shared = shared && before.Shared
		}
		want[mount.GetVolume()] = claim{Workload: c.Workload, VM: c.VM, Shared: shared}
	}
	return want
}

// Claim gives a workload the volumes of its mounts, all or none. It mounts
// nothing. A *HeldError says what it has to wait for.
func (m *Manager) Claim(ctx context.Context, c Claimant, mounts []*v1.Mount) error {
	if err := m.usable(); err != nil {
		return err
	}
	want := wanted(c, mounts)
	for volume := range want {
		if err := m.exists(volume); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if m.claimed(want) {
		return nil
	}
	var before map[string]record
	err := m.change(func(ch *change) error {
		before = ch.state.clone().volumes
		return ch.claim(want)
	})
	if err != nil {
		return err
	}
	for volume := range want {
		if err := m.exists(volume); err != nil { // its deletion came first
			return errors.Join(err, m.unclaim(c.Workload, want, before))
		}
		m.Wake(volume) // its status names who has it
	}
	return nil
}

// claim gives a workload all that it wants, or nothing.
func (c *change) claim(want map[string]claim) error {
	for volume, w := range want {
		r, ok := c.volumes[volume]
		if !ok {
			return &HeldError{Volume: volume, Reason: reasonUnmade}
		}
		if holder := blocker(r.Claims, w); holder != "" {
			return &HeldError{Volume: volume, Holder: holder}
		}
		r.Claims = with(r.Claims, w)
		if err := c.putVolume(volume, r); err != nil {
			return err
		}
	}
	return nil
}

// unclaim takes back what a workload has claimed just now, but not what it had
// before.
func (m *Manager) unclaim(workload string, volumes map[string]claim, before map[string]record) error {
	err := m.change(func(c *change) error {
		for volume := range volumes {
			r, ok := c.volumes[volume]
			if !ok {
				continue
			}
			r.Claims = without(r.Claims, workload)
			for _, had := range before[volume].Claims {
				if had.Workload == workload {
					r.Claims = append(r.Claims, had)
				}
			}
			if err := c.putVolume(volume, r); err != nil {
				return err
			}
		}
		return nil
	})
	for volume := range volumes {
		m.Wake(volume)
	}
	return err
}

// claimed tells that all claims are as wanted already: most starts write
// nothing.
func (m *Manager) claimed(want map[string]claim) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for volume, w := range want {
		if !slices.Contains(m.state.volumes[volume].Claims, w) {
			return false
		}
	}
	return true
}

// exists is a *HeldError when a volume isn't declared, is on its way out, or
// isn't made yet.
func (m *Manager) exists(volume string) error {
	obj, err := m.opts.Store.Get(manifest.KindVolume, volume)
	switch {
	case errdefs.IsNotFound(err):
		return &HeldError{Volume: volume, Reason: reasonMissing}
	case err != nil:
		return err
	case obj.GetMeta().GetDeletedAt() != nil:
		return &HeldError{Volume: volume, Reason: reasonDeleting}
	}
	if r, ok := m.record(volume); ok && (r.UID == "" || r.UID == obj.Meta.Uid) {
		return nil
	}
	if why := obj.GetVolume().GetStatus().GetMessage(); why != "" {
		return &HeldError{Volume: volume, Reason: fmt.Sprintf(reasonTrouble, why)}
	}
	return &HeldError{Volume: volume, Reason: reasonUnmade}
}

// Holders are the workloads that may have a volume mounted.
func (m *Manager) Holders(volume string) []string {
	r, _ := m.record(volume)
	var names []string
	for _, c := range r.Claims {
		names = append(names, c.Workload)
	}
	slices.Sort(names)
	return names
}
