// Package pid1 is the machine's first process: it mounts, loads modules, feeds the
// watchdog, supervises containerd and "capsuled serve", reaps, and turns the
// machine off. It knows no workload and keeps no state of its own; whatever can
// go wrong with the data ends in recovery mode, in which serve tells the operator
// why and nothing is written.
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
	bootMax  = 30 * time.Minute // a full check of /perm is the longest step
	tickEach = 10 * time.Second // the main loop proves to the watchdog that it turns
	sysfs    = "/sys"
	permDir  = "/perm"
)

// A machine is what PID 1 knows about this boot.
type machine struct {
	log     *journal
	dog     *watchdog.Watchdog
	modules *kmod.Set
	boot    disk.Boot
	reason  string // why we're in recovery mode; empty in normal mode
	kids    family
	buttons sync.Map // names of the power buttons that are watched

	containerd *service
	serve      *service
	ready      bool        // serve said so
	blessed    atomic.Bool // or being done
}

// Run is the life of PID 1. It doesn't return.
func Run() {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGUSR2)

	m := &machine{log: &journal{}}
	m.step("mounts", mountAll)
	m.log.open()
	m.log.say("capsule %s starts", version.Version)
	m.step("clock", func() error { _, err := clock.SetFloor(""); return err })
	m.dog = watchdog.Start("/dev", bootMax)
	m.step("watchdog", m.armSoftdog)
	m.step("control groups", makeGroups)
	m.step("kernel settings", tuneKernel)
	m.boot, _ = disk.ReadBoot() // without it there's no PERM, which is a reason for recovery mode
	m.step("modules", func() error { return m.modules.Load(first...) })
	go m.drivers(ctx, signals)

	notices, err := listenNotices(ctx, noticeSocket)
	if err != nil {
		m.log.say("listen for readiness: %v", err)
	}
	created := false
	m.step("perm", func() (err error) { created, err = m.openPerm(ctx); return err })
	if m.reason == "" {
		m.log.keep(permDir + "/logs/system")
		m.step("saved clock", func() error { _, err := clock.SetFloor(clock.SavedFile); return err })
	} else {
		m.log.keep("/run/capsule/logs/system")
	}
	m.step("host name", m.nameHost)
	m.log.hush(true)
	m.startServices(ctx)
	go m.finishStorage(ctx, created)

	order := m.live(signals, notices)
	cancel()
	m.log.hush(false)
	m.shutdown(order, signals)
}

// step runs one part of the start. A failure is said and the start goes on: a
// machine that can be reached is worth more than a clean list.
func (m *machine) step(name string, fn func() error) {
	begin := time.Now()
	if err := fn(); err != nil {
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
	"dm_mod", "ext4", "dm_thin_pool", "overlay", "loop", "erofs",
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

// live is the machine's normal state; it ends with the wish to shut down.
func (m *machine) live(signals <-chan os.Signal, notices <-chan string) shutdownKind {
	tick := time.NewTicker(tickEach)
	defer tick.Stop()
	for {
		m.dog.Alive(watchdog.Timeout)
		m.bless()
		select {
		case s := <-signals:
			return kindOf(s)
		case text := <-notices:
			if text == "READY=1" && !m.ready {
				m.ready = true
				m.log.say("containerd answers and the network is made")
			}
		case <-tick.C:
			m.dog.Open()
		}
	}
}

// bless marks the boot entry as good once the whole system works; it's tried
// again with each turn of the main loop. In recovery mode the entry stays counted,
// so that a version that can't read /perm gives way to the other.
func (m *machine) bless() {
	if !m.ready || m.reason != "" || !m.blessed.CompareAndSwap(false, true) {
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
