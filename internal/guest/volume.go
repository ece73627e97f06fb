package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	guestv1 "capsule/api/capsule/guest/v1"
	"capsule/internal/ext4"
)

// volumesDir is where volumes are mounted whole, out of the payload's sight.
const volumesDir = "/run/volumes"

// A volume is a disk that outlives the instance. It came with a file system, is
// never formatted here, and nothing is copied to it.
type volume struct {
	serial   string
	device   string
	dir      string // of its whole file system
	readOnly bool
}

// addVolumes mounts the volumes' disks, for the payload's first process to show.
func (m *mounted) addVolumes(volumes []*guestv1.Volume) ([]showing, error) {
	var shown []showing
	for _, v := range volumes {
		s, err := m.addVolume(v)
		if err != nil {
			return nil, fmt.Errorf("volume for %q: %w", v.GetPath(), err)
		}
		shown = append(shown, s)
	}
	return shown, nil
}

func (m *mounted) addVolume(v *guestv1.Volume) (showing, error) {
	if at := v.GetPath(); !path.IsAbs(at) || path.Clean(at) == "/" {
		return showing{}, fmt.Errorf("%q is not a folder of its own: %w", at, errdefs.ErrInvalidArgument)
	}
	device, err := disk(v.GetSerial())
	if err != nil {
		return showing{}, err
	}
	dir := filepath.Join(volumesDir, filepath.Base(v.GetSerial()))
	if err := m.addDisk(device, dir, v.GetReadOnly()); err != nil {
		return showing{}, err
	}
	m.volumes = append(m.volumes, volume{serial: v.GetSerial(), device: device, dir: dir, readOnly: v.GetReadOnly()})
	if !v.GetReadOnly() {
		// The disk may have grown while no one had it.
		if _, err := ext4.Grow(dir); err != nil {
			say("volume for %q keeps its size: %v", v.GetPath(), err)
		}
	}
	source, err := inside(dir, v.GetFolder())
	return showing{Source: source, Path: v.GetPath(), ReadOnly: v.GetReadOnly()}, err
}

// inside gives the path of a folder below dir. A link in it is refused: nobody of
// ours makes one. The payload, which sees no more than the folder, can't put one
// there.
func inside(dir, folder string) (string, error) {
	if folder == "" {
		return dir, nil
	}
	if !filepath.IsLocal(folder) {
		return "", fmt.Errorf("its folder %q is not one inside: %w", folder, errdefs.ErrInvalidArgument)
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer func() { _ = unix.Close(root) }()
	fd, err := unix.Openat2(root, folder, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return "", fmt.Errorf("it has no folder %q: %w", folder, errdefs.ErrFailedPrecondition)
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR):
		return "", fmt.Errorf("%q in it is no folder: %w", folder, errdefs.ErrFailedPrecondition)
	case err != nil:
		return "", &os.PathError{Op: "open", Path: filepath.Join(dir, folder), Err: err}
	}
	return filepath.Join(dir, folder), unix.Close(fd)
}

// writableVolumes are the folders of file systems that a freeze holds.
func (m *mounted) writableVolumes() []string {
	var dirs []string
	for _, v := range m.volumes {
		if !v.readOnly {
			dirs = append(dirs, v.dir)
		}
	}
	return dirs
}

// grow makes the file system of a volume fill its disk, once that has the size.
func (m *mounted) grow(serial string, size int64) error {
	for _, v := range m.volumes {
		if v.serial != serial {
			continue
		}
		if v.readOnly {
			return fmt.Errorf("volume %q is read-only: %w", serial, errdefs.ErrFailedPrecondition)
		}
		if err := awaitSize(v.device, size); err != nil {
			return err
		}
		m.growing.Lock()
		defer m.growing.Unlock()
		_, err := ext4.Grow(v.dir)
		return err
	}
	return fmt.Errorf("no disk %q is a volume: %w", serial, errdefs.ErrNotFound)
}

// Grow serves the capsule.
func (a *agent) Grow(ctx context.Context, req *guestv1.GrowRequest) (*guestv1.GrowResponse, error) {
	p, _, leave, err := a.visit(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	return &guestv1.GrowResponse{}, p.mounted.grow(req.GetSerial(), req.GetSize())
}
