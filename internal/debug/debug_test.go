package debug

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"capsule/internal/cgroup"
	"capsule/internal/imagetest"
	"capsule/internal/workload"
)

func TestMain(m *testing.M) {
	Stage()
	os.Exit(m.Run())
}

// sessions have the payload program as their only tool.
func sessions(t *testing.T) *Sessions {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	root := cgroup.Root
	if _, err := os.Stat(root + "/cgroup.procs"); err != nil {
		root += "/unified" // beside version 1
	}
	group, err := os.MkdirTemp(root, "debug-test-")
	if err != nil {
		t.Skip("SKIPPED: needs control groups of version 2: ", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(group); err != nil {
			t.Error(err)
		}
	})
	tools := filepath.Join(t.TempDir(), "tools")
	for _, dir := range []string{"dev", "proc", "sys", "run", "bin"} {
		if err := os.MkdirAll(filepath.Join(tools, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.WriteFile(tools+"/bin/payload", imagetest.Payload(t), 0o755), os.Symlink("/proc/1/root", tools+"/host")); err != nil {
		t.Fatal(err)
	}
	return New(Options{Tools: tools, Group: cgroup.Group(group)})
}

// output tells when more was written to it.
type output struct {
	imagetest.Output
	more chan struct{}
}

func newOutput() *output { return &output{more: make(chan struct{}, 1)} }

func (o *output) Write(p []byte) (int, error) {
	n, err := o.Output.Write(p)
	select {
	case o.more <- struct{}{}:
	default:
	}
	return n, err
}

// until waits for a text.
func (o *output) until(t *testing.T, text string) {
	t.Helper()
	for late := time.After(time.Minute); !strings.Contains(o.String(), text); {
		select {
		case <-o.more:
		case <-late:
			t.Fatalf("no %q in %q", text, o)
		}
	}
}

// groups are those of sessions that are left.
func (s *Sessions) groups(t *testing.T) []string {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(string(s.group), "session-*"))
	if err != nil {
		t.Fatal(err)
	}
	return left
}

func TestRun(t *testing.T) {
	s := sessions(t)
	for _, c := range []struct {
		command []string
		input   string
		code    int
		out     string // begins with it
		err     string // holds it
	}{
		{command: []string{"payload", "print", "hi"}, out: "hi\n"},
		{command: []string{"payload", "printerr", "oh"}, err: "oh"},
		{command: []string{"payload", "cat"}, input: "\x00in\n", out: "\x00in\n"},
		{command: []string{"payload", "exit", "3"}, code: 3},
		{command: []string{"payload", "kill", "9"}, code: 137},
		{command: []string{"none"}, code: 127, err: `no program "none"`},
		{command: []string{"/bin"}, code: 126, err: "/bin"},
		{command: nil, code: 127, err: `no program "sh"`}, // a shell, where there is one
		{command: []string{"payload", "write", "/bin/spoilt", "x", "then", "cat", "/bin/spoilt"}, out: "x"},
		{command: []string{"payload", "stat", "/bin/spoilt"}, code: 1}, // what was written is gone
		{command: []string{"payload", "stat", "/dev/null", "then", "stat", "/dev/pts/ptmx", "then", "stat", "/sys/kernel"}},
		{command: []string{"payload", "print", "still"}, out: "still\n"},
	} {
		var out, errs bytes.Buffer
		e := workload.Exec{Command: c.command, Stdout: &out, Stderr: &errs}
		if c.input != "" {
			e.Stdin = strings.NewReader(c.input)
		}
		code, err := s.Run(t.Context(), e)
		if err != nil || code != c.code || !strings.HasPrefix(out.String(), c.out) || !strings.Contains(errs.String(), c.err) {
			t.Errorf("%q: code %d, %v, out %q, err %q", c.command, code, err, &out, &errs)
		}
	}
	if left := s.groups(t); left != nil {
		t.Errorf("left: %q", left)
	}
}

// Whoever leaves takes all processes along, those too that have left their session.
func TestNothingOutlivesItsCaller(t *testing.T) {
	s := sessions(t)
	ctx, leave := context.WithCancel(t.Context())
	out, ended := newOutput(), make(chan error, 1)
	go func() {
		_, err := s.Run(ctx, workload.Exec{Command: []string{"payload", "spawn", "sleep", "1h", "then", "print", "ready", "then", "sleep", "1h"}, Stdout: out, Stderr: out})
		ended <- err
	}()
	out.until(t, "ready")
	leave()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
	if left := s.groups(t); left != nil {
		t.Errorf("left: %q", left)
	}
	// What the command leaves behind goes with it, and holds up nobody.
	code, err := s.Run(t.Context(), workload.Exec{Command: []string{"payload", "spawn", "sleep", "1h"}, Stdout: out, Stderr: out})
	if code != 0 || err != nil || s.groups(t) != nil {
		t.Errorf("code %d, %v, left %q", code, err, s.groups(t))
	}
}

func TestTerminal(t *testing.T) {
	s := sessions(t)
	out, resize, signals := newOutput(), make(chan workload.TerminalSize, 1), make(chan int, 1)
	in, write := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		code, err := s.Run(t.Context(), workload.Exec{
			Command: []string{"payload", "stty", "watch"}, TTY: true, Size: workload.TerminalSize{Rows: 50, Columns: 132},
			Resize: resize, Signals: signals, Stdin: in, Stdout: out,
		})
		if err != nil {
			t.Error(err)
		}
		ended <- code
	}()
	out.until(t, "50 132")
	resize <- workload.TerminalSize{Rows: 60, Columns: 200}
	out.until(t, "60 200")
	if _, err := io.WriteString(write, "\x03"); err != nil {
		t.Fatal(err)
	}
	if code := <-ended; code != 130 {
		t.Errorf("an interrupt ends it with %d", code)
	}
	write.Close()
}

func TestSessionsAreBounded(t *testing.T) {
	s := sessions(t)
	ctx, leave := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for range SessionsMax {
		out := newOutput()
		all.Go(func() {
			_, _ = s.Run(ctx, workload.Exec{Command: []string{"payload", "print", "ready", "then", "sleep", "1h"}, Stdout: out, Stderr: out})
		})
		out.until(t, "ready")
	}
	if _, err := s.Run(ctx, workload.Exec{Command: []string{"payload", "true"}}); !errdefs.IsUnavailable(err) {
		t.Errorf("one more: %v", err)
	}
	leave()
	all.Wait()
	if code, err := s.Run(t.Context(), workload.Exec{Command: []string{"payload", "true"}}); code != 0 || err != nil {
		t.Errorf("after their end: code %d, %v", code, err)
	}
	s.tools += "-none"
	if _, err := s.Run(t.Context(), workload.Exec{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("without tools: %v", err)
	}
}

// What a daemon left that was killed is ended by the next one.
func TestNewEndsWhatIsLeft(t *testing.T) {
	s := sessions(t)
	out, ended := newOutput(), make(chan int, 1)
	go func() {
		code, _ := s.Run(t.Context(), workload.Exec{Command: []string{"payload", "print", "ready", "then", "sleep", "1h"}, Stdout: out, Stderr: out})
		ended <- code
	}()
	out.until(t, "ready")
	New(Options{Tools: s.tools, Group: s.group})
	if code := <-ended; code != 137 {
		t.Errorf("it goes on, and ended with %d", code)
	}
}
