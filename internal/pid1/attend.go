package pid1

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"capsule/internal/watchdog"
)

// A task is a part of the boot or of the end. The watchdog is fed when it begins,
// and from then on only when its proof has changed: a task that hangs resets the
// machine, one that is slow doesn't, however long it takes.
type task struct {
	name string
	do   func() error
	// proof is a number that can't stand still while the task gets on; nil when
	// it's over within the watchdog's time in any case.
	proof func() uint64
	// limit of the whole task, stall of a proof that stands still: what passes one
	// of them is left where it is, and the next thing done. 0: the watchdog has the
	// last word.
	limit, stall time.Duration
}

// attend does a task.
func (m *machine) attend(t task) error {
	m.dog.Feed()
	done := make(chan error, 1)
	go func() { done <- t.do() }()
	tick := time.NewTicker(watchdog.Every)
	defer tick.Stop()
	var over <-chan time.Time
	if t.limit > 0 {
		over = time.After(t.limit)
	}
	moved, last, known := time.Now(), uint64(0), false
	for {
		select {
		case err := <-done:
			return err
		case <-over:
			return fmt.Errorf("no end within %v: left", t.limit)
		case <-tick.C:
		}
		if t.proof == nil {
			continue
		}
		now := t.proof()
		if known && now != last {
			moved = time.Now()
			m.dog.Feed()
		}
		last, known = now, true
		if still := time.Since(moved); t.stall > 0 && still >= t.stall {
			return fmt.Errorf("no progress for %v: left", still.Round(time.Second))
		}
	}
}

// work is the proof of whatever uses programs or /perm: the processor time of all
// programs, and how many requests the disk has done for PERM. While storage is
// opened or closed no others run, and nobody else uses the partition. A check of a
// large file system computes or reads; a program that waits for a disk that
// answers no more does neither.
func (m *machine) work() uint64 {
	return programTime("/proc")<<24 + requestsDone(filepath.Join(sysfs, "class/block", filepath.Base(m.boot.PERM), "stat"))
}

// programTime sums the processor time of all programs but process 1, in ticks. The
// kernel's threads prove nothing. The sum also changes when a program ends.
func programTime(proc string) (ticks uint64) {
	files, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "stat"))
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil || filepath.Base(filepath.Dir(file)) == "1" {
			continue
		}
		ticks += timeOf(string(b))
	}
	return ticks
}

const kernelThread = 0x00200000 // PF_KTHREAD of linux/sched.h

// timeOf reads user and system time from /proc/PID/stat (proc_pid_stat(5)); 0 for
// a thread of the kernel. The name, in parentheses, may hold anything.
func timeOf(stat string) uint64 {
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(f) < 13 {
		return 0
	}
	flags, _ := strconv.ParseUint(f[6], 10, 64)
	if flags&kernelThread != 0 {
		return 0
	}
	user, _ := strconv.ParseUint(f[11], 10, 64)
	system, _ := strconv.ParseUint(f[12], 10, 64)
	return user + system
}

// requestsDone counts reads, writes, discards and flushes that a block device has
// completed (kernel Documentation/block/stat.rst).
func requestsDone(file string) (count uint64) {
	b, _ := os.ReadFile(file)
	f := strings.Fields(string(b))
	for _, at := range []int{0, 4, 11, 15} {
		if at < len(f) {
			n, _ := strconv.ParseUint(f[at], 10, 64)
			count += n
		}
	}
	return count
}
