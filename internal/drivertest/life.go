package drivertest

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"capsule/internal/filecopy"
	"capsule/internal/workload"
)

const (
	sigterm = 15
	sigkill = 9
)

func (s *suite) life(t *testing.T) {
	t.Run("prepared, running, ended, again", s.cycle)
	t.Run("exit codes", s.exitCodes)
	t.Run("stop by signal, by force", s.stopping)
	t.Run("absent is success", s.absent)
	t.Run("two generations", s.generations)
	t.Run("a new driver lists all", s.adoption)
	t.Run("the runtime restarts", s.runtimeRestart)
}

func (s *suite) cycle(t *testing.T) {
	in := s.instance("ls", "/", "then", "write", "/kept", "yes", "then", "print", "ready", "then", "trap", "15", "3")
	s.prepare(t, in)
	if o := observe(t, s.driver, in.ID); o == nil || o.State != workload.Prepared || o.ImageDigest != s.base.Digest {
		t.Fatalf("after prepare: %+v", o)
	}
	for run := range 2 {
		before := time.Now()
		for range 2 { // idempotent
			if err := s.driver.Start(t.Context(), in); err != nil {
				t.Fatal(err)
			}
		}
		s.printedTimes(t, in, "ready", 2*(run+1)) // trap says it, too
		o := observe(t, s.driver, in.ID)
		if o == nil || o.State != workload.Running || o.StartedAt.Before(before.Add(-time.Second)) || !o.FinishedAt.IsZero() {
			t.Fatalf("run %d: %+v", run, o)
		}
		if err := s.driver.Stop(t.Context(), in.ID, sigterm, patience); err != nil {
			t.Fatal(err)
		}
		o = observe(t, s.driver, in.ID)
		if o == nil || o.State != workload.Ended || o.ExitCode != 3 || o.FinishedAt.Before(o.StartedAt) || o.OOM {
			t.Fatalf("run %d: %+v", run, o)
		}
	}
	// What the first run wrote was kept, and listed by the second.
	if out := output(t, in); strings.Count(out, "kept\n") != 1 || strings.Count(out, "ready\n") != 4 {
		t.Errorf("printed %q", out)
	}
	if err := s.driver.Remove(t.Context(), in.ID); err != nil {
		t.Fatal(err)
	}
	if o := observe(t, s.driver, in.ID); o != nil {
		t.Errorf("after remove: %+v", o)
	}
}

func (s *suite) exitCodes(t *testing.T) {
	for _, tc := range []struct {
		args []string
		code int
	}{
		{[]string{"exit", "0"}, 0}, {[]string{"exit", "3"}, 3}, {[]string{"exit", "255"}, 255},
	} {
		_, o := s.result(t, s.instance(tc.args...))
		if o.ExitCode != tc.code || o.OOM {
			t.Errorf("%q: %+v, want code %d", tc.args, o, tc.code)
		}
	}
}

func (s *suite) stopping(t *testing.T) {
	t.Run("IMG-14 real-time signal", func(t *testing.T) {
		in := s.instance("trap", "37", "0")
		s.start(t, in)
		s.printed(t, in, "ready")
		if err := s.driver.Stop(t.Context(), in.ID, 37, patience); err != nil {
			t.Fatal(err)
		}
		o := s.ended(t, in.ID)
		if o.ExitCode != 0 || output(t, in) != "ready\ngot 37\n" {
			t.Errorf("%+v, printed %q", o, output(t, in))
		}
	})
	t.Run("grace ends", func(t *testing.T) {
		in := s.instance("trap", "0")
		s.start(t, in)
		s.printed(t, in, "ready")
		begin := time.Now()
		const grace = time.Second
		if err := s.driver.Stop(t.Context(), in.ID, sigterm, grace); err != nil {
			t.Fatal(err)
		}
		o := s.ended(t, in.ID)
		if took := time.Since(begin); o.ExitCode != 128+sigkill || o.OOM || took < grace {
			t.Errorf("%+v after %v", o, took)
		}
		// Ended already: nothing changes.
		if err := s.driver.Stop(t.Context(), in.ID, sigterm, grace); err != nil {
			t.Error(err)
		}
	})
}

func (s *suite) absent(t *testing.T) {
	id := workload.ID{Name: "nobody", UID: "ffffffff", Generation: 1}
	if err := s.driver.Stop(t.Context(), id, sigterm, time.Second); err != nil {
		t.Error(err)
	}
	if err := s.driver.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
	if _, err := s.driver.Exec(t.Context(), id, payload("true")); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("exec: %v", err)
	}
	if _, err := s.driver.Stats(t.Context(), id); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("stats: %v", err)
	}
}

// A newer generation is prepared while the older serves, then takes over.
func (s *suite) generations(t *testing.T) {
	old := s.instance("print", "ready", "then", "sleep", "10h")
	s.start(t, old)
	s.printed(t, old, "ready")
	next := old
	next.Generation++
	next.Args = []string{"/payload", "print", "next", "then", "sleep", "10h"}
	s.prepare(t, next)
	if o := observe(t, s.driver, old.ID); o == nil || o.State != workload.Running {
		t.Fatalf("the old one: %+v", o)
	}
	if err := s.driver.Stop(t.Context(), old.ID, sigkill, time.Second); err != nil {
		t.Fatal(err)
	}
	if err := s.driver.Start(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	if err := s.driver.Remove(t.Context(), old.ID); err != nil {
		t.Fatal(err)
	}
	s.printed(t, next, "next")
	if o := observe(t, s.driver, next.ID); o == nil || o.State != workload.Running {
		t.Errorf("the new one: %+v", o)
	}
	if o := observe(t, s.driver, old.ID); o != nil {
		t.Errorf("the old one: %+v", o)
	}
}

func (s *suite) adoption(t *testing.T) {
	prepared, running, ended := s.instance("sleep", "10h"), s.instance("print", "ready", "then", "trap", "15", "5"), s.instance("exit", "7")
	s.prepare(t, prepared)
	s.start(t, running)
	s.start(t, ended)
	s.ended(t, ended.ID)
	s.printedTimes(t, running, "ready", 2)
	s.put(t, running.ID, "/copied", "text")
	s.restart()
	for id, want := range map[workload.ID]workload.State{prepared.ID: workload.Prepared, running.ID: workload.Running, ended.ID: workload.Ended} {
		if o := observe(t, s.driver, id); o == nil || o.State != want {
			t.Errorf("%s: %+v, want state %d", id.Name, o, want)
		}
	}
	if o := observe(t, s.driver, ended.ID); o != nil && o.ExitCode != 7 {
		t.Errorf("%+v, want code 7", o)
	}
	if err := s.driver.Stop(t.Context(), running.ID, sigterm, patience); err != nil {
		t.Error(err)
	}
	if o := observe(t, s.driver, running.ID); o == nil || o.ExitCode != 5 {
		t.Errorf("%+v, want code 5", o)
	}
	// What nobody synced was written out all the same.
	if err := s.driver.Start(t.Context(), running); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := s.command(t, running.ID, payload("cat", "/copied")); code != 0 || out != "text" {
		t.Errorf("code %d, %q %q", code, out, errs)
	}
}

// put copies a text to a file in an instance.
func (s *suite) put(t *testing.T, id workload.ID, path, text string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	root, err := filecopy.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	r, w := io.Pipe()
	go func() { w.CloseWithError(filecopy.Pack(root, "f", w)) }()
	_, _, err = s.driver.CopyTo(t.Context(), id, path, "f", r)
	r.CloseWithError(err)
	if err != nil {
		t.Fatalf("copy to %s: %v", path, err)
	}
}

// endable is an instance that prints "ready" and ends with code 9 when end is
// called, which asks no driver. One whose volumes are no folders ends by itself
// a while after, and end waits for its last word.
func (s *suite) endable(t *testing.T) (in workload.Instance, end func()) {
	t.Helper()
	if !s.Folders {
		in = s.instance("print", "ready", "then", "sleep", "3s", "then", "print", "gone", "then", "exit", "9")
		return in, func() { s.printed(t, in, "gone") }
	}
	volume, _ := s.Volume(t, nil)
	fifo := filepath.Join(volume.Source, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	in = s.instance("print", "ready", "then", "cat", "/mnt/fifo", "then", "exit", "9")
	in.Mounts = []workload.Mount{at(volume, "/mnt")}
	return in, func() {
		f, err := os.OpenFile(fifo, os.O_WRONLY, 0) // waits for the reader
		if err != nil {
			t.Fatal(err)
		}
		f.Close() // its end of file
	}
}

// Instances outlive the runtime's daemon, and one that ends meanwhile is seen
// to have ended. Its code may be lost with the daemon, but never turns into
// success.
func (s *suite) runtimeRestart(t *testing.T) {
	if s.RestartRuntime == nil {
		t.Skip("SKIPPED, no runtime to restart")
	}
	stays := s.instance("tick", "100ms")
	ends, end := s.endable(t)
	s.start(t, stays)
	s.printed(t, stays, "tick 1")
	s.start(t, ends)
	s.printed(t, ends, "ready")
	started := observe(t, s.driver, stays.ID).StartedAt
	s.RestartRuntime(t, end)
	if o := s.ended(t, ends.ID); o.ExitCode == 0 {
		t.Errorf("%+v, want a failure", o)
	}
	if o := observe(t, s.driver, stays.ID); o == nil || o.State != workload.Running || !o.StartedAt.Equal(started) {
		t.Errorf("%+v, want it running", o)
	}
	if code, out, _ := s.command(t, stays.ID, payload("print", "alive")); code != 0 || out != "alive\n" {
		t.Errorf("exec: code %d, %q", code, out)
	}
}
