package pid1

import (
	"path/filepath"
	"strconv"
)

const mib = 1 << 20

// What the capsule's own programs are sure of, in memory that is taken from nobody
// while they don't use it, and in processor time against the 100 of all workloads
// together. How the numbers were measured: docs/decisions/0024-limits.md.
var services = []struct {
	group  string
	memory uint64 // bytes
	weight int
}{
	{groupInit, 32 * mib, 1000},
	{groupServe, 96 * mib, 1000},
	{groupContainerd, 64 * mib, 500},
	{groupShims, 48 * mib, 100},
}

const (
	systemMin  = 128 * mib // kept from workloads on any machine
	systemPart = 32        // and this part of its memory
	systemMax  = 1 << 30   // together

	threadsMax    = 131072 // on the machine
	threadsSystem = 8192   // of these, which workloads can't have
)

// shares bound all workloads together and protect what keeps them.
func shares(memory uint64) []setting {
	var list []setting
	set := func(group, file string, n uint64) {
		list = append(list, setting{filepath.Join(groupRoot, group, file), strconv.FormatUint(n, 10)})
	}
	var sum uint64
	for _, s := range services {
		sum += s.memory
		set(s.group, "memory.min", s.memory)
		set(s.group, "cpu.weight", uint64(s.weight)) //nolint:gosec // a small number
	}
	set(groupAll, "memory.min", sum)
	set(groupApps, "memory.max", forWorkloads(memory))
	set(groupApps, "pids.max", threadsMax-threadsSystem)
	return list
}

// forWorkloads is the memory that all of them may have together.
func forWorkloads(memory uint64) uint64 {
	return memory - min(systemMin+memory/systemPart, systemMax, memory/2)
}
