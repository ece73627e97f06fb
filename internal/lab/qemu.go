//go:build unix

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"capsule/internal/qemu"
	"capsule/internal/run"
)

// What a machine can't do without; both are packages of the system.
var (
	ErrNoQEMU     = errors.New("no program qemu-system-x86_64")
	ErrNoFirmware = errors.New("not found")
)

// launchMax is from QEMU's start until it is in the background; it opens
// files and sockets only.
const launchMax = 60 * time.Second

func findQEMU() (string, error) {
	path, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return "", ErrNoQEMU
	}
	return path, nil
}

// Start powers the machine on; one that runs is left alone.
func (m *Machine) Start(ctx context.Context) error {
	if m.Running() {
		m.say("machine %q runs already", m.Name)
		return nil
	}
	qemu, err := findQEMU()
	if err != nil {
		return err
	}
	for _, name := range []string{"qmp", "console"} {
		if err := os.Remove(m.socket(name)); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("start machine %q: %w", m.Name, err)
		}
	}
	if err := os.MkdirAll(m.Sockets, 0o700); err != nil {
		return fmt.Errorf("start machine %q: %w", m.Name, err)
	}
	m.say("start QEMU (%s)", m.accelText())
	if _, err := run.Output(ctx, launchMax, qemu, m.arguments()...); err != nil {
		return fmt.Errorf("start machine %q: %w", m.Name, err)
	}
	return nil
}

func (m *Machine) accelText() string {
	if m.AccelReason == "" {
		return m.Accel
	}
	return m.Accel + ", " + m.AccelReason
}

// arguments of QEMU. A pure function of the machine.
func (m *Machine) arguments() []string {
	cpu, accel := qemu.EmulatedCPU, qemu.EmulatedAccel
	if m.Accel == "kvm" {
		cpu, accel = "host", "kvm"
	}
	args := []string{
		"-name", "capsule-" + m.Name,
		"-nodefaults", "-no-user-config", "-display", "none", "-daemonize",
		"-pidfile", m.path("qemu.pid"),
		"-machine", "q35", "-accel", accel, "-cpu", cpu,
		"-smp", fmt.Sprint(m.CPUs), "-m", fmt.Sprintf("%dM", m.MemoryBytes>>20),
		"-drive", "if=pflash,unit=0,format=raw,readonly=on,file=" + quote(m.Firmware),
		"-drive", "if=pflash,unit=1,format=raw,file=" + quote(m.path("variables.fd")),
		"-netdev", m.netdev(),
		"-device", "virtio-net-pci,netdev=net0,id=nic0,romfile=",
		"-device", "virtio-rng-pci",
		"-device", "i6300esb", "-action", "watchdog=reset",
		"-chardev", "socket,id=console,server=on,wait=off,logappend=on,path=" + quote(m.socket("console")) + ",logfile=" + quote(m.ConsoleLog()),
		"-serial", "chardev:console",
		"-chardev", "socket,id=qmp,server=on,wait=off,path=" + quote(m.socket("qmp")),
		"-mon", "chardev=qmp,mode=control",
	}
	args = append(args, m.diskArguments()...)
	if m.ICount != "" {
		args = append(args, "-icount", m.ICount)
	}
	return append(args, m.Args...)
}

func (m *Machine) diskArguments() []string {
	if m.Record {
		return m.recordArguments()
	}
	args := []string{"-drive", "if=none,id=disk,format=raw,discard=unmap,detect-zeroes=unmap,cache=" + m.DiskCache + ",file=" + quote(m.Disk())}
	if m.BlockBytes == 0 {
		return append(args, "-device", "virtio-blk-pci,drive=disk,serial=capsule-lab,bootindex=0")
	}
	args = append(args, "-device", fmt.Sprintf("nvme,drive=disk,serial=capsule-lab,bootindex=1,addr=0x18,logical_block_size=%d,physical_block_size=%d", m.BlockBytes, m.BlockBytes))
	if m.Stick {
		args = append(args, m.stickArguments()...)
	}
	return args
}

// stickArguments plug it into a USB controller.
func (m *Machine) stickArguments() []string {
	return []string{
		"-drive", "if=none,id=stick,format=raw,file=" + quote(m.StickImage()),
		"-device", "qemu-xhci,id=usb",
		"-device", "usb-storage,bus=usb.0,removable=on,drive=stick,serial=capsule-stick,bootindex=0",
	}
}

func (m *Machine) netdev() string {
	if m.Tap != "" {
		return "tap,id=net0,script=no,downscript=no,ifname=" + quote(m.Tap)
	}
	_, apiPort, _ := net.SplitHostPort(m.API) //nolint:errcheck // written by Create
	parts := []string{"user,id=net0", fmt.Sprintf("hostfwd=tcp:127.0.0.1:%s-:%d", apiPort, capsulePort)}
	if m.Restrict {
		parts = append(parts, "restrict=on")
	}
	for _, p := range m.Publish {
		parts = append(parts, fmt.Sprintf("hostfwd=%s:127.0.0.1:%d-:%d", p.Protocol, p.HostPort, p.Port))
	}
	return strings.Join(parts, ",")
}

// quote writes a value for QEMU's comma-separated options.
func quote(s string) string { return strings.ReplaceAll(s, ",", ",,") }
