package pid1

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"golang.org/x/sys/unix"
)

func TestOurs(t *testing.T) {
	got := ours([]string{"/", "/run", "/perm", "/perm/containerd/x", "/run/containerd/y", "/run/capsule/volumes/photos", "/permanent", "/proc"})
	if diff := cmp.Diff([]string{"/run/capsule/volumes/photos", "/run/containerd/y", "/perm/containerd/x", "/perm"}, got); diff != "" {
		t.Error(diff)
	}
	if got := unescape(`/perm/a\040b\134c`); got != `/perm/a b\c` {
		t.Error(got)
	}
}

func TestMachineID(t *testing.T) {
	file := filepath.Join(t.TempDir(), "machine-id")
	id, err := machineID(file)
	if err != nil || !validID(id) {
		t.Fatal(id, err)
	}
	if again, err := machineID(file); err != nil || again != id {
		t.Errorf("%q, %v: the id has changed", again, err)
	}
	if got := HostName("a3f2aabb"); got != "capsule-a3f2" {
		t.Error(got)
	}
	if err := os.WriteFile(file, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if id, err := machineID(file); err == nil {
		t.Errorf("rubbish gave %q: a machine must not change its name by itself", id)
	}
}

func TestLogFileIsCapped(t *testing.T) {
	dir := t.TempDir()
	l := newLogFile(filepath.Join(dir, "x.log"))
	line := []byte(strings.Repeat("x", 64<<10-1) + "\n")
	for range 6 * logFileMax / len(line) {
		if _, err := l.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	l.Close()
	_, _ = l.Write(line) // after the end: dropped
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(files) != logFiles {
		t.Errorf("%q, want %d files", files, logFiles)
	}
	for _, file := range files {
		if st, err := os.Stat(file); err != nil || st.Size() > logFileMax {
			t.Errorf("%s: %v, %v", file, st.Size(), err)
		}
	}
}

func TestLogFileOnAFullDiskLosesLinesOnly(t *testing.T) {
	l := newLogFile("/dev/full")
	if n, err := l.Write([]byte("lost\n")); n != 5 || err != nil {
		t.Error(n, err)
	}
}

// The reaper takes orphans and leaves own children to their Wait.
func TestFamily(t *testing.T) {
	var f family
	f.adopt()
	own := exec.Command("true")
	if err := f.start(own); err != nil {
		t.Fatal(err)
	}
	orphan := exec.Command("true")
	if err := orphan.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); alive(orphan.Process.Pid); f.reap() {
		if time.Now().After(deadline) {
			t.Fatal("the orphan wasn't reaped")
		}
	}
	if err := f.wait(own); err != nil {
		t.Errorf("own child: %v", err)
	}
	if err := orphan.Wait(); err == nil {
		t.Error("the orphan was still there")
	}
}

// A service that ends while the storage is being finished, or closed, doesn't
// take the end of a program that runs for that.
func TestFamilyLeavesProgramsOfStorage(t *testing.T) {
	for name, set := range map[string]func(*family){
		"before": func(*family) {},
		"after":  func(f *family) { f.adopt(); f.freeze() },
		"late":   func(f *family) { f.freeze(); f.adopt() },
	} {
		var f family
		set(&f)
		program := exec.Command("true")
		out, err := program.StdoutPipe()
		if err == nil {
			err = program.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		_, _ = out.Read(make([]byte, 1)) // returns when it has ended
		for range 20 {
			service := exec.Command("true")
			if err := f.start(service); err != nil {
				t.Fatal(err)
			}
			if err := f.wait(service); err != nil {
				t.Errorf("%s: service: %v", name, err)
			}
		}
		if err := program.Wait(); err != nil {
			t.Errorf("%s: program of the storage: %v", name, err)
		}
	}
}

// What hangs holds the end up for the limit, what works no longer than it takes.
func TestAttemptIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		for limit, fn := range map[time.Duration]func(){
			lastMax:     func() { <-hang },
			time.Second: func() { time.Sleep(time.Second) },
		} {
			begin := time.Now()
			attempt(max(limit, lastMax), fn)
			if took := time.Since(begin); took != limit {
				t.Errorf("took %v, want %v", took, limit)
			}
		}
		close(hang)
	})
}

func alive(pid int) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	return err == nil
}

func TestNotices(t *testing.T) {
	file := filepath.Join(t.TempDir(), "notify")
	notices, err := listenNotices(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unixgram", file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte("STATUS=x\nREADY=1\n")); err != nil {
		t.Fatal(err)
	}
	if got := []string{<-notices, <-notices}; got[0] != "STATUS=x" || got[1] != "READY=1" {
		t.Error(got)
	}
}

func TestCrashLines(t *testing.T) {
	for line, want := range map[string]bool{
		"panic: runtime error": true, "fatal error: out of memory": true,
		`time="x" level=fatal msg="y"`: true, `level=info msg="no panic: fine"`: false,
	} {
		if crash(line) != want {
			t.Error(line)
		}
	}
}

func TestPowerButton(t *testing.T) {
	if !hasKey("10000000000000 0", keyPower) || hasKey("10000000000000", keyPower) || hasKey("8000 10000000000000 0 0", keyPower) || hasKey("", keyPower) {
		t.Error("the power key's bit is misread")
	}
	event := func(kind, code, value byte) string {
		b := make([]byte, inputEventLen)
		b[16], b[18], b[20] = kind, code, value
		return string(b)
	}
	if !waitPower(strings.NewReader(event(0, 0, 0) + event(eventKey, keyPower, 1))) {
		t.Error("a press was missed")
	}
	if waitPower(strings.NewReader(event(eventKey, 30, 1) + event(eventKey, keyPower, 0))) {
		t.Error("another key or a release counted")
	}
}

func TestReserve(t *testing.T) {
	for memory, want := range map[uint64]uint64{256 << 20: reserveMin, 512 << 20: reserveMin, 2047 << 20: 5791 << 10} {
		if got := reserve(memory); got != want {
			t.Errorf("%d MiB: %d KiB, want %d", memory>>20, got>>10, want>>10)
		}
	}
}

func TestLatestOrder(t *testing.T) {
	signals := make(chan os.Signal, 4)
	if got := latest(restart, signals); got != restart {
		t.Errorf("nothing asked for meanwhile: %v", got)
	}
	signals <- unix.SIGUSR2
	if got := latest(restart, signals); got != powerOff {
		t.Errorf("a shutdown during a restart: %v", got)
	}
	signals <- unix.SIGUSR2
	signals <- unix.SIGTERM
	if got := latest(powerOff, signals); got != restart {
		t.Errorf("a restart asked for last: %v", got)
	}
	signals <- keysSignal
	if got := latest(powerOff, signals); got != powerOff {
		t.Errorf("Ctrl-Alt-Del pressed once: %v", got)
	}
}

// Where the environment of workloads passes on its way to runc, no disk is.
func TestRuntimeFilesAreInMemory(t *testing.T) {
	for _, entry := range containerdEnv() {
		if dir, ok := strings.CutPrefix(entry, "XDG_RUNTIME_DIR="); ok {
			if !strings.HasPrefix(dir, "/run/") {
				t.Errorf("it is at %s", dir)
			}
			return
		}
	}
	t.Error("go-runc takes TMPDIR, which is on the disk")
}
