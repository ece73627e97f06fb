package pid1

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// A setting is a value for a file of /proc/sys or /sys.
type setting struct{ file, value string }

// settings are the same on every capsule, in the order in which they are written.
var settings = []setting{
	// The kernel asks this program for modules that it needs: nftables
	// expressions, file systems, network protocols.
	{"/proc/sys/kernel/modprobe", "/usr/bin/capsule-boot"},
	// A kernel that is known to be broken isn't worth keeping: restart.
	{"/proc/sys/kernel/panic", "10"},
	{"/proc/sys/kernel/panic_on_oops", "1"},
	{"/proc/sys/kernel/kptr_restrict", "1"},
	// Whoever stands before the machine must not restart it by a single key (SysRq-B),
	// nor by a break on the serial line.
	{"/proc/sys/kernel/sysrq", "0"},
	// Many containers that each watch files share these.
	{"/proc/sys/fs/inotify/max_user_instances", "1024"},
	{"/proc/sys/fs/inotify/max_user_watches", "524288"},
	// Many threads are no harm by themselves: the memory of workloads is bounded, and
	// their number too (shares). The kernel's own bounds would be met first on a small
	// machine, by everybody.
	{"/proc/sys/kernel/pid_max", "4194304"},
	{"/proc/sys/kernel/threads-max", strconv.Itoa(threadsMax)},
	{"/proc/sys/fs/file-max", strconv.Itoa(math.MaxInt64)},
	// Huge pages only where they are asked for, as QEMU does: a Go program's heap
	// would grow by 2 MiB at a time.
	{"/sys/kernel/mm/transparent_hugepage/enabled", "madvise"},
}

// tuneKernel writes the settings, and the reserve after them: switching huge
// pages on raises it.
func tuneKernel() error {
	var errs []error
	for _, s := range settings {
		errs = append(errs, s.write())
	}
	return errors.Join(append(errs, tuneReserve(), loopbackUp())...)
}

func (s setting) write() error {
	err := os.WriteFile(s.file, []byte(s.value), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel without it
	}
	return err
}

const (
	smallMachine = 2 << 30 // bytes of memory
	reserveMin   = 4 << 20
)

// tuneReserve gives a small machine the reserve that it would have without huge
// pages. With them the kernel keeps 22 MiB (mm/khugepaged.c,
// set_recommended_min_free_kbytes), and more than twice that is lost to programs
// by the water marks above it.
func tuneReserve() error {
	memory, err := memoryBytes()
	if err != nil || memory >= smallMachine {
		return err
	}
	return setting{"/proc/sys/vm/min_free_kbytes", strconv.FormatUint(reserve(memory)>>10, 10)}.write()
}

// memoryBytes is what programs and the kernel share.
func memoryBytes() (uint64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("ask for the memory's size: %w", err)
	}
	return info.Totalram * uint64(info.Unit), nil
}

// reserve is the kernel's own formula for the pages that only it may use
// (mm/page_alloc.c, calculate_min_free_kbytes), with a lower end for bursts of
// network packets.
func reserve(memory uint64) uint64 {
	return max(uint64(math.Sqrt(float64(memory>>10)*16))<<10, reserveMin)
}
