// Package usage reads what the whole machine has taken up since its start, from
// the kernel's own counters. It keeps nothing.
package usage

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Machine is what the machine has taken up. Bytes but for CPU.
type Machine struct {
	CPU                          time.Duration // of all processors, but when idle
	MemoryTotal, MemoryUsed      uint64        // now; what can be given back at once is not used
	DiskRead, DiskWritten        uint64        // of real disks
	NetworkReceived, NetworkSent uint64        // of real network cards
}

// tick is the unit of /proc/stat, which is the same on all machines for programs.
const tick = 10 * time.Millisecond

// sector is the unit of /sys/block/*/stat, whatever a disk's own is.
const sector = 512

// Read reads all counters; root is "/", but in a test.
func Read(root string) (Machine, error) {
	var m Machine
	text, err := os.ReadFile(filepath.Join(root, "proc/stat"))
	if err != nil {
		return m, fmt.Errorf("read use of processors: %w", err)
	}
	m.CPU = busy(string(text))
	memory := func(field string) uint64 { return meminfo(root, field) }
	m.MemoryTotal = memory("MemTotal")
	m.MemoryUsed = m.MemoryTotal - min(memory("MemAvailable"), m.MemoryTotal)
	for _, disk := range real(root, "sys/block/*/device") {
		text, _ := os.ReadFile(filepath.Join(disk, "stat")) // it may just have been pulled
		if f := numbers(string(text)); len(f) > 6 {
			m.DiskRead += f[2] * sector
			m.DiskWritten += f[6] * sector
		}
	}
	for _, card := range real(root, "sys/class/net/*/device") {
		m.NetworkReceived += number(filepath.Join(card, "statistics/rx_bytes"))
		m.NetworkSent += number(filepath.Join(card, "statistics/tx_bytes"))
	}
	return m, nil
}

// real are the folders of devices that are none of the kernel's own making.
func real(root, pattern string) []string {
	found, _ := filepath.Glob(filepath.Join(root, pattern)) // the pattern is good
	for i := range found {
		found[i] = filepath.Dir(found[i])
	}
	return found
}

// busy is the time in the first line of /proc/stat: user, nice, system, idle,
// iowait, irq, softirq, steal; time of guests is in that of users.
func busy(text string) time.Duration {
	line, _, _ := strings.Cut(text, "\n")
	var sum uint64
	for i, n := range numbers(strings.TrimPrefix(line, "cpu")) {
		if i < 8 && i != 3 && i != 4 {
			sum += n
		}
	}
	return time.Duration(sum) * tick //nolint:gosec // centuries
}

func meminfo(root, field string) uint64 {
	text, _ := os.ReadFile(filepath.Join(root, "proc/meminfo")) // absent is none
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			if n := numbers(strings.TrimSuffix(strings.TrimSpace(rest), "kB")); len(n) == 1 {
				return n[0] << 10
			}
		}
	}
	return 0
}

func number(file string) uint64 {
	text, _ := os.ReadFile(file) // absent is none
	if n := numbers(string(text)); len(n) == 1 {
		return n[0]
	}
	return 0
}

// numbers are those that a text begins with.
func numbers(text string) (list []uint64) {
	for _, f := range strings.Fields(text) {
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			break
		}
		list = append(list, n)
	}
	return list
}
