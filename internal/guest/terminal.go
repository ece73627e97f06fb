package guest

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	capsulev1 "capsule/api/capsule/v1"
)

// terminal makes one in the payload's /dev/pts, which is a mount that no payload
// can replace.
func (x *execution) terminal() (theirs [3]*os.File, err error) {
	name := fmt.Sprintf("/proc/%d/root/dev/pts/ptmx", x.payload.first.Pid)
	console, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return theirs, fmt.Errorf("make a terminal: %w", err)
	}
	x.console, x.stdin = console, console
	if size := x.start.GetSize(); size.GetRows() > 0 || size.GetColumns() > 0 {
		x.resize(size)
	}
	err = x.control(func(fd int) error {
		if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
			return err
		}
		for i := range theirs {
			other, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
			if errno != 0 {
				return errno
			}
			theirs[i] = os.NewFile(other, "terminal")
		}
		return nil
	})
	if err != nil {
		return theirs, fmt.Errorf("open a terminal: %w", err)
	}
	x.out.add(streamWriter{x, false}, console)
	return theirs, nil
}

// control calls fn with the terminal's descriptor.
func (x *execution) control(fn func(fd int) error) error {
	raw, err := x.console.SyscallConn()
	if err != nil {
		return err
	}
	var fnErr error
	return errors.Join(raw.Control(func(fd uintptr) { fnErr = fn(int(fd)) }), fnErr)
}

func (x *execution) resize(size *capsulev1.TerminalSize) {
	if x.console == nil {
		return
	}
	// A terminal that is gone has no size.
	_ = x.control(func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(size.GetRows()), Col: uint16(size.GetColumns())})
	})
}
