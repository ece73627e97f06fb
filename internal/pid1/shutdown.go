package pid1

import (
	"bufio"
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"capsule/internal/clock"
	"capsule/internal/lvm"
)

type shutdownKind int

const (
	restart shutdownKind = iota
	powerOff
)

const (
	shutdownMax   = 90 * time.Second // after that the machine goes down anyway
	stallMax      = 30 * time.Second // of a part of the end that shows no progress: it's left
	lastMax       = 5 * time.Second  // to say so and sync; with stallMax still within the watchdog's time
	serveGrace    = 60 * time.Second // serve stops the workloads in it
	containerdMax = 10 * time.Second
	groupMax      = 5 * time.Second
	clockMax      = 10 * time.Second
	noteMax       = 10 * time.Second
	closeMax      = 10 * time.Second
)

// shutdown takes the machine down in order. It's bounded: what hangs is left. An
// operator who changes the mind meanwhile gets what was asked for last. asleep ends
// what PID 1 does beside it, once serve has ended.
func (m *machine) shutdown(kind shutdownKind, signals <-chan os.Signal, notices <-chan string, asleep func()) {
	begin := time.Now()
	m.log.say("%s", kind)
	clean := true
	for _, t := range m.end(kind, notices, asleep) {
		left := shutdownMax - time.Since(begin)
		if t.limit == 0 || t.limit > left {
			t.limit = max(left, time.Second)
		}
		if err := m.attend(t); err != nil {
			m.log.important("%s: %v", t.name, err)
			clean = false
		}
		m.log.say("%s: after %v", t.name, time.Since(begin).Round(time.Millisecond))
	}
	if !clean {
		// A disk that hangs keeps this for ever, and the machine is to be off, not
		// restarted by its watchdog.
		attempt(lastMax, unix.Sync)
	}
	kind = latest(kind, signals)
	m.log.say("%s after %v", kind, time.Since(begin).Round(time.Millisecond))
	down(kind)
}

// end lists what comes before the machine is off. Serve proves by its notices that
// it gets on, the storage by what the disk does; the rest is short.
func (m *machine) end(kind shutdownKind, notices <-chan string, asleep func()) []task {
	var heard atomic.Uint64
	go func() {
		for range notices {
			heard.Add(1)
		}
	}()
	return []task{
		{name: "stop workloads and serve", proof: heard.Load, stall: stallMax, do: func() error {
			m.serve.halt(serveGrace)
			return nil
		}},
		{name: "stop containerd", limit: containerdMax + groupMax, do: func() error {
			asleep()
			m.containerd.halt(containerdMax)
			return nil
		}},
		{name: "end all programs", limit: 6 * groupMax, do: endPrograms},
		{name: "note why", limit: noteMax, do: func() error { return m.noteEnd(kind) }},
		{name: "save the clock", limit: clockMax, do: m.saveClock},
		{name: "close the storage", proof: m.work, stall: stallMax, do: func() error {
			m.closeStorage()
			unix.Sync()
			return nil
		}},
	}
}

func endPrograms() error {
	var errs []error
	for _, g := range []string{groupServe, groupDebug, groupApps, groupShims, groupContainerd} {
		errs = append(errs, killGroup(g, groupMax))
	}
	return errors.Join(errs...)
}

// saveClock, and from here on programs are started without the family.
func (m *machine) saveClock() error {
	m.kids.freeze()
	if m.reason != "" {
		return nil
	}
	return clock.Save(clock.SavedFile)
}

// attempt waits for fn, but not longer than limit.
func attempt(limit time.Duration, fn func()) {
	done := make(chan struct{})
	go func() { fn(); close(done) }()
	select {
	case <-done:
	case <-time.After(limit):
	}
}

// kindOf is what a signal to process 1 asks for.
func kindOf(s os.Signal) shutdownKind {
	if s == unix.SIGUSR2 {
		return powerOff
	}
	return restart
}

// latest is the last wish among the signals that wait.
func latest(kind shutdownKind, signals <-chan os.Signal) shutdownKind {
	for {
		select {
		case s := <-signals:
			if s != keysSignal { // which nobody has confirmed
				kind = kindOf(s)
			}
		default:
			return kind
		}
	}
}

// closeStorage unmounts /perm with all that lies on it, and closes the volumes.
func (m *machine) closeStorage() {
	m.log.close()
	m.kernel.close()
	for _, s := range []*service{m.serve, m.containerd} {
		if s != nil && s.out != nil {
			s.out.Close()
		}
	}
	m.resumeVolumes()
	unix.Sync()
	for _, dir := range ours(mountPoints()) {
		if err := unix.Unmount(dir, 0); err != nil {
			m.log.important("unmount %s: %v", dir, err)
			_ = unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "") // at least nothing is written any more
		}
	}
	if m.reason != "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeMax)
	defer cancel()
	if err := lvm.Deactivate(ctx); err != nil {
		m.log.important("close volumes: %v", err)
	}
}

// resumeVolumes comes before anything is written out: what an lvm command left
// suspended that was killed with serve would hold it up for ever.
func (m *machine) resumeVolumes() {
	if m.reason != "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeMax)
	defer cancel()
	if err := lvm.Resume(ctx); err != nil {
		m.log.important("resume volumes: %v", err)
	}
}

// ours picks the mounts that lie on disks, the last first.
func ours(points []string) []string {
	var out []string
	for _, dir := range slices.Backward(points) {
		for _, root := range []string{permDir, "/run/containerd", "/run/netns", "/run/capsule"} {
			if dir == root || strings.HasPrefix(dir, root+"/") {
				out = append(out, dir)
			}
		}
	}
	return out
}

func mountPoints() []string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	var out []string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if fields := strings.Fields(sc.Text()); len(fields) > 4 {
			out = append(out, unescape(fields[4]))
		}
	}
	return out
}

// unescape undoes the kernel's octal escapes of blanks in paths.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace

func down(kind shutdownKind) {
	command := unix.LINUX_REBOOT_CMD_RESTART
	if kind == powerOff {
		command = unix.LINUX_REBOOT_CMD_POWER_OFF
	}
	_ = unix.Reboot(command)
	select {} // the kernel is on its way; should it hang, the watchdog isn't fed much longer
}
