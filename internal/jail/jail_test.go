package jail

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const user = 200007

func TestMain(m *testing.M) {
	Stage()
	os.Exit(m.Run())
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// prisoner is a config whose program ends when the returned function is called,
// and the lines that it prints.
func prisoner(t *testing.T) (c Config, lines *bufio.Scanner, release func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "prisoner")
	build := exec.Command("go", "build", "-o", program, "./testdata/prisoner")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	data := filepath.Join(dir, "data")
	check(t, os.MkdirAll(filepath.Join(data, "below"), 0o755))
	check(t, os.WriteFile(filepath.Join(data, "file"), nil, 0o644))
	check(t, unix.Mount("none", filepath.Join(data, "below"), "tmpfs", 0, ""))
	t.Cleanup(func() { check(t, unix.Unmount(filepath.Join(data, "below"), 0)) })
	check(t, os.WriteFile(filepath.Join(data, "below", "file"), nil, 0o644))
	waits, ends := pipe(t)
	out, in := pipe(t)
	c = Config{
		Root:    []Mount{{program, "/bin/prisoner"}, {data, "/data"}},
		Devices: []string{"/dev/null", "/dev/zero"},
		UID:     user, GID: user,
		Args: []string{"/bin/prisoner"}, Stdout: in, Stderr: os.Stderr,
	}
	c.Files.Add(waits)
	return c, bufio.NewScanner(out), func() { ends.Close() }
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	check(t, err)
	t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	return r, w
}

func run(t *testing.T, c Config) *Process {
	t.Helper()
	p, err := Start(t.Context(), c)
	check(t, err)
	t.Cleanup(func() {
		_ = p.Kill()
		<-p.Done()
	})
	return p
}

func TestPrisoner(t *testing.T) {
	c, lines, release := prisoner(t)
	p := run(t, c)
	var got []string
	for lines.Scan() && lines.Text() != "end" {
		got = append(got, lines.Text())
	}
	want := []string{"/ <nil>", "/bin <nil>", "/bin/prisoner <nil>", "/data <nil>", "/data/below <nil>", "/data/file <nil>",
		"/dev <nil>", "/dev/null <nil>", "/dev/zero <nil>"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what it could and saw:\n%s", diff)
	}
	release()
	<-p.Done()
	if p.Err() == nil || p.Err().Error() != "exit status 7" {
		t.Errorf("end: %v", p.Err())
	}
	if err := p.Kill(); err != nil {
		t.Errorf("kill after its end: %v", err)
	}
}

// facts of a running process, as the kernel tells them.
func status(t *testing.T, pid int) map[string]string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	check(t, err)
	fields := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.Join(strings.Fields(value), " ")
	}
	return fields
}

func compare(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s: %s is %q, want %q", what, name, got[name], value)
		}
	}
}

// jailed checks what must be true of every jailed process.
func jailed(t *testing.T, pid int) {
	t.Helper()
	id := strings.TrimSpace(strings.Repeat(fmt.Sprintf("%d ", user), 4))
	none := "0000000000000000"
	compare(t, "status", status(t, pid), map[string]string{
		"Uid": id, "Gid": id, "Groups": "", "NoNewPrivs": "1", "Umask": "0077",
		"CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": none, "CapAmb": none,
	})
	for _, ns := range []string{"mnt", "net", "ipc", "uts", "pid"} {
		own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		check(t, err)
		if mine, err := os.Readlink("/proc/self/ns/" + ns); err != nil || own == mine {
			t.Errorf("namespace %s is the caller's", ns)
		}
	}
	limits := map[string]string{}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	check(t, err)
	for line := range strings.Lines(string(text)) {
		limits[strings.TrimSpace(line[:26])] = strings.Join(strings.Fields(line[26:]), " ")
	}
	compare(t, "limit", limits, map[string]string{
		"Max core file size": "0 0 bytes", "Max open files": fmt.Sprintf("%d %[1]d files", openFilesMax),
	})
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil || len(environment) > 0 {
		t.Errorf("environment %q, %v", environment, err)
	}
	session, err := unix.Getsid(pid)
	if err != nil || session != pid {
		t.Errorf("session %d of process %d, %v", session, pid, err)
	}
}

// mounts are the places and options of a process's mounts.
func mounts(t *testing.T, pid int) map[string]string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	check(t, err)
	found := map[string]string{}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		found[f[4]] += f[5]
	}
	return found
}

func TestWhatTheKernelTells(t *testing.T) {
	c, lines, _ := prisoner(t)
	p := run(t, c)
	for lines.Scan() && lines.Text() != "end" {
	}
	jailed(t, p.PID)
	compare(t, "status", status(t, p.PID), map[string]string{"SigBlk": "0000000000000000", "SigIgn": "0000000000000000"})
	want := map[string]string{"/": "ro,nosuid,noexec,relatime", "/bin/prisoner": "ro,nosuid,nodev,relatime", "/data": "ro,nosuid,nodev,relatime"}
	if diff := cmp.Diff(want, mounts(t, p.PID)); diff != "" {
		t.Errorf("mounts:\n%s", diff)
	}
	// Go's runtime opens more than it is given.
	files := open(t, p.PID)
	if files[0] != "/dev/null" || files[1] != "pipe" || files[3] != "pipe" {
		t.Errorf("files: %v", files)
	}
	for n, name := range files {
		if n > 3 && !strings.HasPrefix(name, "anon_inode") {
			t.Errorf("file %d is %s", n, name)
		}
	}
}

// open are the files of a process by number; of sockets and pipes the kind only.
func open(t *testing.T, pid int) map[int]string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	check(t, err)
	files := map[int]string{}
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		var n int
		_, err = fmt.Sscan(e.Name(), &n)
		check(t, err)
		files[n], _, _ = strings.Cut(to, ":[")
	}
	return files
}

func TestRefusals(t *testing.T) {
	good, _, _ := prisoner(t)
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no program":    {func(c *Config) { c.Args = nil }, "needs a program"},
		"root":          {func(c *Config) { c.UID = 0 }, "not root's"},
		"root's group":  {func(c *Config) { c.GID = 0 }, "not root's"},
		"no such file":  {func(c *Config) { c.Root = append(c.Root, Mount{"/no/such", "/x"}) }, `take /no/such: no such file or directory`},
		"bad place":     {func(c *Config) { c.Root = append(c.Root, Mount{"/dev", "/bin/prisoner/x"}) }, "show /bin/prisoner/x: "},
		"no executable": {func(c *Config) { c.Args = []string{"/bin/sh"} }, `jail "/bin/sh": run it: no such file or directory`},
		"not one":       {func(c *Config) { c.Args = []string{"/data/file"} }, "run it: permission denied"},
		"no device":     {func(c *Config) { c.Devices = []string{"/dev/nosuch"} }, "find device /dev/nosuch: no such file"},
		"no device's":   {func(c *Config) { c.Devices = []string{"/dev"} }, "/dev is no character device"},
		"no cgroup":     {func(c *Config) { c.Cgroup = "/no/such" }, "open cgroup /no/such: "},
		"bad cgroup":    {func(c *Config) { c.Cgroup = "/dev" }, "bad file descriptor"},
	} {
		t.Run(name, func(t *testing.T) {
			c := good
			c.Root, c.Args = slices.Clone(c.Root), slices.Clone(c.Args)
			lock := filepath.Join(t.TempDir(), "lock")
			held, err := Lock(lock)
			check(t, err)
			c.Lock = held
			test.change(&c)
			if _, err := Start(t.Context(), c); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			held.Close()
			if p, err := Find(lock); p != nil || err != nil {
				t.Errorf("something is left: %v, %v", p, err)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(ctx, good); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestLock(t *testing.T) {
	c, _, release := prisoner(t)
	path := filepath.Join(t.TempDir(), "lock")
	if p, err := Find(path); p != nil || err != nil {
		t.Errorf("before: %v, %v", p, err)
	}
	var err error
	c.Lock, err = Lock(path)
	check(t, err)
	p := run(t, c)
	c.Lock.Close()
	if _, err := Lock(path); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second lock: %v", err)
	}
	q, err := Find(path)
	check(t, err)
	if q.PID != p.PID {
		t.Errorf("found %d, want %d", q.PID, p.PID)
	}
	select {
	case <-q.Done():
		t.Error("ended")
	default:
	}
	release()
	<-q.Done()
	<-p.Done()
	if p, err := Find(path); p != nil || err != nil {
		t.Errorf("after: %v, %v", p, err)
	}
	again, err := Lock(path)
	check(t, err)
	again.Close()
}

func TestFoundIsKilled(t *testing.T) {
	c, _, _ := prisoner(t)
	path := filepath.Join(t.TempDir(), "lock")
	var err error
	c.Lock, err = Lock(path)
	check(t, err)
	p := run(t, c)
	c.Lock.Close()
	q, err := Find(path)
	check(t, err)
	check(t, q.Kill())
	<-q.Done()
	<-p.Done()
	check(t, q.Kill())
}

// startsAndLeaves is set in a process that starts a program and ends at once.
const startsAndLeaves = "CAPSULE_JAIL_LEAVES"

func TestOutlivesItsParent(t *testing.T) {
	c, lines, release := prisoner(t)
	if path := os.Getenv(startsAndLeaves); path != "" {
		var err error
		c.Lock, err = Lock(path)
		check(t, err)
		c.Files[0], c.Stdout, c.Stderr = os.NewFile(3, "wait"), os.NewFile(4, "out"), nil
		_, err = Start(t.Context(), c)
		check(t, err)
		return
	}
	path := filepath.Join(t.TempDir(), "lock")
	parent := exec.Command("/proc/self/exe", "-test.run=^TestOutlivesItsParent$")
	parent.Env = append(os.Environ(), startsAndLeaves+"="+path)
	parent.ExtraFiles = []*os.File{c.Files[0], c.Stdout}
	if out, err := parent.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for lines.Scan() && lines.Text() != "end" {
	}
	p, err := Find(path)
	check(t, err)
	if p == nil {
		t.Fatal("it ended with its parent")
	}
	release()
	<-p.Done()
}

func TestCgroup(t *testing.T) {
	c, _, _ := prisoner(t)
	root := ""
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err == nil {
			root = dir
			break
		}
	}
	if root == "" {
		t.Skip("SKIPPED: needs cgroup v2")
	}
	dir, err := os.MkdirTemp(root, "jail-test")
	check(t, err)
	c.Cgroup = dir
	p, err := Start(t.Context(), c)
	check(t, err)
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil || strings.TrimSpace(string(text)) != fmt.Sprint(p.PID) {
		t.Errorf("processes %q of the group, %v; want %d", text, err, p.PID)
	}
	check(t, p.Kill())
	<-p.Done()
	check(t, os.Remove(dir))
}

// qemu is trixie's, as the image has it, in the image's root.
func qemu(t *testing.T) (root []Mount) {
	t.Helper()
	tree, err := filepath.Abs("../../build/work/root")
	check(t, err)
	for _, path := range []string{"/usr/bin/qemu-system-x86_64", "/usr/lib/x86_64-linux-gnu", "/usr/share/qemu", "/usr/share/seabios"} {
		if _, err := os.Stat(tree + path); err != nil {
			t.Skipf("SKIPPED: needs make image: %v", err)
		}
		root = append(root, Mount{tree + path, path})
	}
	return append(root, Mount{tree + "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "/lib64/ld-linux-x86-64.so.2"})
}

// The program that the jail is for: it works, holds no file but its own, and its
// seccomp filters are on.
func TestQEMU(t *testing.T) {
	c, _, _ := prisoner(t)
	here, there, err := socketpair()
	check(t, err)
	c.Root, c.Devices, c.Files, c.Stdout = qemu(t), nil, nil, nil
	fd := c.Files.Add(there)
	c.Args = []string{"/usr/bin/qemu-system-x86_64", "-M", "microvm", "-accel", "tcg", "-S", "-nodefaults", "-no-user-config", "-display", "none",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", fd), "-mon", "chardev=qmp,mode=control"}
	p := run(t, c)
	there.Close()
	conn, err := net.FileConn(here)
	check(t, err)
	defer conn.Close()
	in := json.NewDecoder(conn)
	var hello map[string]any
	check(t, in.Decode(&hello))
	jailed(t, p.PID)
	compare(t, "status", status(t, p.PID), map[string]string{"Seccomp": "2"})
	for n, name := range open(t, p.PID) {
		if strings.HasPrefix(name, "/") && name != "/dev/null" {
			t.Errorf("file %d is %s", n, name)
		}
	}
	_, err = io.WriteString(conn, `{"execute":"qmp_capabilities"}{"execute":"quit"}`)
	check(t, err)
	<-p.Done()
	if p.Err() != nil {
		t.Errorf("end: %v", p.Err())
	}
}
