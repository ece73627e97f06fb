package lvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// discardStep is how much one call gives back, so that a caller can give up.
const discardStep = 1 << 30

// discard gives all space of a volume that nobody has open back to the pool and to
// the disk below: lvremove tells the disk nothing. It's a courtesy to the disk,
// which an error doesn't stop; only a volume in use does.
func discard(ctx context.Context, name string) error {
	f, err := os.OpenFile(Device(name), os.O_RDWR|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("remove volume %q: it is mounted or open: %w", name, errdefs.ErrFailedPrecondition)
	}
	if err != nil { // not active
		return nil
	}
	defer f.Close()
	if p, err := ReadPool(); err != nil || !p.passdown {
		return nil
	}
	size, err := f.Seek(0, io.SeekEnd)
	for at := int64(0); err == nil && at < size; at += discardStep {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		part := [2]uint64{uint64(at), uint64(min(discardStep, size-at))}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&part))); errno != 0 {
			err = errno
		}
	}
	return nil
}
