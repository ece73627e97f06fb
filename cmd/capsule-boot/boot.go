package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"capsule/internal/disk"
	"capsule/internal/kmod"
	"capsule/internal/slot"
	"capsule/internal/watchdog"
)

const (
	diskMax = 60 * time.Second // a slow USB bridge or a spinning disk needs half of it
	sayLate = 5 * time.Second  // a message when the disk isn't there by then
	copyMax = 3 * time.Second  // for the disk that the firmware booted, when a copy of it came first
	newRoot = "/sysroot"
	nextPID = "/usr/bin/capsuled"
	sysfs   = "/sys"
)

// boot is the way from the kernel to capsuled, in order. It only returns on error.
func boot(ctx context.Context) error {
	if err := mountKernel(); err != nil {
		return err
	}
	note("started")
	hurry()
	line, err := readCmdline()
	if err != nil {
		return err
	}
	modules, err := kmod.Open("/")
	if err != nil {
		return err
	}
	listener, err := kmod.Listen()
	if err != nil {
		return err
	}
	dog := watchdog.New("/dev")
	guard(modules, dog)
	_ = modules.Load("sha256_ssse3") // a processor without it has the kernel's slow one
	if err := modules.Load("dm_mod", "dm_verity", "erofs"); err != nil {
		return err
	}
	esp, err := bootedESP(modules, line)
	if err != nil {
		return err
	}
	d, err := waitDisk(ctx, modules, listener, esp, dog)
	if err != nil {
		return err
	}
	_ = listener.Close()
	dog.Feed()
	name, err := mountSlot(d, line)
	if err != nil {
		return err
	}
	note("root of %s mounted", name)
	if err := describe(d, esp, name).Write("/"); err != nil {
		return fmt.Errorf("tell the system how we booted: %w", err)
	}
	return switchRoot()
}

// mountKernel makes the file systems that only live in memory.
func mountKernel() error {
	_ = os.MkdirAll(newRoot, 0o755)
	for _, m := range []struct{ kind, dir, data string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devtmpfs", "/dev", "mode=0755"},
		{"tmpfs", "/run", "mode=0755"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		flags := uintptr(unix.MS_NOSUID | unix.MS_NOEXEC)
		if m.kind == "tmpfs" {
			flags |= unix.MS_NODEV
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, flags, m.data); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	return nil
}

// hurry lets the kernel's waits for its other processors be short ones until
// capsuled has loaded its modules: each module waits a few times, by the tick of the
// clock otherwise.
func hurry() { _ = os.WriteFile("/sys/kernel/rcu_expedited", []byte("1"), 0) }

// A cmdline is what the unified kernel image says about its root.
type cmdline struct {
	root slot.Root
	slot string // a hint
	esp  string // only for boots without EFI variables
}

func readCmdline() (cmdline, error) {
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return cmdline{}, err
	}
	return parseCmdline(string(b))
}

func parseCmdline(text string) (c cmdline, err error) {
	for _, word := range strings.Fields(text) {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "capsule.slot":
			c.slot = value
		case "capsule.esp":
			c.esp = value
		}
	}
	c.root, err = slot.ParseRoot(text)
	return c, err
}

func bootedESP(modules *kmod.Set, line cmdline) (string, error) {
	if line.esp != "" {
		return line.esp, nil
	}
	if err := modules.Load("efivarfs"); err != nil {
		return "", err
	}
	if err := unix.Mount("efivarfs", disk.EFIVars, "efivarfs", unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_NODEV, ""); err != nil {
		return "", fmt.Errorf("mount EFI variables: %w", err)
	}
	return disk.BootedESP(disk.EFIVars)
}

// guard arms the kernel's own watchdog: what hangs from here on resets the machine.
// Nothing disarms it on the way to capsuled, which feeds it from its first step on.
func guard(modules *kmod.Set, dog *watchdog.Watchdog) {
	if err := modules.Load("softdog"); err != nil {
		say("no watchdog: %v", err)
	}
	dog.Open()
	dog.Feed()
}

// feed feeds the watchdogs during a wait that has an end of its own.
func feed(ctx context.Context, dog *watchdog.Watchdog) {
	tick := time.NewTicker(watchdog.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			dog.Feed()
		}
	}
}

// waitDisk loads drivers until the boot disk with all its partitions is there. A
// look follows each event of a block device, so nothing is polled.
func waitDisk(ctx context.Context, modules *kmod.Set, l *kmod.Listener, esp string, dog *watchdog.Watchdog) (*disk.Disk, error) {
	late := time.AfterFunc(sayLate, func() { say("waiting for the disk with partition %s", esp) })
	defer late.Stop()
	ctx, cancel := context.WithTimeout(ctx, diskMax)
	defer cancel()
	modules.Coldplug(sysfs)
	dog.Open() // the machine's own has its driver now
	go feed(ctx, dog)
	place := disk.BootPlace(disk.EFIVars)
	var found *disk.Disk
	var patience *time.Timer
	look := func() bool {
		d, sure, err := disk.Find(sysfs, esp, place)
		if err != nil || !complete(d) {
			return false
		}
		found = d
		if !sure && patience == nil {
			patience = time.AfterFunc(copyMax, cancel)
		}
		return sure
	}
	defer func() {
		if found != nil && len(found.Copies) > 0 {
			say("disks %q are copies of %s, which we boot from: unplug them", found.Copies, found.Name)
		}
	}()
	if look() {
		return found, nil
	}
	err := modules.Hotplug(ctx, l, sysfs, func(ev kmod.Uevent) {
		if ev.Env["SUBSYSTEM"] == "block" && look() {
			cancel()
		}
	})
	if found != nil {
		return found, nil
	}
	return nil, fmt.Errorf("the disk with partition %s didn't appear within %v: %w", esp, diskMax, err)
}

// complete says whether the kernel has made the devices of all partitions.
func complete(d *disk.Disk) bool {
	for _, p := range d.Table.Partitions {
		if _, err := d.Device(p); err != nil {
			return false
		}
	}
	return true
}

// mountSlot verifies and mounts the slot that this kernel belongs to.
func mountSlot(d *disk.Disk, line cmdline) (string, error) {
	entry, _ := disk.LoaderVar(disk.EFIVars, "LoaderEntrySelected")
	var errs []error
	for _, name := range slot.Order(entry, line.slot) {
		root, err := openSlot(d, name, line)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			continue
		}
		if err := unix.Mount(root, newRoot, "erofs", unix.MS_RDONLY, ""); err != nil {
			return "", fmt.Errorf("mount %s: %w", name, err)
		}
		return name, nil
	}
	return "", fmt.Errorf("no slot of disk %q has this kernel's system: %w", d.Name, errors.Join(errs...))
}

func openSlot(d *disk.Disk, name string, line cmdline) (string, error) {
	device, err := d.DeviceByName(name)
	if err != nil {
		return "", err
	}
	f, err := os.Open(device)
	if err != nil {
		return "", err
	}
	defer f.Close()
	v, err := slot.ReadVerity(f, line.root.DataBytes, line.root.Hash)
	if err != nil {
		return "", err
	}
	return v.Activate("root", device)
}

func describe(d *disk.Disk, esp, name string) disk.Boot {
	b := disk.Boot{Slot: name, Disk: d.Name, ESPUUID: strings.ToLower(esp)}
	if p, ok := d.Table.ByID(esp); ok {
		b.ESP, _ = d.Device(p)
	}
	b.SlotA, _ = d.DeviceByName(disk.SlotA)
	b.SlotB, _ = d.DeviceByName(disk.SlotB)
	b.PERM, _ = d.DeviceByName(disk.PERM) // absent: the system starts in recovery mode
	return b
}

// switchRoot moves the mounts over, frees the initramfs and becomes capsuled.
func switchRoot() error {
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run"} {
		if err := unix.Mount(dir, newRoot+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", dir, err)
		}
	}
	if err := unix.Chdir(newRoot); err != nil {
		return err
	}
	for _, dir := range []string{"/usr", "/kernel", "/init"} { // frees 10 MiB of memory, microcode for the most part; nothing of it is used any more
		_ = os.RemoveAll(dir)
	}
	if err := unix.Mount(newRoot, "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the new root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	return fmt.Errorf("start %s: %w", nextPID, unix.Exec(nextPID, []string{"capsuled"}, []string{"PATH=/usr/bin:/usr/sbin:/bin:/sbin", "HOME=/root"}))
}
