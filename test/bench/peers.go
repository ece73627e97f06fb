package main

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"capsule/internal/lab"
	"capsule/internal/qemu"
	"capsule/internal/run"
)

// A peer is what people run containers with at home: a Debian 13 with an engine. It
// runs on the machine that lab gives a capsule, with the same processor, memory, disk
// and network, but for the firmware: QEMU itself loads the kernel. What is measured
// begins with the kernel on both sides.
type peer struct {
	debianRecipe
	title string
}

//go:embed peer/run.sh
var peerRun string

//go:embed peer/docker.sh
var peerDocker string

//go:embed peer/podman.sh
var peerPodman string

// peers are compared in this order. The packages are what each can't do without, and
// no recommended ones: a machine that is installed as usual has more of all.
var peers = [2]peer{
	newPeer("Docker", peerDocker, "After=docker.service", "docker.io", "docker-cli"),
	newPeer("Podman", peerPodman, "", "podman", "crun", "netavark", "nftables"),
}

const (
	peerDiskMB     = 8192 // as lab gives a capsule
	peerMemory     = 1024 * mib
	peerManyMemory = 2048 * mib
	peerMax        = 40 * time.Minute // of one run of a peer
	copyMax        = 10 * time.Minute
)

func newPeer(title, engine, after string, packages ...string) peer {
	return peer{title: title, debianRecipe: debianRecipe{
		Name: filepath.Join("peers", title),
		Packages: append([]string{"systemd-sysv", "udev", "dbus", "openssh-server", "ca-certificates", "e2fsprogs",
			"initramfs-tools", "linux-image-amd64", "zstd"}, packages...),
		Services: []string{"bench.service", "systemd-networkd.service"},
		DiskMB:   peerDiskMB,
		Files: map[string]string{
			"etc/hostname":                    "peer\n",
			"etc/hosts":                       "127.0.0.1 localhost peer\n",
			"etc/fstab":                       "LABEL=" + debianLabel + " / ext4 defaults,errors=remount-ro 0 1\n",
			"etc/systemd/network/lan.network": "[Match]\nName=en*\n\n[Network]\nDHCP=yes\n",
			"usr/lib/bench/run":               peerRun,
			"usr/lib/bench/engine":            engine,
			"etc/systemd/system/bench.service": `[Unit]
Description=Do what the kernel's command line asks for
ConditionKernelCommandLine=bench
` + after + `

[Service]
ExecStart=/bin/bash /usr/lib/bench/run

[Install]
WantedBy=multi-user.target
`,
		},
	}}
}

// prepared is a peer whose engine has the example's image, and nothing else. It is
// made once, by one start, and kept beside the peer's disk.
func (b *bench) prepared(ctx context.Context, p peer) (debian, error) {
	d, err := b.debian(ctx, p.debianRecipe)
	if err != nil {
		return d, err
	}
	image, err := os.ReadFile(filepath.Join(b.repository, "build/example", archiveFile))
	if err != nil {
		return d, fmt.Errorf("%w; run make example", err)
	}
	dir := filepath.Dir(d.Disk)
	made, err := os.ReadFile(filepath.Join(dir, "made-of"))
	if err != nil {
		return d, err
	}
	stamp, built := filepath.Join(dir, "prepared-of"), d.Disk
	d.Disk = filepath.Join(dir, "prepared.img")
	recipe := fmt.Sprintf("%s%x\n", made, sha256.Sum256(image))
	if had, err := os.ReadFile(stamp); err == nil && string(had) == recipe {
		return d, nil
	}
	fmt.Fprintf(os.Stderr, "bench: load the image into %s, once\n", p.title)
	loadable, err := withDockerManifest(image, exampleImage)
	if err != nil {
		return d, fmt.Errorf("%s: %w", archiveFile, err)
	}
	archive := filepath.Join(dir, archiveFile)
	if err := errors.Join(os.RemoveAll(stamp), os.WriteFile(archive, loadable, 0o600), copyDisk(ctx, d.Disk, built)); err != nil {
		return d, err
	}
	m := peerMachine{peer: p, debian: d, memory: peerMemory, kept: true, scenario: "setup", args: []string{
		"-drive", "if=none,id=image,format=raw,readonly=on,file=" + archive, "-device", "virtio-blk-pci,drive=image,serial=image",
	}}
	if _, err := m.run(ctx, nil); err != nil {
		return d, errors.Join(err, os.Remove(d.Disk))
	}
	return d, os.WriteFile(stamp, []byte(recipe), 0o644)
}

func copyDisk(ctx context.Context, to, from string) error {
	_, err := run.Output(ctx, copyMax, "cp", "--sparse=always", from, to)
	return err
}

// peerMachine is one start of a peer.
type peerMachine struct {
	peer
	debian
	memory   int64 // bytes
	icount   bool  // an instruction takes a nanosecond
	kept     bool  // what is written to the disk stays
	scenario string
	words    string // further ones for the kernel's command line
	args     []string
}

// arguments of QEMU: as lab's for a capsule that is emulated on one processor, but for
// the firmware (internal/lab/qemu.go).
func (m peerMachine) arguments() []string {
	disk := "if=none,id=disk,format=raw,discard=unmap,detect-zeroes=unmap,cache=writeback,file=" + m.Disk
	if !m.kept {
		disk += ",snapshot=on"
	}
	args := []string{
		"-name", "peer-" + m.title, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35", "-accel", qemu.EmulatedAccel, "-cpu", qemu.EmulatedCPU,
		"-smp", "1", "-m", fmt.Sprintf("%dM", m.memory/mib),
		"-kernel", m.Kernel, "-initrd", m.Initramfs,
		"-append", "root=LABEL=" + debianLabel + " ro console=ttyS0,115200 panic=-1 quiet printk.time=1 printk.devkmsg=on systemd.mask=timers.target bench=" + m.scenario + m.words,
		"-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,id=nic0,romfile=",
		"-device", "virtio-rng-pci", "-device", "i6300esb", "-serial", "stdio",
		"-drive", disk, "-device", "virtio-blk-pci,drive=disk,serial=peer",
	}
	if m.icount {
		args = append(args, "-icount", icount)
	}
	return append(args, m.args...)
}

// options are those of the capsule beside the peers.
func peerOptions(name string, memory int64, counted bool) lab.Options {
	o := lab.Options{Name: name, MemoryBytes: memory, CPUs: 1, Accel: "tcg", DiskBytes: peerDiskMB * mib}
	if counted {
		o.ICount = icount
	}
	return o
}
