package microvm

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"capsule/internal/imagetest"
	"capsule/internal/jail"
	"capsule/internal/qemu"
	"capsule/internal/workload"
)

// benchMachines run at a time.
const benchMachines = 10

// BenchmarkMachines tells what machines of one image cost: the first one by
// itself, then some at once. test/bench runs it once and prints what it reports.
func BenchmarkMachines(b *testing.B) {
	w := newWorld(b)
	big := imagetest.NewLayer().File("big", 0o644, strings.Repeat("0123456789abcdef", 64<<20/16))
	w.base = w.image(b, imagetest.PayloadImage(b, nil, big))
	one := w.waiting(b, "one")
	b.ReportMetric(w.startAll(b, []workload.Instance{one}).Seconds(), "one-s")
	if err := w.driver.Remove(b.Context(), one.ID); err != nil {
		b.Fatal(err)
	}

	cache := usage(b, w.root)
	var all []workload.Instance
	for i := range benchMachines {
		all = append(all, w.waiting(b, fmt.Sprintf("m%d", i)))
	}
	b.ReportMetric(w.startAll(b, all).Seconds(), "all-s")
	b.ReportMetric(float64(usage(b, w.root)-cache)/mib, "cache-MiB")
	b.ReportMetric(float64(usage(b, w.opts.Dir))/benchMachines/mib, "disk-MiB")
	w.reportMemory(b, all[0])
}

// waiting is an instance that goes with the benchmark.
func (w *world) waiting(b *testing.B, name string) workload.Instance {
	in := w.instance(b, name, "print", "up", "then", "sleep", "10h")
	b.Cleanup(func() {
		if err := w.driver.Remove(context.WithoutCancel(b.Context()), in.ID); err != nil {
			b.Error(err)
		}
	})
	return in
}

// startAll prepares and starts instances at once, and tells how long it takes
// until all have said that they are up.
func (w *world) startAll(b *testing.B, all []workload.Instance) time.Duration {
	began := time.Now()
	var starts sync.WaitGroup
	for _, in := range all {
		starts.Go(func() {
			err := w.driver.Prepare(b.Context(), in)
			if err == nil {
				err = w.driver.Start(b.Context(), in)
			}
			if err != nil {
				b.Error(err)
			}
		})
	}
	starts.Wait()
	if b.Failed() {
		b.FailNow()
	}
	for _, in := range all {
		printed(b, in.LogDir, "up")
	}
	return time.Since(began)
}

// reportMemory tells what a machine takes of this computer's memory beside its
// guest's: what is its alone, of QEMU and its logger; what QEMU has before the
// guest runs, the rest of it being the emulation's; and the files that they have
// in memory, which all machines share.
func (w *world) reportMemory(b *testing.B, in workload.Instance) {
	process, err := jail.Find(w.driver.file(recordID(in), lockFile))
	if err != nil || process == nil {
		b.Fatalf("no QEMU: %v", err)
	}
	facts, err := w.driver.facts(recordID(in))
	if err != nil {
		b.Fatal(err)
	}
	runs, logger := memory(b, process.PID, sizes(in.Resources).MemoryMiB), memory(b, facts.Logger.PID, 0)
	b.ReportMetric(runs.own, "qemu-MiB")
	b.ReportMetric(stillMemory(b).own, "still-MiB")
	b.ReportMetric(logger.own, "logger-MiB")
	b.ReportMetric(runs.translated, "translated-MiB")
	b.ReportMetric(runs.files+logger.files, "files-MiB")
	b.ReportMetric(runs.guest, "guest-MiB")
}

// stillMemory is that of a QEMU whose guest has not run.
func stillMemory(b *testing.B) share {
	socket := filepath.Join(b.TempDir(), "q")
	r := newRig(b, socket, layerFile(b, 'A', mib))
	p := r.start(b)
	q, err := qemu.Dial(b.Context(), socket) // it speaks when the machine is made
	if err != nil {
		b.Fatal(err)
	}
	defer q.Close()
	return memory(b, p.PID, r.MemoryMiB)
}

// share of this computer's memory, in MiB.
type share struct {
	guest      float64 // touched by it
	translated float64 // code, where there is no KVM
	own        float64 // the process's alone
	files      float64 // in memory once, whoever has mapped them
}

// memory reads the areas of a process.
func memory(b *testing.B, pid int, guestMiB int64) (s share) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	var access string
	var size, resident float64
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) > 3 {
			access = fields[1]
			continue
		}
		if len(fields) < 3 || fields[2] != "kB" {
			continue
		}
		kib, err := strconv.ParseFloat(fields[1], 64)
		if err != nil {
			b.Fatal(err)
		}
		value := kib / 1024
		switch fields[0] {
		case "Size:":
			size = value
		case "Rss:":
			resident = value
		case "Anonymous:":
			s.files += resident - value
			switch {
			case size == float64(guestMiB):
				s.guest += value
			case access == "rwxp":
				s.translated += value
			default:
				s.own += value
			}
		}
	}
	if guestMiB > 0 && s.guest == 0 {
		b.Fatalf("process %d has no area for its guest's memory", pid)
	}
	return s
}
