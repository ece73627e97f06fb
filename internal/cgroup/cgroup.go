// Package cgroup reads and ends groups of the kernel's control groups, version 2:
// https://docs.kernel.org/admin-guide/cgroup-v2.html
package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Root is where the hierarchy is mounted.
const Root = "/sys/fs/cgroup"

// Group is the folder of a group.
type Group string

// Use is what the processes of a group take together.
type Use struct {
	Memory uint64 // bytes, without the pages of files that the kernel can drop at once
	CPU    time.Duration
	PIDs   uint64
}

// Use reads it.
func (g Group) Use() (Use, error) {
	memory, err1 := g.counter("memory.current", "")
	cache, err2 := g.counter("memory.stat", "inactive_file")
	usec, err3 := g.counter("cpu.stat", "usage_usec")
	pids, err4 := g.counter("pids.current", "")
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return Use{}, err
	}
	return Use{Memory: memory - min(cache, memory), CPU: time.Duration(usec) * time.Microsecond, PIDs: pids}, nil
}

// OutOfMemory tells whether the kernel killed for memory in the group.
func (g Group) OutOfMemory() bool {
	n, err := g.counter("memory.events", "oom_kill")
	return err == nil && n > 0
}

// MemoryMax is the limit of the group's memory in bytes; 0 without one.
func (g Group) MemoryMax() (int64, error) {
	text, err := os.ReadFile(filepath.Join(string(g), "memory.max"))
	if err != nil || strings.TrimSpace(string(text)) == "max" {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
}

// AlonePercent is what one of many groups may have of the memory of all when no limit
// was given to it: it meets its own end before the others meet it.
const AlonePercent = 75

// LimitMemory of one of all by that; they may have no limit.
func (g Group) LimitMemory(all Group) error {
	most, err := all.MemoryMax()
	if err != nil || most == 0 {
		return err
	}
	return g.Set("memory.max", strconv.FormatInt(most/100*AlonePercent, 10))
}

// Kill ends all processes in the group.
func (g Group) Kill() error { return g.Set("cgroup.kill", "1") }

// End ends all processes in the group and those below it, and waits until the kernel
// says that none is left, at most for the limit. A group that is gone has none.
func (g Group) End(limit time.Duration) error {
	if err := g.Kill(); err != nil {
		return g.unlessGone(fmt.Errorf("kill group %q: %w", g, err))
	}
	events, err := os.Open(filepath.Join(string(g), "cgroup.events"))
	if err != nil {
		return g.unlessGone(err)
	}
	defer events.Close()
	for deadline := time.Now().Add(limit); ; {
		buf := make([]byte, 256)
		n, _ := events.ReadAt(buf, 0) // what can't be read isn't empty
		if strings.Contains(string(buf[:n]), "populated 0") {
			return nil
		}
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("kill group %q: processes are left after %v", g, limit)
		}
		fds := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}} //nolint:gosec // a small number
		_, _ = unix.Poll(fds, int(left.Milliseconds())+1)                    // a signal just looks again
	}
}

// unlessGone is the error, or nil where somebody has removed the group meanwhile.
func (g Group) unlessGone(err error) error {
	if _, statErr := os.Stat(string(g)); os.IsNotExist(statErr) {
		return nil
	}
	return err
}

// Set writes a file of the group, which has to be there.
func (g Group) Set(file, value string) error {
	f, err := os.OpenFile(filepath.Join(string(g), file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}

// counter reads a number of a file, of the line that starts with key when there
// is one.
func (g Group) counter(file, key string) (uint64, error) {
	data, err := os.ReadFile(filepath.Join(string(g), file))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		value := strings.TrimSpace(line)
		if key != "" {
			var ok bool
			if value, ok = strings.CutPrefix(value, key+" "); !ok {
				continue
			}
		}
		return strconv.ParseUint(value, 10, 64)
	}
	return 0, fmt.Errorf("%s has no %q", file, key)
}
