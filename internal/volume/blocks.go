package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"capsule/api/manifest"
	"capsule/internal/lvm"
)

const (
	purposeBackup = "backup"
	prefixBackup  = "bak"

	// forgetEvery is how many bytes are read between two times that the kernel is told
	// to forget them: a backup must not push out what workloads use.
	forgetEvery = 8 << 20
)

// Kept is a volume that is there to be backed up.
type Kept struct {
	Name  string
	Size  int64 // bytes
	Fresh bool
}

// Kept lists the volumes that are whole, by name, and the names of those that wait for
// their data.
func (m *Manager) Kept() (all []Kept, waiting []string, err error) {
	if err := m.usable(); err != nil {
		return nil, nil, err
	}
	objs, err := m.opts.Store.List(manifest.KindVolume)
	if err != nil {
		return nil, nil, err
	}
	s := m.known()
	for _, obj := range objs {
		name := obj.GetMeta().GetName()
		switch r, ok := s.volumes[name]; {
		case s.awaited[name]:
			waiting = append(waiting, name)
		case ok && obj.GetMeta().GetDeletedAt() == nil:
			all = append(all, Kept{Name: name, Size: r.Size, Fresh: r.Fresh})
		}
	}
	return all, waiting, nil
}

// Blocks has read be given a volume as it is now, as the disk that it is: a snapshot
// of it, which is gone afterwards however that ends, also after a power cut. The volume
// goes on meanwhile.
func (m *Manager) Blocks(ctx context.Context, volume string, read func(now Kept, disk io.Reader) error) error {
	s, done, err := m.snapshotBlocks(ctx, volume)
	if err != nil {
		return fmt.Errorf("read volume %q: %w", volume, err)
	}
	defer done()
	f, err := os.Open(lvm.Device(s.LV))
	if err != nil {
		return fmt.Errorf("read volume %q: %w", volume, err)
	}
	defer f.Close() // before done, which takes the device away
	return read(Kept{Name: volume, Size: s.Size, Fresh: s.Fresh}, &passing{ctx: ctx, file: f})
}

func (m *Manager) snapshotBlocks(ctx context.Context, volume string) (s snapshot, done func(), err error) {
	r, unlock, err := m.workOn(ctx, volume)
	if err != nil {
		return s, nil, err
	}
	defer unlock()
	if err := m.full(); err != nil {
		return s, nil, err
	}
	ctx, cancel := toTheEnd(ctx)
	defer cancel()
	s = snapshot{LV: newLV(prefixBackup, volume), Size: r.Size, Fresh: r.Fresh}
	if err := m.begin(intent{LV: s.LV, Purpose: purposeBackup, Volume: volume}); err != nil {
		return s, nil, err
	}
	err = m.frozen(ctx, r, func() error { return lvm.SnapshotToRead(ctx, r.LV, s.LV, tagOf(volume)) })
	if err == nil {
		err = lvm.SetActive(ctx, s.LV, true)
	}
	if err != nil {
		return s, nil, m.undo(ctx, s.LV, err)
	}
	return s, func() {
		m.setUnderway(false, intent{LV: s.LV})
		m.afterExport(ctx, volume, func(ctx context.Context) error { return m.sweep(ctx, volume) })
	}, nil
}

// passing reads a device once, from its beginning, and leaves nothing of it in memory.
type passing struct {
	ctx  context.Context //nolint:containedctx // the end of one call
	file *os.File
	at   int64
	kept int64 // bytes that the kernel remembers
}

func (p *passing) Read(b []byte) (int, error) {
	if err := context.Cause(p.ctx); err != nil {
		return 0, err
	}
	n, err := p.file.Read(b)
	p.at, p.kept = p.at+int64(n), p.kept+int64(n)
	if p.kept >= forgetEvery {
		_ = unix.Fadvise(int(p.file.Fd()), p.at-p.kept, p.kept, unix.FADV_DONTNEED) // more memory is used then
		p.kept = 0
	}
	return n, err
}

// Fill makes a volume that waits for its data. next gives that data, piece by piece
// with its place, and io.EOF after the last. The volume is there whole or not at all.
func (m *Manager) Fill(ctx context.Context, v Kept, next func() (at int64, data []byte, err error)) error {
	if err := m.fillAwaited(ctx, v, next); err != nil {
		return fmt.Errorf("fill volume %q: %w", v.Name, err)
	}
	m.note(v.Name, "filled", "has its data from the backup")
	m.Wake(v.Name)
	m.freed(v.Name)
	return nil
}

func (m *Manager) fillAwaited(ctx context.Context, v Kept, next func() (int64, []byte, error)) error {
	if v.Size < manifest.VolumeMin || v.Size > manifest.VolumeMax || v.Size != lvm.RoundUp(v.Size) {
		return fmt.Errorf("no volume has %d bytes: %w", v.Size, errdefs.ErrInvalidArgument)
	}
	if err := m.usable(); err != nil {
		return err
	}
	if m.arriving.add(v.Name) > 1 {
		m.arriving.drop(v.Name)
		return fmt.Errorf("it is being filled just now: %w", errdefs.ErrFailedPrecondition)
	}
	defer m.arriving.drop(v.Name)
	if err := m.awaited(v.Name); err != nil {
		return err
	}
	if err := m.crowded(); err != nil {
		return err
	}
	lv := newLV(prefixVolume, v.Name)
	if err := m.begin(intent{LV: lv, Purpose: purposeRestore, Volume: v.Name}); err != nil {
		return err
	}
	if err := m.fillLV(ctx, lv, v, next); err != nil {
		return m.undo(ctx, lv, err)
	}
	unlock, err := m.lock(ctx, v.Name)
	if err == nil {
		defer unlock()
		err = m.commit(lv, func(c *change) error {
			if !c.awaited[v.Name] { // it was deleted meanwhile
				return errNotAwaited
			}
			if err := c.dropAwaited(v.Name); err != nil {
				return err
			}
			return c.putVolume(v.Name, record{LV: lv, Size: v.Size, Fresh: v.Fresh})
		})
	}
	if err != nil {
		return m.undo(ctx, lv, err)
	}
	return nil
}

func (m *Manager) fillLV(ctx context.Context, lv string, v Kept, next func() (int64, []byte, error)) error {
	making, cancel := toTheEnd(ctx)
	err := lvm.CreateThin(making, lv, v.Size, tagOf(v.Name))
	cancel()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(lvm.Device(lv), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(m.writeBlocks(ctx, f, v.Size, next), f.Close())
}

// writeBlocks also writes out what came now and then, so that the pool shows it.
func (m *Manager) writeBlocks(ctx context.Context, f *os.File, size int64, next func() (int64, []byte, error)) error {
	behind := 0
	for {
		at, data, err := next()
		if errors.Is(err, io.EOF) {
			return f.Sync()
		}
		if err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		if at < 0 || at > size-int64(len(data)) {
			return fmt.Errorf("%d bytes at %d lie beyond its end: %w", len(data), at, errdefs.ErrInvalidArgument)
		}
		if _, err := f.WriteAt(data, at); err != nil {
			return err
		}
		if behind += len(data); behind < writeOutEvery {
			continue
		}
		behind = 0
		if err := errors.Join(f.Sync(), m.crowded()); err != nil {
			return err
		}
	}
}
