package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	imageSerial = "image"
	diskSerial  = "disk"

	// layersMax is how many layers an image may have: the partition table of
	// its disk has 128 entries.
	layersMax = 127

	layersDir = "/run/layers"
	diskDir   = "/run/disk"
	rootDir   = "/run/root"
)

// mounted is what the agent has mounted for the payload.
type mounted struct {
	dirs    []string // in the order of mounting
	devices []string // that are written to
	volumes []volume
	growing sync.Mutex // ext4 refuses to grow while it does
}

// add mounts and remembers it.
func (m *mounted) add(source, dir, kind string, flags uintptr, data string) error {
	if err := mount(source, dir, kind, flags, data); err != nil {
		return err
	}
	m.dirs = append(m.dirs, dir)
	return nil
}

// addDisk mounts a disk's ext4, whose journal is replayed by it. Room of deleted
// files goes back to the capsule, and after an error nothing more is written.
func (m *mounted) addDisk(device, dir string, readOnly bool) error {
	flags, data := uintptr(unix.MS_NOATIME|unix.MS_NODEV), "discard,errors=remount-ro"
	if readOnly {
		flags, data = flags|unix.MS_RDONLY, ""
	}
	if err := m.add(device, dir, "ext4", flags, data); err != nil {
		return err
	}
	if !readOnly {
		m.devices = append(m.devices, device)
	}
	return nil
}

// addRoot makes the root of the image's layers and the writable disk.
func (m *mounted) addRoot(layers int) error {
	if layers < 1 || layers > layersMax {
		return fmt.Errorf("an image of %d layers: a microVM takes 1 to %d: %w", layers, layersMax, errdefs.ErrInvalidArgument)
	}
	image, err := disk(imageSerial)
	if err != nil {
		return err
	}
	lowers := make([]string, layers) // the top first
	for n := 1; n <= layers; n++ {
		device, err := partition(image, n)
		if err != nil {
			return err
		}
		dir := filepath.Join(layersDir, strconv.Itoa(n))
		if err := m.add(device, dir, "erofs", unix.MS_RDONLY|unix.MS_NODEV, ""); err != nil {
			return err
		}
		lowers[layers-n] = dir
	}
	device, err := disk(diskSerial)
	if err != nil {
		return err
	}
	if err := m.addDisk(device, diskDir, false); err != nil {
		return err
	}
	return m.addOverlay(lowers, diskDir)
}

// addOverlay uses the calls that take each layer by itself: a line of options
// is at most a page.
func (m *mounted) addOverlay(lowers []string, upper string) error {
	settings := [][2]string{{"source", "overlay"}}
	for _, dir := range lowers {
		settings = append(settings, [2]string{"lowerdir+", dir})
	}
	for _, name := range []string{"upper", "work"} {
		dir := filepath.Join(upper, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		settings = append(settings, [2]string{name + "dir", dir})
	}
	if err := mountWith("overlay", settings, rootDir); err != nil {
		return fmt.Errorf("mount the image's layers: %w", err)
	}
	m.dirs = append(m.dirs, rootDir)
	return nil
}

// mountWith mounts a new file system that has the settings, without devices in
// it: the payload may open none that the image or it has made.
func mountWith(kind string, settings [][2]string, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open %s: %w", kind, err)
	}
	defer func() { _ = unix.Close(fs) }()
	for _, s := range settings {
		if err := unix.FsconfigSetString(fs, s[0], s[1]); err != nil {
			return fmt.Errorf("set %s=%s: %w%s", s[0], s[1], err, complaint(fs))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("create %s: %w%s", kind, err, complaint(fs))
	}
	at, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(at) }()
	return unix.MoveMount(at, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// complaint is what the kernel has to say about settings.
func complaint(fs int) string {
	text := make([]byte, 512)
	n, err := unix.Read(fs, text)
	if err != nil || n == 0 {
		return ""
	}
	return ": " + string(text[:n])
}

// release writes everything to the disks and unmounts them, the last first. It
// does all that it can and tells what it could not.
func (m *mounted) release() error {
	var errs []error
	for i := len(m.dirs) - 1; i >= 0; i-- {
		if err := unix.Unmount(m.dirs[i], 0); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m.dirs[i], err))
		}
	}
	for _, device := range m.devices {
		errs = append(errs, released(device))
	}
	unix.Sync() // of what stayed
	m.dirs, m.devices = nil, nil
	return errors.Join(errs...)
}
