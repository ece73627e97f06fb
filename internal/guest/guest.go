// Package guest is the agent in a microVM: process 1 there, which makes the
// payload's root, starts the payload in namespaces and a cgroup of its own, and
// does what the capsule asks over the channel. Nothing of it runs on a capsule
// itself but package channel.
//
// The life of a guest, told by State:
//
//	boot ──▶ ready ──Run──▶ running ──exit, Stop──▶ ended ──PowerOff──▶
//
// An end is told when all that the payload printed has left the guest and its
// disks are unmounted; it is kept until the guest is powered off. What goes wrong
// before the agent serves is printed to the console, and ends the guest.
//
// The payload can harm the agent no more than any process can harm another one's
// parent; the wall is the machine around both, and the capsule believes neither.
package guest

import (
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// memorySoftMax is the agent's heap above which the collector works harder: it
// shares 64 MiB with the kernel.
const memorySoftMax = 16 << 20

// Main is process 1. It does not return.
func Main() {
	if os.Getpid() != 1 { // it would restart somebody's machine
		say("this is the first process of a microVM, and runs nowhere else")
		os.Exit(2)
	}
	debug.SetMemoryLimit(memorySoftMax)
	say("%v", serve()) // it only ends by an error
	powerOff()
}

// powerOff ends the machine. A restart is what its QEMU ends by (-no-reboot),
// whatever devices it has.
func powerOff() {
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		say("power off: %v", err)
	}
	select {} // never ends by itself: that would be a panic of the kernel
}

// say prints to the console, which the capsule keeps as the serial log.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "capsule-guest: "+format+"\n", args...)
}

// uptime is how long the kernel runs.
func uptime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) // can't fail on Linux
	return time.Duration(t.Nano())
}

// guarded runs a part of the agent; a panic ends that part and not the machine.
func guarded(part string, fn func()) {
	defer func() {
		if p := recover(); p != nil {
			say("%s: panic: %v\n%s", part, p, debug.Stack())
		}
	}()
	fn()
}
