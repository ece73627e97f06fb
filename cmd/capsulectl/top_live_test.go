//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is one that a command runs on, and what the command has written to it.
type terminal struct {
	ours *os.File
	text string
}

// onTerminal starts capsulectl on a terminal of a size.
func onTerminal(t *testing.T, rows, columns uint16, kind string, args ...string) (*terminal, *exec.Cmd) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close() })
	number, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	theirs, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	tty := &terminal{ours: ours}
	tty.resize(t, rows, columns)
	cmd := exec.CommandContext(t.Context(), "capsulectl", args...)
	cmd.Env = append(os.Environ(), "TERM="+kind)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return tty, cmd
}

func (tty *terminal) resize(t *testing.T, rows, columns uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(tty.ours.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}); err != nil {
		t.Fatal(err)
	}
}

// until reads on until what was written satisfies, or ends.
func (tty *terminal) until(done func(string) bool) {
	for buffer := make([]byte, 4096); !done(tty.text); {
		n, err := tty.ours.Read(buffer)
		tty.text += string(buffer[:n])
		if err != nil { // EIO is a terminal's end
			return
		}
	}
}

// frames are the tables that were drawn.
func frames(text string) []string { return strings.Split(text, "\x1b[H")[1:] }

// whole tells that as many tables are drawn to their end.
func whole(n int) func(string) bool {
	return func(text string) bool { return strings.Count(text, "\x1b[J") >= n }
}

// The live table fits the terminal, at once when its size changes, and Ctrl-C is a
// good end.
func TestTopOnATerminal(t *testing.T) {
	newCommanded(t)
	tty, cmd := onTerminal(t, 24, 100, "xterm", "top", "--interval", "1m")
	tty.until(whole(1))
	if first := frames(tty.text)[0]; !strings.Contains(first, "PROCESSES") || !strings.Contains(first, "machine") {
		t.Errorf("first %q", first)
	}
	before := len(frames(tty.text))
	tty.resize(t, 2, 20)
	tty.until(whole(before + 1)) // long before the next look
	small := frames(tty.text)[before]
	if lines := strings.Split(small, "\r\n"); len(lines) != 1 || len(strings.TrimSuffix(lines[0], "\x1b[K\x1b[J")) > 20 {
		t.Errorf("on 2x20: %q", small)
	}
	if _, err := tty.ours.WriteString("\x03"); err != nil {
		t.Fatal(err)
	}
	tty.until(func(string) bool { return false })
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v:\n%q", err, tty.text)
	}
}

// A terminal that can't move is shown it once, without any control.
func TestTopOnADumbTerminal(t *testing.T) {
	newCommanded(t)
	tty, cmd := onTerminal(t, 24, 100, "dumb", "top")
	tty.until(func(string) bool { return false })
	if err := cmd.Wait(); err != nil || strings.Contains(tty.text, "\x1b") || strings.Count(tty.text, "machine") != 1 {
		t.Errorf("%v: %q", err, tty.text)
	}
}

// The live table goes on over a restart of the daemon.
func TestTopOverARestart(t *testing.T) {
	c := newCommanded(t)
	tty, cmd := onTerminal(t, 24, 100, "xterm", "top", "--interval", "500ms")
	tty.until(whole(1))
	c.stop()
	tty.until(func(text string) bool { return strings.Contains(text, lostText) })
	c.start()
	tty.until(func(text string) bool {
		all := frames(text)
		last := all[len(all)-1]
		return strings.HasSuffix(last, "\x1b[J") && !strings.Contains(last, lostText)
	})
	if _, err := tty.ours.WriteString("\x03"); err != nil {
		t.Fatal(err)
	}
	tty.until(func(string) bool { return false })
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v:\n%q", err, tty.text)
	}
}

// What is followed for days is given up only when the capsule stays away.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p patience
		for i, step := range []struct {
			after       time.Duration
			answered    bool
			first, over bool
		}{
			{0, false, true, false},
			{time.Minute, false, false, false},
			{time.Hour, true, true, false}, // it was there for an hour, and said nothing
			{followMax, false, false, false},
			{time.Second, false, false, true},
		} {
			time.Sleep(step.after)
			if first, over := p.broke(step.answered); first != step.first || over != step.over {
				t.Errorf("%d: first %v, over %v", i, first, over)
			}
		}
	})
}
