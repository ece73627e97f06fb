//go:build machine

package machine

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// terminalLimit bounds a command on a terminal.
const terminalLimit = 5 * time.Minute

// interrupt is Ctrl-C as a terminal sends it.
const interrupt = "\x03"

// terminal ROWSxCOLUMNS ROWSxCOLUMNS COMMAND…: runs the command on a terminal
// of the first size, which gets the second size when the first line is
// printed. Once the command has printed that size it is interrupted. What it
// prints is stdout of the script.
func terminal(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, args, 3, "terminal ROWSxCOLUMNS ROWSxCOLUMNS COMMAND...")
	ours, theirs, err := openTerminal()
	ts.Check(err)
	defer ours.Close()
	ts.Check(resize(ours, args[0]))
	cmd := exec.Command(args[2], args[3:]...)
	cmd.Env = append(os.Environ(), "CAPSULE_HOST="+ts.Getenv("CAPSULE_HOST"))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	ts.Check(errors.Join(cmd.Start(), theirs.Close()))
	late := time.AfterFunc(terminalLimit, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	out, buffer, resized, interrupted := "", make([]byte, 4096), false, false
	for err == nil {
		var n int
		n, err = ours.Read(buffer)
		out += string(buffer[:n])
		if !resized && strings.Contains(out, "\n") {
			resized = true
			ts.Check(resize(ours, args[1]))
		}
		if !interrupted && strings.Contains(out, strings.Replace(args[1], "x", " ", 1)) {
			interrupted = true
			_, err := io.WriteString(ours, interrupt)
			ts.Check(err)
		}
	}
	if !errors.Is(err, io.EOF) && !errors.Is(err, unix.EIO) { // EIO is a terminal's end
		ts.Check(err)
	}
	_, _ = io.WriteString(ts.Stdout(), out)
	if err := cmd.Wait(); (err != nil) != neg {
		ts.Fatalf("%v: %s", err, out)
	}
}

// openTerminal opens a pair of pseudo terminals.
func openTerminal() (ours, theirs *os.File, err error) {
	ours, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			ours.Close()
		}
	}()
	if err = unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, err
	}
	number, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err != nil {
		return nil, nil, err
	}
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	return ours, theirs, err
}

func resize(f *os.File, size string) error {
	var s unix.Winsize
	if _, err := fmt.Sscanf(size, "%dx%d", &s.Row, &s.Col); err != nil {
		return fmt.Errorf("size %q: %w", size, err)
	}
	return unix.IoctlSetWinsize(int(f.Fd()), unix.TIOCSWINSZ, &s)
}
