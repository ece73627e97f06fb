package microvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"capsule/internal/imagetest"
	"capsule/internal/instance"
	"capsule/internal/jail"
	"capsule/internal/logs"
	"capsule/internal/qemu"
	"capsule/internal/workload"
)

const (
	sigterm = 15
	sigkill = 9
)

// instance of the payload's image.
func (w *world) instance(t testing.TB, name string, args ...string) workload.Instance {
	t.Helper()
	if w.base.Name == "" {
		w.base = w.image(t, imagetest.PayloadImage(t, nil))
	}
	return workload.Instance{
		ID:    workload.ID{Name: name, UID: "0a0b0c0d-0000-4000-8000-000000000000", Generation: 1},
		Image: w.base, Args: append([]string{"/payload"}, args...), Cwd: "/",
		Network: workload.Network{Mode: "none", Hostname: name},
		LogDir:  filepath.Join(w.logs, name),
	}
}

// prepare makes an instance that goes with the test.
func (w *world) prepare(t testing.TB, in workload.Instance) {
	t.Helper()
	t.Cleanup(func() {
		if err := w.driver.Remove(context.WithoutCancel(t.Context()), in.ID); err != nil {
			t.Error(err)
		}
	})
	if err := w.driver.Prepare(t.Context(), in); err != nil {
		t.Fatal(err)
	}
}

// run starts an instance, and returns the process of its QEMU once the payload
// has printed the line.
func (w *world) run(t testing.TB, in workload.Instance, line string) *jail.Process {
	t.Helper()
	w.prepare(t, in)
	return w.start(t, in, line)
}

func (w *world) start(t testing.TB, in workload.Instance, line string) *jail.Process {
	t.Helper()
	if err := w.driver.Start(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	printed(t, in.LogDir, line)
	p, err := jail.Find(w.driver.file(recordID(in), lockFile))
	if err != nil || p == nil {
		t.Fatalf("no QEMU: %v", err)
	}
	return p
}

// printed waits until a log has the text.
func printed(t testing.TB, dir, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	found := false
	err := logs.Follow(ctx, dir, logs.Options{Follow: true, Tail: -1}, func(r logs.Record) error {
		if strings.Contains(string(r.Data), text) {
			found = true
			cancel()
		}
		return nil
	})
	if !found || err != nil {
		t.Fatalf("%s has no %q: %v", dir, text, err)
	}
}

// observe an instance until it is in the state.
func (w *world) observe(t *testing.T, id workload.ID, state workload.State) workload.Observed {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	events := w.driver.Events(ctx)
	for {
		list, err := w.driver.List(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range list {
			if o.ID == id && o.State == state {
				return o
			}
		}
		select {
		case <-events:
		case <-time.After(time.Second): // events are hints
		case <-ctx.Done():
			t.Fatalf("%s is in no state %d: %+v", id.Name, state, list)
		}
	}
}

// command runs the payload in an instance.
func (w *world) command(t *testing.T, id workload.ID, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	code, err := w.driver.Exec(t.Context(), id, workload.Exec{Command: append([]string{"/payload"}, args...), Stdout: &out, Stderr: &errs})
	if err != nil || code != 0 {
		t.Errorf("%q: code %d, %v, %q", args, code, err, errs.String())
	}
	return out.String()
}

// do asks the QEMU of an instance.
func (w *world) do(t *testing.T, in workload.Instance, command string) {
	t.Helper()
	m, err := qemu.Dial(t.Context(), w.driver.file(recordID(in), qmpFile))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Do(t.Context(), command, nil, nil); err != nil {
		t.Fatal(err)
	}
}

// The wall stands: what QEMU is, and what it can reach.
func TestJailed(t *testing.T) {
	w := newWorld(t)
	in := w.instance(t, "jailed", "print", "ready", "then", "sleep", "10h")
	pid := w.run(t, in, "ready").PID
	status := processStatus(t, pid)
	user := strconv.Itoa(userBase + 1)
	for field, want := range map[string]string{
		"Uid": strings.Repeat(user+" ", 3) + user, "Gid": strings.Repeat(user+" ", 3) + user, "Groups": "",
		"CapInh": noCapabilities, "CapPrm": noCapabilities, "CapEff": noCapabilities, "CapBnd": noCapabilities, "CapAmb": noCapabilities,
		"NoNewPrivs": "1", "Seccomp": "2",
	} {
		if got := strings.Join(strings.Fields(status[field]), " "); got != want {
			t.Errorf("%s is %q, want %q", field, got, want)
		}
	}
	for _, ns := range []string{"mnt", "net", "ipc", "uts", "pid"} {
		own, err1 := os.Readlink("/proc/self/ns/" + ns)
		its, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		if err := errors.Join(err1, err2); err != nil || own == its {
			t.Errorf("namespace %s: %s and %s, %v", ns, own, its, err)
		}
	}
	root := fmt.Sprintf("/proc/%d/root", pid)
	for _, path := range []string{"/perm", "/etc", "/proc/1", "/sys/kernel", "/run/capsule", "/usr/bin/containerd", "/work", "/home", "/dev/vda", "/dev/mem"} {
		if _, err := os.Lstat(root + path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is in the jail: %v", path, err)
		}
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); !strings.HasPrefix(fields[3]+",", "ro,") {
			t.Errorf("it can write to %s: %s", fields[1], line)
		}
	}
	links, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil || strings.Contains(string(links), "eth") {
		t.Errorf("its network: %s, %v", links, err)
	}
	if score, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid)); strings.TrimSpace(string(score)) != oomScoreAdjust {
		t.Errorf("oom_score_adj is %q, %v", score, err)
	}
}

const noCapabilities = "0000000000000000"

func processStatus(t *testing.T, pid int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = value
	}
	return fields
}

// A machine goes on without a daemon, and what happened meanwhile is found out.
func TestDaemonAway(t *testing.T) {
	w := newWorld(t)
	stays := w.instance(t, "stays", "print", "ready", "then", "trap", "15", "4")
	ends := w.instance(t, "ends", "print", "ready", "then", "sleep", "2s", "then", "print", "gone", "then", "exit", "9")
	first := w.run(t, stays, "ready")
	w.run(t, ends, "ready")
	started := w.observe(t, stays.ID, workload.Running).StartedAt
	w.driver.Close()
	printed(t, ends.LogDir, "gone")
	w.fresh()
	if o := w.observe(t, ends.ID, workload.Ended); o.ExitCode != 9 || o.Note != "" {
		t.Errorf("%+v", o)
	}
	if o := w.observe(t, stays.ID, workload.Running); !o.StartedAt.Equal(started) {
		t.Errorf("%+v, started at %v", o, started)
	}
	// Another start finds that it runs.
	if err := w.driver.Start(t.Context(), stays); err != nil {
		t.Fatal(err)
	}
	again, err := jail.Find(w.driver.file(recordID(stays), lockFile))
	if err != nil || again == nil || again.PID != first.PID {
		t.Errorf("QEMU is %+v, was %d; %v", again, first.PID, err)
	}
	if out := w.command(t, stays.ID, "print", "alive"); out != "alive\n" {
		t.Errorf("printed %q", out)
	}
	if err := w.driver.Stop(t.Context(), stays.ID, sigterm, patience); err != nil {
		t.Fatal(err)
	}
	if o := w.observe(t, stays.ID, workload.Ended); o.ExitCode != 4 {
		t.Errorf("%+v", o)
	}
}

// QEMU's death is the instance's, seen at once.
func TestMachineDies(t *testing.T) {
	w := newWorld(t)
	in := w.instance(t, "dies", "print", "ready", "then", "sleep", "10h")
	p := w.run(t, in, "ready")
	command := make(chan int, 1)
	var errs bytes.Buffer
	began := make(chan struct{})
	go func() {
		code, err := w.driver.Exec(t.Context(), in.ID, workload.Exec{
			Command: []string{"/payload", "print", "up", "then", "sleep", "10h"}, Stdout: &starter{began: began}, Stderr: &errs})
		if err != nil {
			t.Error(err)
		}
		command <- code
	}()
	<-began
	died := time.Now()
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	o := w.observe(t, in.ID, workload.Ended)
	if took := time.Since(died); took > patience/4 || o.ExitCode != 137 || o.OOM || !strings.Contains(o.Note, "machine ended") {
		t.Errorf("%+v after %v", o, took)
	}
	if code := <-command; code != 137 || !strings.Contains(errs.String(), `"dies" ended`) {
		t.Errorf("the command: code %d, %q", code, errs.String())
	}
	// It starts again, from where its disk was.
	w.start(t, in, "ready")
	w.do(t, in, "system_reset")
	if o := w.observe(t, in.ID, workload.Ended); o.ExitCode != 137 || o.Note == "" {
		t.Errorf("after a reset: %+v", o)
	}
}

// starter tells that something was written.
type starter struct{ began chan struct{} }

func (s *starter) Write(p []byte) (int, error) {
	if s.began != nil {
		close(s.began)
		s.began = nil
	}
	return len(p), nil
}

// A guest that does not come up fails with its last words.
func TestNeverUp(t *testing.T) {
	w := newWorld(t)
	in := w.instance(t, "never", "true")
	for _, tc := range []struct {
		name, initramfs, want string
		boot                  time.Duration // a silent guest takes all of it
	}{
		{"panic", "no initramfs", "panic", patience},
		{"silent", string(silentInitramfs(t)), "but nobody answers", 30 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w.opts.Initramfs = filepath.Join(t.TempDir(), "initramfs")
			if err := os.WriteFile(w.opts.Initramfs, []byte(tc.initramfs), 0o644); err != nil {
				t.Fatal(err)
			}
			w.fresh().pace.boot = tc.boot
			w.prepare(t, in)
			err := w.driver.Start(t.Context(), in)
			if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if left, _ := filepath.Glob(filepath.Join(w.opts.RunDir, "*", "*")); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			w.observe(t, in.ID, workload.Prepared)
		})
	}
}

// silentInitramfs holds a process 1 that prints a line and sleeps.
func silentInitramfs(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	entry := func(name string, mode, major, minor int, data []byte) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			0, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)
		b.Write(make([]byte, -b.Len()&3))
		b.Write(data)
		b.Write(make([]byte, -b.Len()&3))
	}
	entry("dev", 0o40755, 0, 0, nil)
	entry("dev/console", 0o20600, 5, 1, nil)
	entry("dev/null", 0o20600, 1, 3, nil)
	entry("init", 0o100755, 0, 0, program(t, "./testdata/silent"))
	entry("TRAILER!!!", 0, 0, 0, nil)
	return b.Bytes()
}

// program builds a static one.
func program(t testing.TB, source string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	cmd := exec.Command("go", "build", "-o", path, source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v: %s", source, err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A guest that does nothing any more is ended all the same.
func TestIgnoresStop(t *testing.T) {
	w := newWorld(t)
	in := w.instance(t, "deaf", "print", "ready", "then", "sleep", "10h")
	w.run(t, in, "ready")
	w.do(t, in, "stop") // its processors
	w.fresh().pace.stop = 2 * time.Second
	list, err := w.driver.List(t.Context())
	if err != nil || len(list) != 1 || list[0].State != workload.Running {
		t.Errorf("listed as %+v, %v", list, err)
	}
	began := time.Now()
	if err := w.driver.Stop(t.Context(), in.ID, sigterm, time.Second); err != nil {
		t.Fatal(err)
	}
	o := w.observe(t, in.ID, workload.Ended)
	if took := time.Since(began); took > time.Minute || o.ExitCode != 137 {
		t.Errorf("%+v after %v", o, took)
	}
}

// LIFE-07: the guest's clock is the capsule's, also after its machine stood still.
func TestClock(t *testing.T) {
	w := newWorld(t)
	in := w.instance(t, "clock", "print", "ready", "then", "sleep", "10h")
	w.run(t, in, "ready")
	off := func() time.Duration {
		before := time.Now()
		nanos, err := strconv.ParseInt(strings.TrimSpace(w.command(t, in.ID, "date")), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return imagetest.Beside(before, time.Unix(0, nanos), time.Now())
	}
	if d := off(); d > 2*time.Second {
		t.Errorf("off by %v", d)
	}
	w.do(t, in, "stop")
	<-time.After(4 * time.Second) // the pause that is to be made up for
	w.do(t, in, "cont")
	deadline := time.Now().Add(patience)
	for off() > 2*time.Second {
		if time.Now().After(deadline) {
			t.Fatalf("off by %v after %v", off(), patience)
		}
		<-time.After(200 * time.Millisecond)
	}
}

// A second machine of an image costs nothing but what it writes.
func TestSecondCopiesNothing(t *testing.T) {
	w := newWorld(t)
	big := imagetest.NewLayer().File("big", 0o644, strings.Repeat("0123456789abcdef", 8<<20/16))
	w.base = w.image(t, imagetest.PayloadImage(t, nil, big))
	w.prepare(t, w.instance(t, "one", "true"))
	cache, disks := usage(t, w.root), usage(t, w.opts.Dir)
	w.prepare(t, w.instance(t, "two", "true"))
	if grown := usage(t, w.root) - cache; grown > 512<<10 {
		t.Errorf("the image cache grew by %d KiB", grown>>10)
	}
	if grown := usage(t, w.opts.Dir) - disks; grown > 8<<20 {
		t.Errorf("the disk takes %d KiB", grown>>10)
	}
}

// usage is the room that a folder takes.
func usage(t testing.TB, dir string) (bytes int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		var info fs.FileInfo
		if err == nil {
			info, err = e.Info()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // containerd collected it meanwhile
		}
		if err == nil {
			bytes += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

func recordID(in workload.Instance) string { return instance.RecordID(in.ID) }
