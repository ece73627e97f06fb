//go:build unix

package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"time"
)

const (
	consoleTailBytes = 4 << 10
	consoleTailLines = 20
	consoleEvery     = 200 * time.Millisecond
)

// escapes are what terminals act on and a line of text must not hold.
var escapes = regexp.MustCompile(`\x1b\[[0-9;?=]*[a-zA-Z]|\x1b[()][A-Z0-9]|[\x00-\x08\x0b-\x1f\x7f]`)

// Console joins this terminal to the machine's serial port until in ends, ctx
// ends or the machine does.
func (m *Machine) Console(ctx context.Context, in io.Reader, out io.Writer) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", m.socket("console"))
	if err != nil {
		return fmt.Errorf("console of machine %q: %w", m.Name, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	ended := make(chan error, 2)
	go func() { _, err := io.Copy(out, conn); ended <- err }()
	go func() { _, err := io.Copy(conn, in); ended <- err }()
	err = <-ended
	conn.Close()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// lostTimer is in what a kernel prints that gets no timer interrupts any more
// (kernel/rcu/tree_stall.h). On a busy machine QEMU's emulation now and then loses
// the first ones of a processor; that kernel waits for ever.
const lostTimer = "Possible timer handling issue"

// follow tells each new line of the console and notices the end of QEMU. A kernel
// that hangs for a fault of the emulation it starts again, once.
func (m *Machine) follow(ctx context.Context, ended context.CancelCauseFunc) {
	tick := time.NewTicker(consoleEvery)
	defer tick.Stop()
	f, err := os.Open(m.ConsoleLog())
	if err == nil {
		defer f.Close()
		_, err = f.Seek(0, io.SeekEnd)
	}
	var rest []byte
	reset := m.Accel != "tcg"
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err == nil {
			var hangs bool
			if rest, hangs = m.tellLines(f, rest); hangs && !reset {
				reset = true
				m.restart(ctx)
			}
		}
		if !m.Running() {
			ended(errEnded)
			return
		}
	}
}

func (m *Machine) restart(ctx context.Context) {
	m.say("its kernel hangs: QEMU lost a timer; reset it")
	if _, err := m.QMP(ctx, "system_reset", nil); err != nil {
		m.say("reset: %v", err)
	}
}

func (m *Machine) tellLines(f *os.File, rest []byte) (unfinished []byte, hangs bool) {
	more, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return rest, false
	}
	rest = append(rest, more...)
	for {
		line, after, ok := bytes.Cut(rest, []byte("\n"))
		if !ok {
			return rest, hangs
		}
		rest = after
		text := plain(line)
		if text != "" && m.progress != nil {
			m.progress(Step{Text: text, Console: true})
		}
		hangs = hangs || strings.Contains(text, lostTimer)
	}
}

func plain(line []byte) string {
	return strings.TrimSpace(escapes.ReplaceAllString(string(line), ""))
}

// consoleTail is the end of what the console showed.
func (m *Machine) consoleTail() string {
	f, err := os.Open(m.ConsoleLog())
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > consoleTailBytes {
		if _, err := f.Seek(-consoleTailBytes, io.SeekEnd); err != nil {
			return ""
		}
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return ""
	}
	var lines []string
	for line := range strings.Lines(string(data)) {
		if text := plain([]byte(line)); text != "" {
			lines = append(lines, text)
		}
	}
	return strings.Join(lines[max(0, len(lines)-consoleTailLines):], "\n")
}
