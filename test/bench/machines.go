package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"capsule/internal/run"
)

const machinesMethod = `The driver on this computer, with its QEMU in the jail and the payload's program in an image of 64 MiB, one
processor and 512 MiB each; seconds of this computer, so that its load counts, and without KVM. From Prepare
until the program's first line is in the log. The cache is containerd's whole folder; what it grows by are
records and empty folders. Own memory is what no other process has; files are those that processes have mapped,
which are in memory once for all machines.`

// machinesMax bounds eleven emulated starts and what they need.
const machinesMax = 20 * time.Minute

// machines measures what microVMs of one image cost on this computer.
func (b *bench) machines(ctx context.Context) error {
	if os.Getuid() != 0 {
		return fmt.Errorf("the driver's machines need root")
	}
	out, err := run.Output(ctx, machinesMax, "env", "CAPSULE_TEST_GUEST=1", "go", "-C", b.repository,
		"test", "-run", "^$", "-bench", "^BenchmarkMachines$", "-benchtime", "1x", "./internal/microvm")
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	m, err := metrics(string(out), "BenchmarkMachines")
	if err != nil {
		return err
	}
	tell := func(what, unit, goal string, value float64) { row(what, fmt.Sprintf("%.1f %s", value, unit), goal) }
	head("What", "Measured", "Goal")
	tell("one microVM up", "s", "", m["one-s"])
	tell("ten more, started at once, all up", "s", "", m["all-s"])
	tell("the image cache grows by, for the ten", "MiB", "nothing", m["cache-MiB"])
	tell("the writable disk of each", "MiB", "", m["disk-MiB"])
	tell("**memory of each beside its guest's: QEMU's own and its logger's**", "MiB", "≤ 25", m["qemu-MiB"]+m["logger-MiB"])
	tell("of that, the logger's", "MiB", "", m["logger-MiB"])
	tell("of that, QEMU's before the guest runs; most of the rest is the emulation's", "MiB", "", m["still-MiB"])
	tell("code that the emulation has translated, up to 64 MiB", "MiB", "", m["translated-MiB"])
	tell("files mapped, once for all: QEMU, the guest's kernel and initramfs, the logger", "MiB", "", m["files-MiB"])
	tell("all of that as ps counts it, for each microVM again", "MiB", "", m["qemu-MiB"]+m["logger-MiB"]+m["translated-MiB"]+m["files-MiB"])
	tell("the guest's memory that it has touched, of 576 MiB", "MiB", "", m["guest-MiB"])
	return nil
}

// metrics reads what a Go benchmark reports: its name and how often it ran, then
// each value before its unit.
func metrics(out, name string) (map[string]float64, error) {
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if len(fields) < 2 || !strings.HasPrefix(fields[0], name) {
			continue
		}
		found := map[string]float64{}
		for i := 2; i+1 < len(fields); i += 2 {
			value, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, fmt.Errorf("%s reports %q: %w", name, line, err)
			}
			found[fields[i+1]] = value
		}
		return found, nil
	}
	return nil, fmt.Errorf("%s did not report, in:\n%s", name, out)
}
