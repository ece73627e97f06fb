// Package dm speaks to the kernel's device mapper (linux/dm-ioctl.h) without
// libdevmapper and dmsetup: what a device is made of and how it fares takes
// milliseconds, where a program takes a third of a second.
package dm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const controlPath = "/dev/mapper/control"

// Commands, and the major version of the interface that they belong to.
const (
	cmdListDevices = 2
	cmdCreate      = 3
	cmdRemove      = 4
	cmdSuspend     = 6
	cmdTableLoad   = 9
	cmdTableClear  = 10
	cmdTableStatus = 12
	cmdMessage     = 14
	cmdArmPoll     = 16

	versionMajor = 4
)

// Flags of a message.
const (
	flagReadOnly    = 1 << 0
	flagSuspend     = 1 << 1
	flagStatusTable = 1 << 4
	flagBufferFull  = 1 << 8
	flagNoFlush     = 1 << 11
)

// Layout of a message.
const (
	headerLen = 312
	nameAt    = 48
	nameMax   = 127
	firstLen  = 4 << 10 // of a buffer; a longer answer gets a larger one
	bufferMax = 4 << 20
)

// A Control is the open control device.
type Control struct{ file *os.File }

// Open opens the control device, which is there once the module is loaded.
func Open() (*Control, error) {
	f, err := os.OpenFile(controlPath, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open device mapper: %w", err)
	}
	return &Control{f}, nil
}

// Close lets go of the control device; devices stay.
func (c *Control) Close() error { return c.file.Close() }

// A Device is what the kernel tells of one.
type Device struct {
	Minor     uint32
	Events    uint32 // how many events the device had: it only grows
	Openers   int32
	Suspended bool
	ReadOnly  bool
	Targets   []Target
}

// Path is the device's node.
func (d Device) Path() string { return fmt.Sprintf("/dev/dm-%d", d.Minor) }

// A Target is a part of a device. Sectors have 512 bytes.
type Target struct {
	Start, Sectors uint64
	Kind           string
	Params         string // of the table, or the status line, by what was asked
}

// Status says how a device fares, without writing anything out first.
func (c *Control) Status(name string) (Device, error) { return c.look(name, flagNoFlush) }

// Table says what a device is made of.
func (c *Control) Table(name string) (Device, error) {
	return c.look(name, flagNoFlush|flagStatusTable)
}

func (c *Control) look(name string, flags uint32) (Device, error) {
	msg, err := c.ask(cmdTableStatus, name, flags)
	if err != nil {
		return Device{}, fmt.Errorf("status of device %q: %w", name, err)
	}
	d, err := parseDevice(msg)
	if err != nil {
		return Device{}, fmt.Errorf("status of device %q: %w", name, err)
	}
	return d, nil
}

// Names lists all devices.
func (c *Control) Names() ([]string, error) {
	msg, err := c.ask(cmdListDevices, "", 0)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	return parseNames(msg)
}

// Create makes a device of these targets and starts it.
func (c *Control) Create(name string, readOnly bool, targets ...Target) (Device, error) {
	if _, err := c.ask(cmdCreate, name, 0); err != nil {
		return Device{}, fmt.Errorf("create device %q: %w", name, err)
	}
	var flags uint32
	if readOnly {
		flags = flagReadOnly
	}
	msg := message(name, flags, tableLen(targets))
	putTargets(msg, targets)
	if err := c.call(cmdTableLoad, msg); err != nil {
		return Device{}, errors.Join(fmt.Errorf("load table of device %q: %w", name, err), c.Remove(name))
	}
	if err := c.Resume(name); err != nil {
		return Device{}, errors.Join(err, c.Remove(name))
	}
	return c.Status(name)
}

// Remove takes away a device that nobody has open.
func (c *Control) Remove(name string) error {
	if _, err := c.ask(cmdRemove, name, 0); err != nil {
		return fmt.Errorf("remove device %q: %w", name, err)
	}
	return nil
}

// Suspend holds a device: what is written to it waits for Resume.
func (c *Control) Suspend(name string) error {
	if _, err := c.ask(cmdSuspend, name, flagSuspend); err != nil {
		return fmt.Errorf("suspend device %q: %w", name, err)
	}
	return nil
}

// Resume lets a device run, by the table that was loaded last.
func (c *Control) Resume(name string) error {
	if _, err := c.ask(cmdSuspend, name, 0); err != nil {
		return fmt.Errorf("start device %q: %w", name, err)
	}
	return nil
}

// Unload drops a table that was loaded and not taken up by Resume.
func (c *Control) Unload(name string) error {
	if _, err := c.ask(cmdTableClear, name, 0); err != nil {
		return fmt.Errorf("unload table of device %q: %w", name, err)
	}
	return nil
}

// Message tells something to a device's first target, in the target's own words.
func (c *Control) Message(name, text string) error {
	msg := message(name, 0, headerLen+8+len(text)+1) // a sector's number, zero, comes first
	copy(msg[headerLen+8:], text)
	if err := c.call(cmdMessage, msg); err != nil {
		return fmt.Errorf("tell device %q %q: %w", name, text, err)
	}
	return nil
}

// ask sends a message without content, with room for the answer.
func (c *Control) ask(cmd uintptr, name string, flags uint32) ([]byte, error) {
	for n := firstLen; n <= bufferMax; n *= 8 {
		msg := message(name, flags, n)
		if err := c.call(cmd, msg); err != nil {
			return nil, err
		}
		if binary.LittleEndian.Uint32(msg[28:])&flagBufferFull == 0 {
			return msg, nil
		}
	}
	return nil, fmt.Errorf("an answer of more than %d bytes: %w", bufferMax, errdefs.ErrOutOfRange)
}

// message lays out a struct dm_ioctl of size bytes.
func message(name string, flags uint32, size int) []byte {
	b, le := make([]byte, size), binary.LittleEndian
	le.PutUint32(b[0:], versionMajor)
	le.PutUint32(b[12:], uint32(size))
	le.PutUint32(b[16:], headerLen)
	le.PutUint32(b[28:], flags)
	copy(b[nameAt:nameAt+nameMax], name)
	return b
}

func (c *Control) call(cmd uintptr, msg []byte) error {
	const read, write, group = 2, 1, 0xfd
	request := uintptr(read|write)<<30 | uintptr(headerLen)<<16 | group<<8 | cmd
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, c.file.Fd(), request, uintptr(unsafe.Pointer(&msg[0])))
	switch errno {
	case 0:
		return nil
	case unix.ENXIO:
		return errors.Join(errdefs.ErrNotFound, errno)
	default:
		return errno
	}
}
