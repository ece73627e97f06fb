package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/durable"
	"capsule/internal/ext4"
	"capsule/internal/lvm"
)

const (
	purposeImport = "import"

	// writeOutEvery is how many bytes are unpacked between two looks at the pool.
	writeOutEvery = 64 << 20
)

// Import makes a new volume of an archive. Nothing is left of one that did not
// arrive whole: end is asked for the sender's checksum once r has ended. It gives
// the volume and the number of files in it.
func (m *Manager) Import(ctx context.Context, target *v1.ImportTarget, r io.Reader, end func() (*v1.ArchiveEnd, error)) (*v1.Object, uint64, error) {
	obj, files, err := m.receive(ctx, target, r, end)
	if err != nil {
		return nil, 0, fmt.Errorf("import volume %q: %w", clip(target.GetName()), err)
	}
	return obj, files, nil
}

func (m *Manager) receive(ctx context.Context, target *v1.ImportTarget, r io.Reader, end func() (*v1.ArchiveEnd, error)) (*v1.Object, uint64, error) {
	name := target.GetName()
	if err := errors.Join(manifest.CheckName(name), m.usable()); err != nil {
		return nil, 0, err
	}
	if m.arriving.add(name) > 1 {
		m.arriving.drop(name)
		return nil, 0, fmt.Errorf("another import makes it just now: %w", errdefs.ErrAlreadyExists)
	}
	defer m.arriving.drop(name)
	if err := m.vacant(name); err != nil {
		return nil, 0, err
	}
	a, err := openArchive(r)
	if err != nil {
		return nil, 0, err
	}
	defer a.close()
	size, err := importSize(target.GetSize(), a.size)
	if err != nil {
		return nil, 0, err
	}
	if err := m.takes(size); err != nil {
		return nil, 0, err
	}
	lv := newLV(prefixVolume, name)
	if err := m.begin(intent{LV: lv, Purpose: purposeImport, Volume: name}); err != nil {
		return nil, 0, err
	}
	files, err := m.unpack(ctx, name, record{LV: lv, Size: size}, a, end)
	if err != nil {
		return nil, 0, m.undo(ctx, lv, err)
	}
	unlock, err := m.lock(ctx, name)
	if err == nil {
		defer unlock()
		err = m.vacant(name)
	}
	if err != nil {
		return nil, 0, m.undo(ctx, lv, err)
	}
	obj, err := m.declare(ctx, name, record{LV: lv, Size: size})
	return obj, files, err
}

// importSize is the size of the volume for an archive that names own, or zero.
func importSize(asked, own int64) (int64, error) {
	size := asked
	if size == 0 {
		size = own
	}
	switch {
	case size == 0:
		return 0, fmt.Errorf("the archive does not say how large its volume was: give the size of the new one: %w", errdefs.ErrInvalidArgument)
	case size < manifest.VolumeMin || size > manifest.VolumeMax:
		return 0, fmt.Errorf("the size must be within %s and %s, found %d bytes: %w",
			manifest.FormatSize(manifest.VolumeMin), manifest.FormatSize(manifest.VolumeMax), size, errdefs.ErrInvalidArgument)
	}
	return lvm.RoundUp(size), nil
}

// unpack makes the logical volume, its file system, and in it all that the archive
// holds, and returns once that is on disk and proved to be all.
func (m *Manager) unpack(ctx context.Context, name string, r record, a *archive, end func() (*v1.ArchiveEnd, error)) (files uint64, err error) {
	dir := m.dirOf(r.LV)
	if err := m.makeEmpty(ctx, name, r); err != nil {
		return 0, err
	}
	draft := filepath.Join(dir, draftDir)
	if err := os.Mkdir(draft, 0o755); err != nil {
		return 0, err
	}
	a.plain.every(writeOutEvery, func() error { return m.writeOut(ctx, dir) })
	files, err = a.extract(draft, r.Size)
	if errdefs.IsResourceExhausted(err) && a.in.err == nil && a.plain.stopped == nil {
		return 0, fmt.Errorf("its content does not fit in %s: give a larger size: %w", amount(r.Size), err)
	}
	if err != nil {
		return 0, err
	}
	sent, err := end()
	if err != nil {
		return 0, fmt.Errorf("the archive did not arrive whole: %w", err)
	}
	if err := a.matches(sent); err != nil {
		return 0, err
	}
	if err := m.writeOut(ctx, dir); err != nil {
		return 0, err
	}
	if err := durable.Rename(draft, filepath.Join(dir, dataDir)); err != nil {
		return 0, err
	}
	return files, unmountFS(dir) // which writes all that is left
}

// makeEmpty makes a logical volume with an empty file system, and mounts it.
func (m *Manager) makeEmpty(ctx context.Context, name string, r record) error {
	ctx, cancel := toTheEnd(ctx)
	defer cancel()
	if err := lvm.CreateThin(ctx, r.LV, r.Size, tagOf(name)); err != nil {
		return err
	}
	if err := ext4.Format(ctx, lvm.Device(r.LV)); err != nil {
		return err
	}
	return mountFS(lvm.Device(r.LV), m.dirOf(r.LV), false)
}

// writeOut is called again and again while an archive is being unpacked: what came
// is written out, so that the pool shows it, and there is an end of it before the
// pool, which all volumes share, is full.
func (m *Manager) writeOut(ctx context.Context, dir string) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	err := syncFS(dir)
	if full := m.crowded(); full != nil {
		return full
	}
	return err
}
