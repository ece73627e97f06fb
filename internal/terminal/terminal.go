// Package terminal makes pseudo terminals for commands. It starts nothing.
package terminal

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Terminal is the side that is written to and read from in place of a person.
type Terminal struct{ *os.File }

// Open makes a terminal in the file system that ptmx is of ("/dev/ptmx"), with three
// descriptors of the command's side. A size of 0 is none. The caller closes all.
func Open(ptmx string, rows, columns uint32) (t *Terminal, theirs [3]*os.File, err error) {
	f, err := os.OpenFile(ptmx, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, theirs, fmt.Errorf("make a terminal: %w", err)
	}
	t = &Terminal{f}
	if rows > 0 || columns > 0 {
		t.Resize(rows, columns)
	}
	if err := t.control(func(fd int) error { return openPeers(fd, &theirs) }); err != nil {
		for _, f := range theirs {
			if f != nil {
				f.Close()
			}
		}
		return nil, [3]*os.File{}, errors.Join(fmt.Errorf("open a terminal: %w", err), t.Close())
	}
	return t, theirs, nil
}

func openPeers(fd int, theirs *[3]*os.File) error {
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
}

// control calls fn with the descriptor.
func (t *Terminal) control(fn func(fd int) error) error {
	raw, err := t.SyscallConn()
	if err != nil {
		return err
	}
	var fnErr error
	return errors.Join(raw.Control(func(fd uintptr) { fnErr = fn(int(fd)) }), fnErr)
}

// Resize tells the command how large the terminal is, in character cells.
func (t *Terminal) Resize(rows, columns uint32) {
	// A terminal that is gone has no size.
	_ = t.control(func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(rows), Col: uint16(columns)})
	})
}
