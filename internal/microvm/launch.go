package microvm

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"

	"capsule/internal/jail"
)

// userBase is added to a machine's number for the user that its QEMU runs as.
const userBase = 200000

// What QEMU is, and what it loads, below Options.Root.
const (
	qemuProgram  = "/usr/bin/qemu-system-x86_64"
	qemuLoader   = "/lib64/ld-linux-x86-64.so.2"
	qemuLibs     = "/usr/lib/x86_64-linux-gnu"
	qemuFirmware = "/usr/share/qemu"
)

// guestDir is where QEMU finds kernel and initramfs in its jail.
const guestDir = "/guest"

// disks opens the machine's disks.
func (l *launch) disks(ctx context.Context) error {
	paths, err := l.driver.layers(ctx, l.record)
	if err != nil {
		return err
	}
	layers := make([]*os.File, len(paths))
	for i, path := range paths {
		if layers[i], err = l.open(path, os.O_RDONLY); err != nil {
			return err
		}
	}
	image, made, err := imageDisk(layers, &l.files)
	l.opened = append(l.opened, made...)
	if err != nil {
		return err
	}
	l.machine.Image = image
	if l.machine.Disk, err = l.give(l.driver.disk(l.record), os.O_RDWR); err != nil {
		return err
	}
	for i, m := range l.in.Mounts {
		if err := l.volume(volumeSerial(i), m); err != nil {
			return fmt.Errorf("open volume %q: %w", m.Volume, err)
		}
	}
	return nil
}

// give opens a file for QEMU and tells its number there.
func (l *launch) give(path string, flags int) (int, error) {
	f, err := l.open(path, flags)
	if err != nil {
		return 0, err
	}
	return l.files.Add(f), nil
}

// lines are those to the logger, to us, and to the network.
func (l *launch) lines() error {
	m := &l.machine
	m.Stdout, m.Stderr, m.Serial = l.files.Add(l.console.stdout), l.files.Add(l.console.stderr), l.files.Add(l.console.serial)
	if l.card != nil {
		m.Tap, m.MAC = l.files.Add(l.card.Tap), l.card.MAC
	}
	control, err := l.listen(qmpFile)
	if err != nil {
		return err
	}
	m.QMP = l.files.Add(control)
	if l.driver.opts.Channel == VSock {
		m.CID = contextID(l.facts.Number)
		m.VSock, err = l.give("/dev/vhost-vsock", os.O_RDWR)
		return err
	}
	agent, err := l.listen(agentFile)
	if err != nil {
		return err
	}
	m.Agent = l.files.Add(agent)
	return nil
}

// exec starts QEMU, whose machine stands still yet.
func (l *launch) exec(ctx context.Context) error {
	lock, err := jail.Lock(l.driver.file(l.record, lockFile))
	if err != nil {
		return err
	}
	defer lock.Close()
	cgroup, err := l.driver.makeCgroup(l.in.Name, l.size, l.in.Resources)
	if err != nil {
		return err
	}
	if l.qemu, err = jail.Start(ctx, l.jail(lock, cgroup)); err != nil {
		return err
	}
	return expendable(l.qemu.PID)
}

// jail of QEMU. What it complains of stands with what its guest's kernel prints.
func (l *launch) jail(lock *os.File, cgroup string) jail.Config {
	o, m := l.driver.opts, l.machine
	m.Program, m.Name, m.MemoryMiB, m.VCPUs = o.QEMU, l.in.Name, l.size.MemoryMiB, l.size.VCPUs
	m.IO = l.in.Resources.IO
	m.KVM = o.Emulated == ""
	m.Kernel, m.Initramfs = path.Join(guestDir, "vmlinux"), path.Join(guestDir, "initramfs")
	c := jail.Config{
		Root:    []jail.Mount{{Host: o.Kernel, Path: m.Kernel}, {Host: o.Initramfs, Path: m.Initramfs}},
		Devices: []string{"/dev/null"},                                                     // by which it finds out how files are locked
		UID:     uint32(userBase + l.facts.Number), GID: uint32(userBase + l.facts.Number), //nolint:gosec // at most numberMax
		Cgroup: cgroup, Files: l.files, Lock: lock, Args: m.arguments(), Stderr: l.console.serial,
	}
	if m.KVM {
		c.Devices = append(c.Devices, "/dev/kvm")
	}
	for _, path := range []string{o.QEMU, qemuLoader, qemuLibs, qemuFirmware} {
		c.Root = append(c.Root, jail.Mount{Host: filepath.Join(o.Root, path), Path: path})
	}
	return c
}
