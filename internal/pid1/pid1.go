// Package pid1 is the machine's first process: it mounts, loads modules, feeds the
// watchdog, supervises containerd and "capsuled serve", reaps, and turns the
// machine off. It knows no workload and keeps no state of its own; whatever can
// go wrong with the data ends in recovery mode, in which serve tells the operator
// why and nothing is written.
//
// A tentative system, one whose boot entry is still counted while the other slot
// waits, is given up here: serve decides, but may be what is broken (trial).
//
// What hangs resets the machine within a minute, since the watchdog is fed for
// these proofs only (attend, live):
//
//	the boot      a step begins; programs or the disk have worked since
//	afterwards    the main loop has turned, which waits for no disk
//	the end       a part begins; serve has said something; programs or the disk
//	              have worked since
//
// A hung serve is no reason for a reset: it's ended and started again (trial).
package pid1

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"capsule/internal/clock"
	"capsule/internal/disk"
	"capsule/internal/kmod"
	"capsule/internal/slot"
	"capsule/internal/version"
	"capsule/internal/watchdog"
)

const (
	sysfs   = "/sys"
	permDir = "/perm"
)

// A machine is what PID 1 knows about this boot.
type machine struct {
	log     *journal
	dog     *watchdog.Watchdog
	modules *kmod.Set
	boot    disk.Boot
	reason  string // why /perm isn't there: recovery mode, or the installer; empty in normal mode
	medium  medium // that we run from
	// installer: we run from a stick, with nothing but memory to write to.
	installer bool
	kids      family
	buttons   sync.Map // names of the power buttons that are watched

	containerd *service
	serve      *service
	kernel     *kernelLog    // nil where it isn't kept
	driven     chan struct{} // closed once the drivers of all devices were loaded
	learnt     chan struct{} // closed once it's known how the last boot ended
	runs       chan run      // of serve
	found      chan standing // once
	trial      trial
	blessed    atomic.Bool // or being done
}

// Run is the life of PID 1. It doesn't return.
func Run() {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGUSR2)

	m := &machine{log: newJournal(), dog: watchdog.New("/dev"), runs: make(chan run, 4), found: make(chan standing), driven: make(chan struct{}), learnt: make(chan struct{})}
	m.step("mounts", mountAll)
	m.log.open()
	m.log.say("capsule %s starts", version.Version)
	m.step("clock", func() error { _, err := clock.SetFloor(""); return err })
	m.step("watchdog", m.armSoftdog)
	m.step("control groups", makeGroups)
	m.step("kernel settings", tuneKernel)
	m.step("keys", takeKeys)
	m.boot, _ = disk.ReadBoot() // without it there's no PERM, which is a reason for recovery mode
	m.step("modules", func() error { return m.modules.Load(first...) })
	go m.drivers(ctx, signals)
	go m.lookStanding(ctx)

	notices, err := listenNotices(ctx, noticeSocket)
	if err != nil {
		m.log.say("listen for readiness: %v", err)
	}
	created := false
	m.step("medium", m.lookMedium)
	if !m.installer {
		m.step("perm", func() (err error) { created, err = m.openPerm(ctx); return err })
		m.trial.recovery = m.reason
	}
	sign := time.Time{}
	if m.reason == "" {
		sign = lastWritten(permDir + "/logs/system")
		m.log.keep(permDir + "/logs/system")
		m.step("saved clock", func() error { _, err := clock.SetFloor(clock.SavedFile); return err })
	} else {
		m.log.keep("/run/capsule/logs/system")
	}
	m.step("kernel's log", func() (err error) { m.kernel, err = keepKernelLog("/dev/kmsg", m.log.dir); return err })
	go m.learnEnd(ctx, sign)
	m.step("host name", m.nameHost)
	m.log.hush(true)
	m.startServices(ctx)
	go m.finishStorage(ctx, created)

	order := m.live(signals, notices)
	m.log.hush(false)
	m.shutdown(order, signals, notices, cancel)
}

// step runs one part of the start. A failure is said and the start goes on: a
// machine that can be reached is worth more than a clean list. A full check of
// /perm may take its hour; a step that hangs resets the machine.
func (m *machine) step(name string, fn func() error) {
	begin := time.Now()
	if err := m.attend(task{name: name, do: fn, proof: m.work}); err != nil {
		m.log.important("%s: %v", name, err)
		return
	}
	m.log.say("%s done in %v", name, time.Since(begin).Round(time.Millisecond))
}

// armSoftdog arms what is there from the first second on. The machine's own
// watchdog joins as soon as its driver is loaded; both are fed from then on, since
// the kernel's can't notice that the kernel hangs.
func (m *machine) armSoftdog() error {
	var err error
	if m.modules, err = kmod.Open("/"); err != nil {
		return err
	}
	err = m.modules.Load("softdog")
	m.log.say("watchdogs armed: %q", m.dog.Open())
	return err
}

// first are modules that the way to a running containerd needs. They come before
// the devices' drivers, for which it would have to wait otherwise.
var first = []string{
	"dm_mod", "quota_v2", "ext4", "dm_thin_pool", "overlay", "loop", "erofs",
	"vfat", "nls_cp437", "nls_ascii", // of the ESP, on which serve looks for its seed
}

// soon are modules that every capsule needs within its first seconds. The kernel
// would ask for them itself, at the price of a program for each name that it tries.
var soon = []string{
	"veth", "bridge", "nf_tables", "nft_chain_nat", "nft_nat", "nft_masq", "nft_ct", "nft_fib_inet",
	"nf_conntrack_netlink",
}

// drivers loads the driver of each device there is and of each that comes.
func (m *machine) drivers(ctx context.Context, pressed chan<- os.Signal) {
	driven := sync.OnceFunc(func() { close(m.driven) })
	defer driven()
	if m.modules == nil {
		return
	}
	l, err := kmod.Listen()
	if err != nil {
		m.log.important("drivers: %v", err)
		return
	}
	defer func() { _ = l.Close() }()
	begin := time.Now()
	m.modules.Coldplug(sysfs)
	m.log.say("drivers loaded in %v; watchdogs armed: %q", time.Since(begin).Round(time.Millisecond), m.dog.Open())
	driven()
	m.watchButtons(pressed)
	if err := m.modules.Load(soon...); err != nil {
		m.log.say("modules for the network: %v", err)
	}
	// The first stage asked for short waits, which cost the other processors.
	_ = os.WriteFile("/sys/kernel/rcu_expedited", []byte("0"), 0)
	err = m.modules.Hotplug(ctx, l, sysfs, func(ev kmod.Uevent) { m.newButton(ev, pressed) })
	if ctx.Err() == nil {
		m.log.important("drivers of new devices: %v", err)
	}
}

// live is the machine's normal state; it ends with the wish to shut down. It never
// waits for a disk, and so can prove to the watchdog that the machine lives.
func (m *machine) live(signals <-chan os.Signal, notices <-chan string) shutdownKind {
	tick := time.NewTicker(watchdog.Every)
	defer tick.Stop()
	var keys keys
	for {
		m.dog.Feed()
		if m.judge() {
			return restart
		}
		m.bless()
		select {
		case s := <-signals:
			if s != keysSignal {
				return kindOf(s)
			}
			if m.confirmed(&keys) {
				return restart
			}
		case text := <-notices:
			m.hear(text)
		case r := <-m.runs:
			if r.ended {
				m.trial.serveEnded(uptime(), r.how)
			} else {
				m.trial.serveStarts(uptime())
			}
		case found := <-m.found:
			if m.trial.standing != settled { // a confirmation may have come first
				m.trial.standing = found
			}
		case <-tick.C:
			m.dog.Open()
		}
	}
}

// hear takes what serve says.
func (m *machine) hear(text string) {
	before := m.trial
	m.trial.hear(uptime(), text)
	switch {
	case m.trial.ready && !before.ready:
		m.log.say("containerd answers and the network is made")
	case m.trial.standing != before.standing:
		m.blessed.Store(true)
		m.log.important("this version is confirmed")
	case m.trial.window != before.window:
		m.log.say("this version is rolled back unless it's confirmed within %v", m.trial.window)
	}
}

// bless marks the boot entry as good once the whole system works; it's tried
// again with each turn of the main loop. A tentative one is blessed by its
// confirmation alone. In recovery mode the entry stays counted, so that a version
// that can't read /perm gives way to the other.
func (m *machine) bless() {
	if !m.trial.ready || m.reason != "" || m.trial.standing != settled || !m.blessed.CompareAndSwap(false, true) {
		return
	}
	go func() { // a FAT on a dying disk must not hold up the main loop
		if err := slot.Bless(m.boot); err != nil {
			m.log.important("%v", err)
			m.blessed.Store(false)
			return
		}
		m.log.say("the system of %s works: its boot entry is good", m.boot.Slot)
	}()
}

func uptime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t)
	return time.Duration(t.Nano()).Round(time.Millisecond)
}

// fail notes why there's no normal mode.
func (m *machine) fail(err error) error {
	m.reason = fmt.Sprint(err)
	return err
}
