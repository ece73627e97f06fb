package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/cgroup"
	"capsule/internal/clock"
	"capsule/internal/console"
	"capsule/internal/disk"
	"capsule/internal/hardware"
	"capsule/internal/identity"
	"capsule/internal/lastboot"
	"capsule/internal/server"
	"capsule/internal/uplink"
	"capsule/internal/version"
)

const (
	machineIDFile = "/perm/machine-id"
	startsFile    = "/run/capsule/serve-starts"
	noticeVar     = "NOTIFY_SOCKET"
	groups        = "/sys/fs/cgroup/capsule"
)

// machine is this capsule as the API and the console show it.
type machine struct {
	boot   disk.Boot
	starts uint32
	parts  hardware.Watch
	// installs: we run from a stick, with nothing but memory to write to.
	installs bool

	// id is set before anything is served.
	id *identity.Identity

	// farewell lets the API give its last answers.
	farewell func()

	mu     sync.Mutex
	name   string
	reason string // of recovery mode; "" in normal mode
	shown  shown
}

// shown is what changes while the machine runs.
type shown struct {
	ready  bool
	uplink uplink.State
	left   time.Duration // until a tentative system is rolled back

	virtualization string // as in InfoResponse
	disks          string // of a machine to be installed, one a line
}

func newMachine() *machine {
	m := &machine{starts: countStart(), name: "capsule"}
	var err error
	if m.boot, err = disk.ReadBoot(); err != nil {
		slog.Error("boot", "error", err)
	}
	m.parts = hardware.Watch{Root: "/", System: m.boot.Disk}
	if name, err := os.Hostname(); err == nil && name != "" {
		m.name = name
	}
	m.installs = os.Getenv("CAPSULE_MODE") == "installer"
	if m.installs || os.Getenv("CAPSULE_MODE") == "recovery" {
		m.reason = os.Getenv("CAPSULE_MODE_REASON")
		if m.reason == "" {
			m.reason = "the disk's state can't be read"
		}
	}
	return m
}

// countStart counts the starts of this role since boot.
func countStart() uint32 {
	text, _ := os.ReadFile(startsFile) // absent at the first
	n, _ := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	n++
	if err := os.WriteFile(startsFile, strconv.AppendUint(nil, n, 10), 0o644); err != nil {
		slog.Error("count starts", "error", err)
	}
	return uint32(n)
}

func (m *machine) normal() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reason == ""
}

// recover goes to recovery mode; there is no way back but a restart.
func (m *machine) recover(reason string) {
	slog.Error("recovery mode", "reason", reason)
	m.mu.Lock()
	m.reason = reason
	m.mu.Unlock()
	m.update(func(*shown) {})
	// A tentative system gives way at once to one that may read what this one can't.
	if err := notify("CAPSULE_RECOVERY=" + oneLine(reason)); err != nil {
		slog.Error("tell process 1 of the recovery mode", "error", err)
	}
}

// Info is what the machine knows of itself.
func (m *machine) Info() *capsulev1.InfoResponse {
	up := m.uplink()
	m.mu.Lock()
	virtualization := m.shown.virtualization
	m.mu.Unlock()
	info := &capsulev1.InfoResponse{
		Name: m.called(), Id: readWord(m.idFile()), Version: version.Version,
		Kernel: readWord("/proc/sys/kernel/osrelease"), Architecture: runtime.GOARCH, Slot: m.boot.Slot,
		Time: timestamppb.Now(), BootedAt: timestamppb.New(bootedAt()),
		ClockSynchronized: clock.Now().Synced, Cpus: uint32(runtime.NumCPU()),
		DaemonStarts: m.starts, Watchdog: watchdogName(), NetworkMessage: up.Message,
		Virtualization: virtualization,
	}
	for _, a := range up.Addresses {
		info.Addresses = append(info.Addresses, a.String())
	}
	m.addParts(info, up)
	if m.normal() {
		info.PermTotal, info.PermFree = permSpace()
	}
	return info
}

// addParts tells of the parts of the machine: from memory what may take time.
func (m *machine) addParts(info *capsulev1.InfoResponse, up uplink.State) {
	info.CpuModel, info.Load, info.Tpm = hardware.Processor("/"), hardware.Load("/"), hardware.TPM("/")
	info.Temperatures, info.Disks = m.parts.Temperatures(), m.parts.Disks()
	for _, l := range up.Links {
		s := hardware.Link("/", l.Name)
		for _, a := range l.Addresses {
			s.Addresses = append(s.Addresses, a.String())
		}
		info.Uplinks = append(info.Uplinks, s)
	}
	for _, a := range up.DNS {
		info.NameServers = append(info.NameServers, a.String())
	}
	now := clock.Now()
	info.Clock = &capsulev1.ClockState{Server: now.Server, Error: now.Err}
	if !now.At.IsZero() {
		info.Clock.Offset, info.Clock.CheckedAt = durationpb.New(now.Offset), timestamppb.New(now.At)
	}
}

// permSpace gives bytes; zeros when they can't be read.
func permSpace() (total, free uint64) {
	var st unix.Statfs_t
	if err := unix.Statfs("/perm", &st); err != nil {
		return 0, 0
	}
	return st.Blocks * uint64(st.Bsize), st.Bavail * uint64(st.Bsize)
}

// room for workloads, as process 1 has bounded them all and as /perm is.
func room() server.Room {
	memory, err := cgroup.Group(filepath.Join(groups, "apps")).MemoryMax()
	if err != nil {
		slog.Error("read the memory for workloads", "error", err)
	}
	total, _ := permSpace()
	return server.Room{Memory: memory, Disk: int64(total)} //nolint:gosec // sizes
}

func (m *machine) idFile() string {
	if m.installs {
		return ramMachineIDFile
	}
	return machineIDFile
}

func bootedAt() time.Time {
	return time.Now().Add(-uptime())
}

// uptime is the time since the kernel's start.
func uptime() time.Duration {
	var up unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) // can't fail on Linux
	return time.Duration(up.Nano())
}

// watchdogName is the driver of the first real watchdog, else softdog.
func watchdogName() string {
	files, _ := filepath.Glob("/sys/class/watchdog/watchdog*/identity") // the pattern is good
	name := ""
	for _, f := range files {
		if n := readText(f); n != "" && (name == "" || strings.HasPrefix(name, "Software")) {
			name = n
		}
	}
	return name
}

func readText(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func readWord(path string) string {
	word, _, _ := strings.Cut(readText(path), "\n")
	return word
}

// Mode of this start.
func (m *machine) Mode() (capsulev1.Mode, string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.installs:
		return capsulev1.Mode_MODE_INSTALLER, m.reason
	case m.reason != "":
		return capsulev1.Mode_MODE_RECOVERY, m.reason
	}
	return capsulev1.Mode_MODE_NORMAL, ""
}

// Power asks process 1, which stops everything in order.
func (m *machine) Power(state server.PowerState, why string) error {
	sig, kind := unix.SIGTERM, lastboot.Restart
	if state == server.PowerOff {
		sig, kind = unix.SIGUSR2, lastboot.PowerOff
	}
	if err := lastboot.Going(lastboot.GoingFile, lastboot.End{Kind: kind, Text: why}); err != nil {
		slog.Error("note why the machine ends", "error", err)
	}
	if err := unix.Kill(1, sig); err != nil {
		return fmt.Errorf("signal process 1: %w", err)
	}
	return nil
}

// RestartService kills a service with all that it started; workloads and their
// shims are in groups of their own.
func (m *machine) RestartService(name string) error {
	group := map[string]string{"capsuled": "serve", "containerd": "containerd"}[name]
	if group == "" {
		return fmt.Errorf("unknown service %q", name)
	}
	if name == "capsuled" && m.farewell != nil {
		m.farewell()
	}
	return os.WriteFile(filepath.Join(groups, group, "cgroup.kill"), []byte("1"), 0)
}

// SystemLog is where process 1 writes what its services print.
func (m *machine) SystemLog() string {
	if m.installs || os.Getenv("CAPSULE_MODE") == "recovery" {
		return ramLogs
	}
	return "/perm/logs/system"
}

// KernelLog is the kernel's ring.
func (m *machine) KernelLog() string { return "/dev/kmsg" }

func (m *machine) uplink() uplink.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shown.uplink
}

func (m *machine) setUplink(s uplink.State) { m.update(func(now *shown) { now.uplink = s }) }

func (m *machine) timeServers() []string {
	var list []string
	for _, a := range m.uplink().NTP {
		list = append(list, a.String())
	}
	return list
}

// update changes what is shown and shows it.
func (m *machine) update(change func(*shown)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(&m.shown)
	s := console.State{
		Name: m.name, Version: version.Version, Slot: m.boot.Slot, Mode: "normal",
		Reason: m.reason, Network: m.shown.uplink.Message, Ready: m.shown.ready, Left: m.shown.left,
	}
	switch {
	case m.installs:
		s.Mode, s.Disks = "installer", m.shown.disks
	case m.reason != "":
		s.Mode = "recovery"
	}
	m.showClaim(&s)
	if a := m.shown.uplink.Addresses; len(a) > 0 {
		s.Address = netip.AddrPortFrom(a[0].Addr(), apiPort).String()
	}
	console.Show(s)
}

// notify tells process 1, in the form of sd_notify.
func notify(text string) error {
	path := os.Getenv(noticeVar)
	if path == "" {
		return errors.New(noticeVar + " is not set")
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	_, err = conn.Write([]byte(text))
	return errors.Join(err, conn.Close())
}
