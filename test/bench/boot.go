package main

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"capsule/internal/lab"
)

const bootMethod = `Seconds of the machine's own time since its kernel started, 512 MiB and one processor, QEMU with
` + "`-accel tcg -icount shift=0`" + `: one instruction takes one nanosecond, so that the load of this computer
hardly counts. The firmware's part is before that. The first boot makes the volume group and the file system
of /perm, 8 GiB of disk; each later one follows a shutdown.`

// icount makes an instruction take a nanosecond. The clock of an idle machine
// goes on as this computer's, so that its timeouts stay what they are.
const icount = "shift=0"

const (
	stageInit       = "process 1 (capsuled) runs"
	stageAPI        = "**API answers**"
	stageContainerd = "containerd answers"
)

// stages of a boot, in the order in which they usually end.
var stages = []struct {
	label string
	mark  *regexp.Regexp
}{
	{"first stage (capsule-boot) runs", regexp.MustCompile(`capsule-boot: started uptime=([0-9.]+)`)},
	{"root verified and mounted", regexp.MustCompile(`capsule-boot: root of \S+ mounted uptime=([0-9.]+)`)},
	{stageInit, regexp.MustCompile(`capsule +([0-9.]+)s capsule \S+ starts`)},
	{"/perm mounted", regexp.MustCompile(`capsule +([0-9.]+)s perm done`)},
	{"services started", regexp.MustCompile(`capsule +([0-9.]+)s capsuled runs`)},
	{stageAPI, regexp.MustCompile(`capsule ready: .*uptime=([0-9.]+)`)},
	{"address by DHCP", regexp.MustCompile(`capsule ready: .*address=[0-9].*uptime=([0-9.]+)`)},
	{stageContainerd, works},
}

// works is what process 1 says when all that a capsule needs is there.
var works = regexp.MustCompile(`capsule +([0-9.]+)s containerd answers`)

// boot measures kernel start → API ready, in the machine's own seconds.
func (b *bench) boot(ctx context.Context) error {
	m, err := lab.Create(ctx, b.options(lab.Options{Name: "boot", MemoryBytes: 512 * mib, CPUs: 1, Accel: "tcg", ICount: icount}))
	if err != nil {
		return err
	}
	defer b.discard(ctx, m)
	boots := []string{"first", "second", "third"}
	seconds := make([][]string, len(boots))
	for i := range boots {
		if seconds[i], err = b.oneBoot(ctx, m); err != nil {
			return err
		}
	}
	head("Reached", "first boot", "second", "third")
	for s, stage := range stages {
		row(stage.label, seconds[0][s], seconds[1][s], seconds[2][s])
	}
	return nil
}

// oneBoot gives the seconds of each stage.
func (b *bench) oneBoot(ctx context.Context, m *lab.Machine) ([]string, error) {
	from := consoleBytes(m)
	if err := m.Start(ctx); err != nil {
		return nil, err
	}
	if err := m.WaitReady(ctx); err != nil {
		return nil, err
	}
	text, err := waitConsole(ctx, m, from, works)
	if err != nil {
		return nil, err
	}
	kernel, err := b.ctl(m, "capsule", "logs", "kernel")
	if err != nil {
		return nil, err
	}
	var all []string
	for _, stage := range stages {
		found := stage.mark.FindStringSubmatch(kernel + text)
		if found == nil {
			return nil, fmt.Errorf("neither the kernel's log nor the console tells when: %s", stage.label)
		}
		all = append(all, strings.TrimRight(found[1], "."))
	}
	return all, m.Shutdown(ctx)
}

func consoleBytes(m *lab.Machine) int {
	text, err := os.ReadFile(m.ConsoleLog())
	if err != nil {
		return 0 // before the first boot
	}
	return len(text)
}

// waitConsole waits until the console shows a line, and gives all that came from
// an offset on.
func waitConsole(ctx context.Context, m *lab.Machine, from int, line *regexp.Regexp) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, readyMax)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		text, err := os.ReadFile(m.ConsoleLog())
		if err != nil {
			return "", err
		}
		if len(text) >= from && line.Match(text[from:]) {
			return string(text[from:]), nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("the console does not show %q: %w", line, ctx.Err())
		case <-tick.C:
		}
	}
}
