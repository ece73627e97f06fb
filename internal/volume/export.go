package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/ext4"
	"capsule/internal/lvm"
)

const (
	purposeExport = "export"
	prefixExport  = "exp"
)

// Export writes a volume as an archive: as it is now, for the snapshot "", or as a
// snapshot is. start is called once it is known that there is something to send.
// The volume goes on meanwhile. Without an error, all was written; the checksum
// lets the reader be sure of it.
func (m *Manager) Export(ctx context.Context, volume, snapshot string, start func(*v1.ExportStart) error, w io.Writer) (*v1.ArchiveEnd, error) {
	end, err := m.export(ctx, volume, snapshot, start, w)
	if err != nil {
		return nil, fmt.Errorf("export volume %q: %w", volume, err)
	}
	return end, nil
}

func (m *Manager) export(ctx context.Context, volume, snapshot string, start func(*v1.ExportStart) error, w io.Writer) (*v1.ArchiveEnd, error) {
	s, done, err := m.exportable(ctx, volume, snapshot)
	if err != nil {
		return nil, err
	}
	defer done()
	dir := m.dirOf(s.LV)
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	used := int64(fs.Blocks-fs.Bfree) * int64(fs.Bsize)
	if err := start(&v1.ExportStart{Size: s.Size, Used: used}); err != nil {
		return nil, err
	}
	data := filepath.Join(dir, dataDir)
	if s.Fresh { // it never had content; a draft doesn't count
		if data, err = os.MkdirTemp("", "capsule-empty-"); err != nil {
			return nil, err
		}
		defer os.Remove(data)
		if err := os.Chmod(data, 0o755); err != nil {
			return nil, err
		}
	}
	return writeArchive(data, s.Size, &until{ctx: ctx, w: w})
}

// until is a writer that ends with ctx.
type until struct {
	ctx context.Context
	w   io.Writer
}

func (u *until) Write(b []byte) (int, error) {
	if err := context.Cause(u.ctx); err != nil {
		return 0, err
	}
	return u.w.Write(b)
}

// exportable mounts what is to be exported at the folder of its logical volume,
// for reading only. done takes it away again.
func (m *Manager) exportable(ctx context.Context, volume, name string) (s snapshot, done func(), err error) {
	r, unlock, err := m.workOn(ctx, volume)
	if err != nil {
		return s, nil, err
	}
	defer unlock()
	ctx, cancel := toTheEnd(ctx)
	defer cancel()
	if name == "" {
		return m.exportNow(ctx, volume, r)
	}
	s, ok := m.snapshot(volume, name)
	if !ok {
		return s, nil, noSnapshot(volume, name)
	}
	if m.exports.add(s.LV) == 1 {
		err = m.openSnapshot(ctx, s.LV)
	}
	if err != nil {
		m.exports.drop(s.LV)
		return s, nil, errors.Join(err, m.closeSnapshot(ctx, s.LV))
	}
	return s, func() {
		m.afterExport(ctx, volume, func(ctx context.Context) error {
			if m.exports.drop(s.LV) > 0 {
				return nil
			}
			return m.closeSnapshot(ctx, s.LV)
		})
	}, nil
}

// exportNow makes a snapshot for the time of the export. The volume is locked.
func (m *Manager) exportNow(ctx context.Context, volume string, r record) (s snapshot, done func(), err error) {
	if err := m.full(); err != nil {
		return s, nil, err
	}
	s = snapshot{LV: newLV(prefixExport, volume), Size: r.Size, Fresh: r.Fresh}
	if err := m.begin(intent{LV: s.LV, Purpose: purposeExport, Volume: volume}); err != nil {
		return s, nil, err
	}
	err = m.frozen(ctx, r, func() error { return lvm.SnapshotToRead(ctx, r.LV, s.LV, tagOf(volume)) })
	if err == nil {
		err = m.openSnapshot(ctx, s.LV)
	}
	if err != nil {
		return s, nil, m.undo(ctx, s.LV, err)
	}
	return s, func() {
		m.setUnderway(false, intent{LV: s.LV})
		m.afterExport(ctx, volume, func(ctx context.Context) error { return m.sweep(ctx, volume) })
	}, nil
}

// full is an error when not even a snapshot for a short time can be made.
func (m *Manager) full() error {
	p, err := lvm.ReadPool()
	if err != nil {
		return err
	}
	if limits := m.limits.Load(); limits.level(p) == v1.PoolLevel_POOL_LEVEL_FULL {
		return fmt.Errorf("%s, or export one of its snapshots: %w", limits.sentence(p), errdefs.ErrResourceExhausted)
	}
	return nil
}

// afterExport does what comes after an export, however that ended.
func (m *Manager) afterExport(ctx context.Context, volume string, tidy func(context.Context) error) {
	ctx, cancel := toTheEnd(ctx)
	defer cancel()
	unlock, err := m.lock(ctx, volume)
	if err == nil {
		err = tidy(ctx)
		unlock()
	}
	if err != nil {
		m.log.Error("tidy up after an export", "volume", volume, "error", err)
		m.Wake(volume)
	}
}

// openSnapshot makes the content of a snapshot be seen. One of a volume that was
// not unmounted before a power cut and was not mounted since needs its journal.
func (m *Manager) openSnapshot(ctx context.Context, lv string) error {
	if err := lvm.SetActive(ctx, lv, true); err != nil {
		return err
	}
	device := lvm.Device(lv)
	super, err := ext4.ReadSuper(device)
	if err != nil {
		return err
	}
	if super.NeedsRecovery || super.Errors {
		if err := ext4.Check(ctx, device); err != nil {
			return err
		}
	}
	return mountFS(device, m.dirOf(lv), true)
}

func (m *Manager) closeSnapshot(ctx context.Context, lv string) error {
	if err := unmountFS(m.dirOf(lv)); err != nil {
		return err
	}
	return lvm.SetActive(ctx, lv, false)
}
