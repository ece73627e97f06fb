package storage

import (
	"context"
	"fmt"
	"maps"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"capsule/internal/disk"
	"capsule/internal/lvm"
)

// growMin is the least that a disk must have gained to be grown by itself, bytes.
const growMin = 64 << 20

// Sizes of what disks are divided into, bytes.
type Sizes struct{ Perm, Pool int64 }

// Grow uses what disks have become larger, and gives what there was and is.
func (m *Manager) Grow(ctx context.Context) (before, now Sizes, err error) {
	if err := m.whole(); err != nil {
		return before, now, err
	}
	before = m.sizes()
	boot, err := disk.Open(m.Sysfs, m.Boot.Disk)
	if err != nil {
		return before, now, err
	}
	if _, err := boot.GrowPERM(); err != nil {
		return before, now, err
	}
	if err := m.grow(ctx); err != nil {
		return before, now, err
	}
	m.opened(ctx)
	return before, m.sizes(), nil
}

// whole is an error while the group can't be changed.
func (m *Manager) whole() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case !m.looked:
		return fmt.Errorf("the disks of the pool are not known yet; try again in a minute: %w", errdefs.ErrUnavailable)
	case len(m.missing) > 0:
		return fmt.Errorf("%s: %w", missingText(m.known[m.missing[0]]), errdefs.ErrFailedPrecondition)
	case m.change != nil:
		return fmt.Errorf("%s is under way: wait for its end, which \"capsulectl capsule disk list\" tells: %w", m.change, errdefs.ErrFailedPrecondition)
	}
	return nil
}

func (m *Manager) sizes() Sizes {
	var s Sizes
	var st unix.Statfs_t
	if err := unix.Statfs(m.Perm, &st); err == nil {
		s.Perm = int64(st.Blocks) * st.Bsize
	}
	if p, err := lvm.ReadPool(); err == nil {
		s.Pool = p.DataSize
	}
	return s
}

// grow extends the group to its disks, and what lies on it by plan.
func (m *Manager) grow(ctx context.Context) error {
	m.mu.Lock()
	devices := m.devices()
	m.mu.Unlock()
	return lvm.Grow(ctx, m.Perm, devices[0], devices[1:]...)
}

// useGrown uses what added disks have gained while the machine was off; process 1 does
// so for its own. It tells whether that needs no other try.
func (m *Manager) useGrown(ctx context.Context) bool {
	m.mu.Lock()
	added, home, known := len(m.found) > 0 && m.change == nil, m.home, maps.Clone(m.known)
	m.mu.Unlock()
	if !added {
		return true
	}
	parts, err := lvm.Physicals(ctx)
	if err != nil {
		m.Log.Error("look for disks that grew", "error", err)
		return false
	}
	for _, p := range parts {
		if p.ID == home || p.DeviceBytes-p.SizeBytes < growMin {
			continue
		}
		if err := m.grow(ctx); err != nil {
			m.Log.Error("use a disk that grew", "error", err)
			return false
		}
		m.note("disk-grown", fmt.Sprintf("the pool uses what disk %s has gained", known[p.ID]))
		m.opened(ctx)
		return true
	}
	return true
}
