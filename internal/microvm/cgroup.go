package microvm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"capsule/internal/cgroup"
	"capsule/internal/workload"
)

const (
	overheadBytes = 128 * mib // of QEMU beside the guest's memory: its own, and page tables
	threadsMax    = 128       // of QEMU: processors, disks, emulation
)

// makeCgroup gives the folder of a machine's cgroup with its limits set; "" when
// there are none.
func (d *Driver) makeCgroup(name string, s size, r workload.Resources) (string, error) {
	if d.opts.Cgroup == "" {
		return "", nil
	}
	dir := d.cgroup(name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make cgroup: %w", err)
	}
	for file, value := range limits(s, r) {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0); err != nil {
			return "", fmt.Errorf("limit cgroup: %w", err)
		}
	}
	return dir, nil
}

// limits of a machine's cgroup by file.
func limits(s size, r workload.Resources) map[string]string {
	cpu := "max " + strconv.Itoa(cpuPeriod)
	if r.CPUMillis > 0 {
		cpu = fmt.Sprintf("%d %d", max(r.CPUMillis*cpuPeriod/1000, cpuQuotaMin), cpuPeriod)
	}
	return map[string]string{
		"memory.max":       strconv.FormatInt(s.MemoryMiB*mib+overheadBytes, 10),
		"memory.swap.max":  "0",
		"memory.oom.group": "1",
		"cpu.max":          cpu,
		"pids.max":         strconv.Itoa(threadsMax),
	}
}

func (d *Driver) cgroup(name string) string { return filepath.Join(cgroup.Root, d.opts.Cgroup, name) }

// removeCgroup of a machine that has ended. An older generation leaves it to the
// newer one that may run in it by now.
func (d *Driver) removeCgroup(name string) error {
	if d.opts.Cgroup == "" {
		return nil
	}
	err := os.Remove(d.cgroup(name))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrExist) || isBusy(err) {
		return nil
	}
	return err
}
