package installer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"capsule/internal/disk"
)

// A Device is a disk that is open for writing, by us alone.
type Device struct {
	*os.File
}

// openDevice fails when anything of the disk is in use.
func openDevice(path string) (*Device, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("disk %q is in use: %w", path, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	return &Device{f}, nil
}

// describe says which disk is open, by its number: its name may have gone to another
// one since the plan was made.
func (d *Device) describe(sysfs string) (disk.Device, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &st); err != nil {
		return disk.Device{}, fmt.Errorf("number of disk %q: %w", d.Name(), err)
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	place, err := filepath.EvalSymlinks(filepath.Join(sysfs, "dev/block", number))
	if err != nil {
		return disk.Device{}, fmt.Errorf("disk %s: %w", number, err)
	}
	found, ok := disk.Describe(sysfs, filepath.Base(place))
	if !ok {
		return disk.Device{}, fmt.Errorf("disk %s is gone: %w", number, errdefs.ErrNotFound)
	}
	return found, nil
}

// Fresh reads past the kernel's cache.
func (d *Device) Fresh() (Reader, error) {
	if err := unix.Fadvise(int(d.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return nil, fmt.Errorf("drop the cache: %w", err)
	}
	f, err := os.OpenFile(d.Name(), os.O_RDONLY|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) { // a file system that has no such reads, as tests may use
		return os.Open(d.Name())
	}
	if err != nil {
		return nil, err
	}
	buffer, err := unix.Mmap(-1, 0, chunkBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("memory to read into: %w", err), f.Close())
	}
	return &direct{file: f, buffer: buffer}, nil
}

// direct reads whole blocks into memory that begins at a page, as the kernel wants
// it for reads from the medium.
type direct struct {
	file   *os.File
	buffer []byte
}

// blockMax is the largest logical block of a disk that we install on.
const blockMax = 4096

// ReadAt reads any range.
func (d *direct) ReadAt(p []byte, at int64) (int, error) {
	return aligned(d.file, d.buffer, p, at, blockMax)
}

// Close ends it.
func (d *direct) Close() error { return errors.Join(unix.Munmap(d.buffer), d.file.Close()) }
