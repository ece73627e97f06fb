package blocklog

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// A Disk is a Target: a file or a block device.
type Disk struct{ *os.File }

// Discard makes a hole, or writes zeros where the device can't.
func (d Disk) Discard(at, length int64) error {
	fd := int(d.Fd())
	err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, length)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, at, length)
	}
	return err
}
