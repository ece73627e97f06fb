package drivertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"capsule/internal/workload"
)

func (s *suite) exec(t *testing.T) {
	in := s.instance("print", "ready", "then", "sleep", "10h")
	in.Env = append(in.Env, "A=1")
	in.User = "app"
	s.start(t, in)
	s.printed(t, in, "ready")
	before := len(s.processes(t, in.ID))
	for name, run := range map[string]func(*testing.T, workload.ID){
		"IO-03 bytes and streams": s.execBytes, "IO-05 codes": s.execCodes, "surroundings": s.execSurroundings,
		"IO-06 terminal": s.execTerminal, "signals": s.execSignals,
		"the caller leaves": s.execLeft, "IO-01 short input": s.execShortInput, "slow reader": s.execSlow,
	} {
		t.Run(name, func(t *testing.T) { run(t, in.ID) })
	}
	t.Run("nothing is left", func(t *testing.T) {
		// A command whose caller left may take a moment to end.
		for deadline := time.Now().Add(patience); ; {
			after := s.processes(t, in.ID)
			if len(after) <= before {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("processes: %v", after)
			}
		}
		if left := s.Leftovers(); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
	t.Run("a child keeps the output", func(t *testing.T) { s.execChild(t, in.ID) })
	t.Run("IO-05 the workload stops meanwhile", func(t *testing.T) { s.execStopped(t, in.ID) })
}

// processes of an instance, the listing one not counted.
func (s *suite) processes(t *testing.T, id workload.ID) []string {
	t.Helper()
	_, out, _ := s.command(t, id, payload("ls", "/proc"))
	var pids []string
	for _, name := range lines(out) {
		name = strings.Trim(strings.TrimPrefix(name, "/proc"), "/")
		if name != "" && strings.Trim(name, "0123456789") == "" {
			pids = append(pids, name)
		}
	}
	return pids
}

func (s *suite) execBytes(t *testing.T, id workload.ID) {
	e := payload("cat", "then", "printerr", "e")
	e.Stdin = strings.NewReader("\x00\n\r\xff")
	code, out, errs := s.command(t, id, e)
	if code != 0 || out != "\x00\n\r\xff" || errs != "e\n" {
		t.Errorf("code %d, stdout %q, stderr %q", code, out, errs)
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	e = payload("cat")
	e.Stdin = bytes.NewReader(big)
	if code, out, _ := s.command(t, id, e); code != 0 || out != string(big) {
		t.Errorf("code %d, %d bytes of %d", code, len(out), len(big))
	}
}

func (s *suite) execCodes(t *testing.T, id workload.ID) {
	for _, tc := range []struct {
		command []string
		code    int
		stderr  string
	}{
		{[]string{"/etc"}, 126, "folder"},
		{[]string{"/etc/passwd"}, 126, "not executable"},
		{[]string{"nosuch"}, 127, `"nosuch"`},
		{[]string{"/payload", "exit", "3"}, 3, ""},
		{[]string{"/payload", "kill", "9"}, 137, ""},
		{[]string{"/payload", "kill", "15"}, 143, ""},
		{[]string{"/payload", "true"}, 0, ""},
	} {
		code, _, errs := s.command(t, id, workload.Exec{Command: tc.command})
		if code != tc.code || !strings.Contains(errs, tc.stderr) || tc.stderr == "" && errs != "" {
			t.Errorf("%q: code %d, stderr %q; want %d, %q", tc.command, code, errs, tc.code, tc.stderr)
		}
	}
	if _, err := s.driver.Exec(t.Context(), id, workload.Exec{}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("no command: %v", err)
	}
	e := payload("true")
	e.User = "ghost"
	if _, err := s.driver.Exec(t.Context(), id, e); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("unknown user: %v", err)
	}
}

func (s *suite) execSurroundings(t *testing.T, id workload.ID) {
	e := payload("id", "then", "env", "A", "then", "env", "B", "then", "cwd")
	_, out, _ := s.command(t, id, e)
	if !strings.HasPrefix(out, "uid=1000 gid=1000") || !strings.Contains(out, "\n1\n") {
		t.Errorf("of the instance: %q", out)
	}
	e = payload("id", "then", "env", "A", "then", "env", "B", "then", "cwd")
	e.User, e.Cwd, e.Env = "root", "/etc", []string{"A=2=", "B=3"}
	_, out, _ = s.command(t, id, e)
	if !strings.HasPrefix(out, "uid=0 gid=0") || !strings.HasSuffix(out, "\n2=\n3\n/etc\n") {
		t.Errorf("of its own: %q", out)
	}
}

func (s *suite) execTerminal(t *testing.T, id workload.ID) {
	resize := make(chan workload.TerminalSize)
	out, writer := io.Pipe()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	signals := make(chan int)
	done := make(chan int, 1)
	e := payload("stty", "watch")
	e.TTY, e.Size, e.Resize, e.Signals, e.Stdout = true, workload.TerminalSize{Rows: 50, Columns: 132}, resize, signals, writer
	stdin, keep := io.Pipe()
	defer keep.Close()
	e.Stdin = stdin
	go func() {
		code, err := s.driver.Exec(ctx, id, e)
		if err != nil {
			t.Error(err)
		}
		writer.Close()
		done <- code
	}()
	expect := func(want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(out, got); err != nil || string(got) != want {
			t.Fatalf("got %q, %v; want %q", got, err, want)
		}
	}
	expect("50 132\r\n")
	resize <- workload.TerminalSize{Rows: 60, Columns: 200}
	expect("60 200\r\n")
	signals <- sigterm
	if _, err := io.ReadAll(out); err != nil {
		t.Error(err)
	}
	if code := <-done; code != 128+sigterm {
		t.Errorf("code %d", code)
	}
}

func (s *suite) execSignals(t *testing.T, id workload.ID) {
	signals := make(chan int, 1)
	out := watcher{want: "ready", seen: func() { signals <- 10 }}
	e := payload("trap", "10", "6")
	e.Signals, e.Stdout = signals, &out
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	code, err := s.driver.Exec(ctx, id, e)
	if err != nil || code != 6 || out.String() != "ready\ngot 10\n" {
		t.Errorf("code %d, %v, %q", code, err, out.String())
	}
}

// watcher calls seen once when the text was written.
type watcher struct {
	bytes.Buffer
	want string
	seen func()
}

func (w *watcher) Write(p []byte) (int, error) {
	n, err := w.Buffer.Write(p)
	if w.seen != nil && strings.Contains(w.String(), w.want) {
		w.seen()
		w.seen = nil
	}
	return n, err
}

// A command's end is its end, though a child of it holds the output open.
func (s *suite) execChild(t *testing.T, id workload.ID) {
	code, out, _ := s.command(t, id, payload("spawn", "sleep", "10h")) // beyond all patience
	if code != 0 || !strings.HasPrefix(out, "spawned") {
		t.Fatalf("code %d, %q", code, out)
	}
	pid := strings.Fields(out)[1]
	s.command(t, id, payload("kill", "9", pid))
}

func (s *suite) execLeft(t *testing.T, id workload.ID) {
	ctx, cancel := context.WithCancel(t.Context())
	out := watcher{want: "ready", seen: cancel}
	e := payload("trap", "0")
	e.Stdout = &out
	if _, err := s.driver.Exec(ctx, id, e); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// Output that nobody takes for long is not lost.
func (s *suite) execSlow(t *testing.T, id workload.ID) {
	out, writer := io.Pipe()
	e := payload("bytes", "1000000")
	e.Stdout = writer
	go func() {
		if code, err := s.driver.Exec(t.Context(), id, e); code != 0 || err != nil {
			t.Errorf("code %d, %v", code, err)
		}
		writer.Close()
	}()
	first := make([]byte, 1)
	if _, err := io.ReadFull(out, first); err != nil {
		t.Fatal(err)
	}
	<-time.After(4 * time.Second) // longer than the driver waits for a silent child
	rest, err := io.ReadAll(out)
	if len(rest) != 999_999 || err != nil {
		t.Errorf("%d bytes, %v", len(rest), err)
	}
}

// shortInputs is how often the race of IO-01 is tried.
const shortInputs = 300

func (s *suite) execShortInput(t *testing.T, id workload.ID) {
	stop := make(chan struct{})
	defer close(stop)
	for range runtime.NumCPU() { // the race wants load
		go func() {
			for {
				select {
				case <-stop:
					return
				default:
					runtime.Gosched()
				}
			}
		}()
	}
	runs := shortInputs
	if testing.Short() {
		runs = 10
	}
	for i := range runs {
		e := payload("cat")
		want := "hello"
		switch i % 3 {
		case 0:
			e.Stdin = strings.NewReader(want)
		case 1:
			e.Stdin, want = strings.NewReader(""), ""
		case 2:
			null, err := os.Open(os.DevNull)
			if err != nil {
				t.Fatal(err)
			}
			defer null.Close()
			e.Stdin, want = null, ""
		}
		if code, out, errs := s.command(t, id, e); code != 0 || out != want {
			t.Fatalf("run %d: code %d, %q, %q", i, code, out, errs)
		}
	}
	if code, out, _ := s.command(t, id, payload("cat")); code != 0 || out != "" {
		t.Errorf("without input: code %d, %q", code, out)
	}
}

func (s *suite) execStopped(t *testing.T, id workload.ID) {
	type result struct {
		code int
		err  error
	}
	done := make(chan result, 1)
	ready := make(chan struct{})
	out := watcher{want: "ready", seen: func() { close(ready) }}
	var errs bytes.Buffer
	e := payload("trap", "0")
	e.Stdout, e.Stderr = &out, &errs
	go func() {
		code, err := s.driver.Exec(t.Context(), id, e)
		done <- result{code, err}
	}()
	<-ready
	if err := s.driver.Stop(t.Context(), id, sigkill, time.Second); err != nil {
		t.Fatal(err)
	}
	r := <-done
	if r.code != 128+sigkill || r.err != nil || !strings.Contains(errs.String(), fmt.Sprintf("%q ended", id.Name)) {
		t.Errorf("code %d, %v, stderr %q", r.code, r.err, errs.String())
	}
	if _, err := s.driver.Exec(t.Context(), id, payload("true")); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("in a stopped workload: %v", err)
	}
}
