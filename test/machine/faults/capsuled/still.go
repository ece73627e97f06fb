//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// standStill is a process 1 that gets nowhere.
func standStill() error {
	if err := say(standsStill()); err != nil {
		return err
	}
	return hang()
}

// freezeInit stops process 1 dead, for as long as this process lives: for ever.
func freezeInit() error {
	if err := freeze(1); err != nil {
		err = fmt.Errorf("stop process 1: %w", err)
		return errors.Join(err, say(err.Error()))
	}
	return standStill()
}

// freezeAtEnd lets the real serve run, as a child that never hears of the end.
func freezeAtEnd() error {
	end := make(chan os.Signal, 1)
	signal.Notify(end, unix.SIGTERM)
	runtime.LockOSThread() // the child ends with the thread that has started it
	cmd := exec.Command(realProgram, "serve")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-end:
		return freezeInit()
	case err := <-ended:
		return fmt.Errorf("serve ended: %w", err)
	}
}

// say prints to the kernel's consoles, at a level that "quiet" lets through.
func say(text string) error {
	f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintf(f, "<3>fault: %s\n", text)
	return err
}

// standsStill is what tests look for: see Standstill of test/machine/faults.
func standsStill() string {
	var up unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) // can't fail on Linux
	return fmt.Sprintf("process 1 stands still uptime=%.3f", time.Duration(up.Nano()).Seconds())
}

// freeze stops all threads of a process. They go on when the calling thread, to
// which the goroutine is bound from now on, ends.
func freeze(pid int) error {
	runtime.LockOSThread()
	held := map[int]bool{}
	for {
		ids, err := threads(pid)
		if err != nil {
			return err
		}
		fresh := 0
		for _, id := range ids {
			if held[id] {
				continue
			}
			fresh++
			if err := stop(id); err == nil {
				held[id] = true
			} else if s := state(pid, id); s != "" && s != "Z" && s != "X" { // it has not ended meanwhile
				return fmt.Errorf("thread %d: %w", id, err)
			}
		}
		if fresh == 0 { // and so nobody is left who could start another
			return frozen(pid, ids)
		}
	}
}

// stop stops one thread. Signals don't do that to process 1; a tracer does.
func stop(thread int) error {
	if err := unix.PtraceSeize(thread); err != nil {
		return err
	}
	if err := unix.PtraceInterrupt(thread); err != nil {
		return err
	}
	for {
		_, err := unix.Wait4(thread, nil, unix.WALL, nil)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// frozen makes sure that each thread is stopped by its tracer.
func frozen(pid int, threads []int) error {
	for _, id := range threads {
		if s := state(pid, id); s != "t" {
			return fmt.Errorf("thread %d is in state %q", id, s)
		}
	}
	return nil
}

func threads(pid int) ([]int, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil, err
	}
	var ids []int
	for _, e := range entries {
		id, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// state is one of the letters of proc_pid_stat(5), "" without such a thread.
func state(pid, thread int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/stat", pid, thread))
	return stateOf(string(b))
}

// stateOf finds it behind the name, which may hold anything, in parentheses.
func stateOf(stat string) string {
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(f) == 0 {
		return ""
	}
	return f[0]
}
