package guest

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"capsule/internal/imagetest"
)

func TestOption(t *testing.T) {
	for line, want := range map[string]string{
		"": "vsock", "quiet\n": "vsock", "a capsule.channel=port b\n": "port",
		"capsule.channel=port capsule.channel=vsock": "vsock", "xcapsule.channel=port": "vsock", "capsule.channel=": "",
	} {
		if got := option(line, "capsule.channel", "vsock"); got != want {
			t.Errorf("%q: %q", line, got)
		}
	}
}

func TestFindDevices(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"vda/serial": "disk\n", "vdb/serial": "image", "loop0/size": "0", "vport0p1/name": "capsule.stdout\n"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := named(dir, "serial", "disk") + named(dir, "serial", "image") + named(dir, "serial", "none"); got != "vdavdb" {
		t.Errorf("disks %q", got)
	}
	if err := os.MkdirAll(filepath.Join(dir, "sda/device"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sda/device/vpd_pg80"), []byte("\x00\x80\x00\x04vol3"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := findDisk(dir, "image") + findDisk(dir, "vol3") + findDisk(dir, "none"); got != "vdbsda" {
		t.Errorf("disks %q", got)
	}
	if got := named(dir, "name", stdout) + named(dir, "name", stderr); got != "vport0p1" {
		t.Errorf("ports %q", got)
	}
}

func TestSerialPage(t *testing.T) {
	for page, want := range map[string]string{
		"": "", "\x00\x80": "", "\x00\x80\x00\x00": "", "\x00\x80\x00\x04vol1": "vol1", "\x00\x80\x00\x06vol1  ": "vol1",
		"\x00\x80\x00\x04vol1more": "vol1", "\x00\x80\xff\xffvol1": "vol1", "\x00\x83\x00\x04vol1": "",
	} {
		if got := serialPage([]byte(page)); got != want {
			t.Errorf("%q: %q, want %q", page, got, want)
		}
	}
}

func FuzzSerialPage(f *testing.F) {
	f.Add([]byte("\x00\x80\x00\x04vol1"))
	f.Fuzz(func(t *testing.T, page []byte) {
		if got := serialPage(page); len(got) > max(0, len(page)-4) {
			t.Errorf("%q of %q", got, page)
		}
	})
}

// A folder of a volume is a folder, and inside.
func TestInside(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "data/deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"link": "data", "out": "/", "data/up": "../data"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for folder, want := range map[string]string{"": dir, "data": dir + "/data", "data/deep": dir + "/data/deep"} {
		if got, err := inside(dir, folder); got != want || err != nil {
			t.Errorf("%q: %q, %v", folder, got, err)
		}
	}
	for folder, want := range map[string]error{
		"/data": errdefs.ErrInvalidArgument, "..": errdefs.ErrInvalidArgument, "data/../..": errdefs.ErrInvalidArgument,
		"none": errdefs.ErrFailedPrecondition, "file": errdefs.ErrFailedPrecondition, "link": errdefs.ErrFailedPrecondition,
		"out": errdefs.ErrFailedPrecondition, "data/up/deep": errdefs.ErrFailedPrecondition,
	} {
		if got, err := inside(dir, folder); !errors.Is(err, want) {
			t.Errorf("%q: %q, %v, want %v", folder, got, err, want)
		}
	}
}

// Nobody who reads a file while it is replaced finds it empty, and nothing of the
// old content stays.
func TestWriteFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "hosts")
	for _, text := range []string{"long content\n", "short\n", ""} {
		if err := writeFile(name, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(name); err != nil || string(got) != text {
			t.Errorf("got %q, %v; want %q", got, err, text)
		}
	}
}

// reaping marks the process that reaps, in which nobody else waits for children.
const reaping = "CAPSULE_GUEST_TEST_REAPING"

// Orphans are reaped, and nothing is taken from who waits for its own.
func TestReap(t *testing.T) {
	if os.Getenv(reaping) == "" {
		payload := filepath.Join(t.TempDir(), "payload")
		if err := os.WriteFile(payload, imagetest.Payload(t), 0o700); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestReap$", "-test.v")
		cmd.Env = append(os.Environ(), reaping+"="+payload)
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS")) {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	c := &children{}
	go c.reapOrphans(orphans())
	for i := range 20 {
		out, theirs, err := pipe(true)
		if err != nil {
			t.Fatal(err)
		}
		// Its child outlives it for a moment, with the pipe, and becomes ours.
		p, err := c.start(os.Getenv(reaping), []string{"payload", "spawn", "sleep", "20ms", "then", "exit", "7"}, &os.ProcAttr{Files: []*os.File{nil, theirs, theirs}})
		if err != nil {
			t.Fatal(err)
		}
		theirs.Close()
		if code, err := c.wait(p); code != 7 || err != nil {
			t.Fatalf("start %d: code %d, %v", i, code, err)
		}
		text, _ := io.ReadAll(out) // until the orphan has ended
		out.Close()
		var pid int
		if _, after, ok := strings.Cut(string(text), "spawned "); ok {
			for _, digit := range strings.TrimSpace(after) {
				pid = pid*10 + int(digit-'0')
			}
		}
		for deadline := time.Now().Add(patience); !errors.Is(unix.Kill(pid, 0), unix.ESRCH); { // a zombie is still there
			if time.Now().After(deadline) {
				t.Fatalf("start %d: orphan %d is a zombie", i, pid)
			}
			<-time.After(time.Millisecond)
		}
	}
}

func TestPidOf(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if got := pidOf(&info); got != cmd.Process.Pid {
		t.Errorf("process %d is told as %d", cmd.Process.Pid, got)
	}
}
