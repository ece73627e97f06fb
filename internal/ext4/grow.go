package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// resizeFS is EXT4_IOC_RESIZE_FS, _IOW('f', 16, __u64) of linux/ext4.h: grow to so
// many blocks, while mounted and in use.
const resizeFS = 1<<30 | 8<<16 | 'f'<<8 | 16

// Grow makes the file system that is mounted at dir fill its device, and says
// whether it became larger. Nothing happens when it fills it already. A cut leaves
// a sound file system of some size in between, which the next call grows further.
// It runs on a capsule and inside a microVM; sysfs must be mounted.
func Grow(dir string) (grown bool, err error) {
	f, err := os.Open(dir)
	if err != nil {
		return false, fmt.Errorf("grow file system: %w", err)
	}
	defer f.Close()
	before, device, err := sizes(f)
	if err != nil {
		return false, fmt.Errorf("grow file system at %q: %w", dir, err)
	}
	blocks := uint64(device) / uint64(before.Bsize)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), resizeFS, uintptr(unsafe.Pointer(&blocks))); errno != 0 {
		return false, fmt.Errorf("grow file system at %q to %d bytes: %w", dir, device, explain(errno))
	}
	after, _, err := sizes(f)
	if err != nil {
		return false, fmt.Errorf("grow file system at %q: %w", dir, err)
	}
	return after.Blocks > before.Blocks, nil
}

func explain(errno unix.Errno) error {
	switch errno {
	case unix.EPERM: // ext4_resize_begin
		return fmt.Errorf("it has errors and wants a check first: %w", errno)
	case unix.EROFS:
		return fmt.Errorf("it is mounted read-only: %w", errno)
	case unix.ENOTTY:
		return fmt.Errorf("it isn't ext4: %w", errno)
	default:
		return errno
	}
}

// sizes tells a mounted file system's blocks and its device's bytes.
func sizes(f *os.File) (unix.Statfs_t, int64, error) {
	var fs unix.Statfs_t
	var st unix.Stat_t
	fd := int(f.Fd())
	if err := errors.Join(unix.Fstatfs(fd, &fs), unix.Fstat(fd, &st)); err != nil {
		return fs, 0, err
	}
	if fs.Type != unix.EXT4_SUPER_MAGIC {
		return fs, 0, explain(unix.ENOTTY)
	}
	b, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/size", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		return fs, 0, err
	}
	sectors, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
	return fs, sectors * 512, err
}
