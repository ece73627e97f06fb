package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"capsule/internal/run"
)

const (
	emulatedMax = 10 * time.Minute // of a guest that counts instructions
	compileMax  = time.Minute
)

// emulated is a guest on a machine of which each instruction takes a nanosecond.
type emulated struct {
	name              string
	kernel, initramfs string
	machine           []string // arguments of QEMU for all but the above
	cmdline           string
}

// clocks are what the clocks of a guest show when its process 1 starts.
type clocks struct {
	machine time.Duration // since QEMU let the processor run
	uptime  time.Duration // as programs see it
}

// ofUptime gives the machine's time of a program's.
func (c clocks) ofUptime(t time.Duration) time.Duration { return t - c.uptime + c.machine }

// qemu is the command that runs the capsule's own QEMU on this computer. A PC's
// firmware, which the capsule lacks, is this computer's.
func (b *bench) qemu(ctx context.Context, args ...string) *exec.Cmd {
	root := filepath.Join(b.repository, "build/work/root")
	command := []string{"--library-path", filepath.Join(root, "usr/lib/x86_64-linux-gnu"), filepath.Join(root, "usr/bin/qemu-system-x86_64")}
	for _, dir := range []string{root + "/usr/share/qemu", root + "/usr/share/seabios", "/usr/share/seabios", "/usr/share/qemu"} {
		command = append(command, "-L", dir)
	}
	return exec.CommandContext(ctx, filepath.Join(root, "lib64/ld-linux-x86-64.so.2"), append(command, args...)...)
}

// emulate is the command that runs a guest.
func (b *bench) emulate(ctx context.Context, g emulated) *exec.Cmd {
	return b.qemu(ctx, append([]string{"-accel", "tcg", "-icount", icount, "-rtc", "base=2026-01-01,clock=vm", "-cpu", "max", "-smp", "1",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", g.kernel, "-initrd", g.initramfs, "-append", g.cmdline}, g.machine...)...)
}

// run runs a guest until its QEMU ends, and gives its console; each line is shown
// to watch as it comes.
func (b *bench) run(ctx context.Context, g emulated, watch func(line string) error) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, emulatedMax)
	defer cancel()
	cmd := b.emulate(ctx, g)
	var complaints bytes.Buffer
	cmd.Stderr, cmd.WaitDelay = &complaints, time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	var text strings.Builder
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		text.WriteString(line + "\n")
		if err == nil && watch != nil {
			if err = watch(line); err != nil {
				cancel()
			}
		}
	}
	if ended := cmd.Wait(); err == nil && ended != nil {
		err = fmt.Errorf("%w: %s", ended, complaints.String())
	}
	if err != nil {
		return "", fmt.Errorf("guest %q: %w; its console:\n%s", g.name, err, text.String())
	}
	return text.String(), nil
}

// withClock puts a program before the guest's process 1 that tells its clocks.
func (b *bench) withClock(ctx context.Context, g emulated) (emulated, error) {
	program := filepath.Join(b.dir, "clock")
	if _, err := run.Output(ctx, compileMax, "gcc", "-Os", "-static", "-nostdlib", "-fno-builtin", "-fno-stack-protector",
		"-s", "-Wl,-n,--build-id=none", "-o", program, filepath.Join(b.repository, "test/bench/clock/clock.c")); err != nil {
		return g, err
	}
	content, err := os.ReadFile(program)
	if err != nil {
		return g, err
	}
	initramfs, err := os.ReadFile(g.initramfs)
	if err != nil {
		return g, err
	}
	g.initramfs = filepath.Join(b.dir, "initramfs")
	g.cmdline += " rdinit=/clock printk.time=1"
	return g, os.WriteFile(g.initramfs, append(pad(initramfs), archive("clock", content)...), 0o600)
}

// unpacking is how long the kernel of a guest with a clock unpacks its initramfs.
// It would do so while it starts devices, here it waits.
func (b *bench) unpacking(ctx context.Context, g emulated) (time.Duration, error) {
	g.cmdline += " bench=log initramfs_async=0"
	text, err := b.run(ctx, g, nil)
	if err != nil {
		return 0, err
	}
	from, err := stamp(text, unpackLine)
	if err != nil {
		return 0, err
	}
	to, err := stamp(text, unpackedLine)
	return to - from, err
}

// archive is an initramfs of one program; of two files of a name the kernel keeps
// the later: https://docs.kernel.org/driver-api/early-userspace/buffer-format.html
func archive(name string, content []byte) []byte {
	entry := func(name string, mode int, content []byte) []byte {
		header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			1, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0, name)
		return pad(append(pad([]byte(header)), content...))
	}
	return append(entry(name, 0o100755, content), entry("TRAILER!!!", 0, nil)...)
}

// pad fills up to where the next part may begin.
func pad(b []byte) []byte { return append(b, make([]byte, -len(b)&3)...) }

// Lines of the kernel's log.
var (
	clockLine    = regexp.MustCompile(`clock: counter=([0-9]+) uptime=([0-9]+)`)
	unpackLine   = regexp.MustCompile(`\[ *([0-9.]+)\] (?:Trying to unpack rootfs image as initramfs|Unpacking initramfs)`)
	unpackedLine = regexp.MustCompile(`\[ *([0-9.]+)\] Freeing initrd memory`)
)

func parseClocks(console string) (c clocks, err error) {
	found := clockLine.FindStringSubmatch(console)
	if found == nil {
		return c, fmt.Errorf("no line %s", clockLine)
	}
	// One instruction takes a nanosecond, and the counter counts those.
	if c.machine, err = time.ParseDuration(found[1] + "ns"); err != nil {
		return c, err
	}
	c.uptime, err = time.ParseDuration(found[2] + "ns")
	return c, err
}

// stamp is the time of a line of the kernel's log.
func stamp(log string, line *regexp.Regexp) (time.Duration, error) {
	found := line.FindStringSubmatch(log)
	if found == nil {
		return 0, fmt.Errorf("no line %s in:\n%s", line, log)
	}
	return time.ParseDuration(found[1] + "s")
}
