// Capsule-boot is the initramfs: it loads drivers, finds the disk that the
// firmware booted from, verifies the slot that belongs to this kernel, and hands
// over to capsuled on it. It writes to no disk.
//
// In the running system the same small program is the kernel's helper for loading
// modules on demand ("capsule-boot -q -- NAME").
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// panicDelay is how long an operator can read why the boot ended.
const panicDelay = 10 * time.Second

func main() {
	if os.Getpid() != 1 {
		os.Exit(modprobe(os.Args[1:]))
	}
	err := boot(context.Background())
	say("boot failed: %v", err)
	say("the machine restarts in %v; the loader then tries the other system if this one has no tries left", panicDelay)
	time.Sleep(panicDelay) // nothing to wait for: it's time to read
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

// say prints to the kernel's consoles: /dev/kmsg reaches all of them, at a level
// that "quiet" lets through.
func say(format string, args ...any) {
	line := fmt.Sprintf("capsule-boot: "+format, args...)
	if f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		defer f.Close()
		if _, err := fmt.Fprintf(f, "<3>%s\n", line); err == nil {
			return
		}
	}
	fmt.Fprintln(os.Stderr, line)
}

// note writes to the kernel's log only, with the time since the kernel started: how
// long each part of the start took.
func note(format string, args ...any) {
	f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	var up unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) // can't fail on Linux
	text := fmt.Sprintf(format, args...)
	_, _ = fmt.Fprintf(f, "<6>capsule-boot: %s uptime=%.3f\n", text, time.Duration(up.Nano()).Seconds())
}
