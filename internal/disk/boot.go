package disk

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// BootFile is what the initramfs tells the system about this boot.
const BootFile = "/run/capsule/boot.json"

// Files of ours on the ESP.
const (
	// SeedFile is the identity that a new capsule takes.
	SeedFile = "capsule/seed.pem"
	// MachineIDFile is the id of a new capsule, which its name comes from.
	MachineIDFile = "capsule/machine-id"
	// StayFile says that a capsule lives on this disk, also when it can be pulled
	// out: it's never the medium of an installation.
	StayFile = "capsule/stay"
	// RestoreFile is the state of a backup, which a new capsule takes at its first start.
	RestoreFile = "capsule/restore"
)

// A Boot is what this boot was started from. Device names hold for this boot only.
type Boot struct {
	Slot    string `json:"slot"`         // slot_a or slot_b
	Disk    string `json:"disk"`         // "vda"
	ESP     string `json:"esp"`          // "/dev/vda1"
	SlotA   string `json:"slot_a"`       // "/dev/vda2"
	SlotB   string `json:"slot_b"`       // "/dev/vda3"
	PERM    string `json:"perm"`         // "/dev/vda4"
	ESPUUID string `json:"esp_partuuid"` // unique GUID of the ESP
}

// ReadBoot reads BootFile.
func ReadBoot() (Boot, error) {
	var b Boot
	text, err := os.ReadFile(BootFile)
	if err != nil {
		return b, fmt.Errorf("read how we booted: %w", err)
	}
	if err := json.Unmarshal(text, &b); err != nil {
		return b, fmt.Errorf("read how we booted: %q: %w", BootFile, err)
	}
	return b, nil
}

// Write writes BootFile below root.
func (b Boot) Write(root string) error {
	file := filepath.Join(root, BootFile)
	text, err := json.Marshal(b)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}

// Device is the device of slot_a or slot_b.
func (b Boot) Device(slot string) (string, error) {
	device := map[string]string{SlotA: b.SlotA, SlotB: b.SlotB}[slot]
	if device == "" {
		return "", fmt.Errorf("slot %q has no device: %w", slot, errdefs.ErrNotFound)
	}
	return device, nil
}

// Access is how the ESP is mounted.
type Access int

// ReadOnly for looking. Writable for few and small writes, whose order on the disk
// is the order in which they are made. Buffered for a large file that nothing names
// yet: Writable would wait for the disk with each of its clusters.
const (
	ReadOnly Access = iota
	Writable
	Buffered
)

func (a Access) flags() uintptr {
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	switch a {
	case ReadOnly:
		flags |= unix.MS_RDONLY
	case Writable:
		flags |= unix.MS_SYNCHRONOUS
	}
	return flags
}

// OnESP tells whether the ESP that we booted from has a file.
func (b Boot) OnESP(file string) (there bool, err error) {
	err = b.WithESP(ReadOnly, func(root string) error {
		_, err := os.Stat(filepath.Join(root, file))
		there = err == nil
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return there, err
}

// WithESP mounts the ESP that we booted from in a private place, calls fn with
// the folder, and unmounts it again: a FAT is never left mounted, least of all
// writable. All that fn wrote is on the disk when it returns without error.
func (b Boot) WithESP(access Access, fn func(root string) error) error {
	if err := os.MkdirAll("/run/capsule", 0o755); err != nil {
		return err
	}
	unlock, err := lockESP()
	if err != nil {
		return err
	}
	defer unlock()
	clearMounts(mountsGlob)
	dir, err := os.MkdirTemp(filepath.Dir(mountsGlob), filepath.Base(mountsGlob))
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(dir) }()
	mount := func() error { return unix.Mount(b.ESP, dir, "vfat", access.flags(), "umask=0077") }
	if err := whileBusy(busyMax, mount); err != nil {
		return fmt.Errorf("mount ESP %q: %w", b.ESP, err)
	}
	err = fn(dir)
	if access != ReadOnly {
		err = errors.Join(err, syncTree(dir))
	}
	return errors.Join(err, unmount(dir, busyMax))
}

// mountsGlob are the private places in which the ESP is mounted.
const mountsGlob = "/run/capsule/esp-*"

// clearMounts ends the mounts of processes that were killed in WithESP: whoever holds
// the lock knows that nobody uses them. One that stayed would keep the ESP as it was
// mounted, read-only or writable, until the machine restarts.
func clearMounts(glob string) {
	dirs, _ := filepath.Glob(glob) // the pattern is good
	for _, dir := range dirs {
		_ = unix.Unmount(dir, unix.MNT_DETACH) // that it isn't mounted is no error
		_ = os.Remove(dir)
	}
}

// A program that is being started has all files open that this one has open, until
// it runs: a moment, or seconds on a machine that is busy.
const (
	busyMax  = 10 * time.Second
	busyEach = 10 * time.Millisecond
)

// unmount waits until nobody has a file open there. Who still has one after the limit
// keeps the file system for itself: here it is gone, or it could never be mounted
// writable again.
func unmount(dir string, limit time.Duration) error {
	err := whileBusy(limit, func() error { return unix.Unmount(dir, 0) })
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(dir, unix.MNT_DETACH)
	}
	if err != nil {
		return fmt.Errorf("unmount %q: %w", dir, err)
	}
	return nil
}

// whileBusy calls again what says that something is in use, until the limit. Nothing
// tells when it's in use no more.
func whileBusy(limit time.Duration, call func() error) error {
	for begun := time.Now(); ; time.Sleep(busyEach) {
		if err := call(); !errors.Is(err, unix.EBUSY) || time.Since(begun) > limit {
			return err
		}
	}
}

// lockESP waits until no other process has the ESP mounted: the kernel refuses a
// file system that's mounted read-only a second, writable mount.
func lockESP() (unlock func(), err error) {
	f, err := os.OpenFile("/run/capsule/esp.lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock ESP: %w", err)
	}
	return func() { f.Close() }, nil
}

// syncTree brings all that was written to a file system to its disk. For FAT syncfs
// doesn't have the disk empty its own cache, fsync does.
func syncTree(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := errors.Join(unix.Syncfs(int(f.Fd())), f.Sync()); err != nil {
		return fmt.Errorf("sync %q: %w", dir, err)
	}
	return nil
}
