package volume

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// What volumes are mounted with. An error of the file system makes it read-only
// at once: going on would make it worse.
const (
	mountFlags   = unix.MS_NOATIME | unix.MS_NODEV | unix.MS_NOSUID
	mountOptions = "errors=remount-ro,discard"
	// A snapshot is read as it is: replaying its journal would write to it.
	mountOptionsReadOnly = "noload"
)

// mounting is a mount of this machine (proc_pid_mountinfo(5)).
type mounting struct {
	device   string // "major:minor"
	dir      string
	readOnly bool // the file system refuses writes, as it does after an error
}

// mountings are those at dir and below, in the order in which they were made.
func mountings(dir string) ([]mounting, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, err := parseMountings(f)
	return slices.DeleteFunc(all, func(m mounting) bool {
		return m.dir != dir && !strings.HasPrefix(m.dir, dir+"/")
	}), err
}

func parseMountings(r io.Reader) ([]mounting, error) {
	var all []mounting
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		own, fs, ok := strings.Cut(lines.Text(), " - ")
		a, b := strings.Fields(own), strings.Fields(fs)
		if !ok || len(a) < 6 || len(b) < 3 {
			return nil, fmt.Errorf("line %q of the mount table: %w", lines.Text(), errdefs.ErrDataLoss)
		}
		all = append(all, mounting{device: a[2], dir: unescape(a[4]), readOnly: refusesWrites(b[2])})
	}
	return all, lines.Err()
}

// refusesWrites reads the options of a file system, not those of its mount. An
// error shows as "ro", from Linux 6.15 on as "emergency_ro".
func refusesWrites(options string) bool {
	return slices.ContainsFunc(strings.Split(options, ","), func(o string) bool {
		return o == "ro" || o == "emergency_ro" || o == "shutdown"
	})
}

// unescape undoes the kernel's octal escapes of blanks in paths.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace

// mountedAt is what is mounted at exactly dir.
func mountedAt(dir string) (mounting, bool, error) {
	all, err := mountings(dir)
	for _, m := range slices.Backward(all) { // the last one covers those below
		if m.dir == dir {
			return m, true, err
		}
	}
	return mounting{}, false, err
}

// numberOf gives the number of a block device as the mount table writes it.
func numberOf(device string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: device, Err: err}
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)), nil
}

// mountFS mounts the file system of a logical volume at dir, which it makes.
// The error is of class Unavailable while somebody else has the device.
func mountFS(device, dir string, readOnly bool) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	flags, options := uintptr(mountFlags), mountOptions
	if readOnly {
		flags, options = flags|unix.MS_RDONLY, mountOptionsReadOnly
	}
	err := unix.Mount(device, dir, "ext4", flags, options)
	if err == nil {
		return nil
	}
	err = errors.Join(&os.PathError{Op: "mount", Path: device, Err: err}, os.Remove(dir))
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	case errors.Is(err, unix.EUCLEAN), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EBADMSG): // what ext4 says to damage
		return fmt.Errorf("%w: %w", err, errdefs.ErrDataLoss)
	}
	return err
}

// unmountFS unmounts all that is mounted at dir, and removes the folder. Nothing
// mounted is success. The error is of class Unavailable while it is in use.
func unmountFS(dir string) error {
	for {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
			continue
		case errors.Is(err, unix.ENOENT):
			return nil
		case errors.Is(err, unix.EINVAL): // no mount point, any more
			_ = os.Remove(dir) // the next mount uses it
			return nil
		case errors.Is(err, unix.EBUSY):
			return fmt.Errorf("unmount %q: a program still uses it: %w", dir, errdefs.ErrUnavailable)
		}
		return &os.PathError{Op: "unmount", Path: dir, Err: err}
	}
}

// dirOf is where a volume is mounted for workloads, or a logical volume for what
// the capsule itself does to it: their names have a dot, those of volumes none.
func (m *Manager) dirOf(name string) string { return filepath.Join(m.dir, name) }
