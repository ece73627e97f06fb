package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"capsule/internal/logs"
)

// asProgram makes the test binary be the program.
const asProgram = "CAPSULE_LOG_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// pipe gives both ends, the way a shim and QEMU hand theirs over.
func pipe(t *testing.T, socket bool) (ours, theirs *os.File) {
	t.Helper()
	if !socket {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		return w, r
	}
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
}

func collect(t *testing.T, dir string) string {
	t.Helper()
	var text string
	err := logs.Follow(context.Background(), dir, logs.Options{Tail: -1}, func(r logs.Record) error {
		if r.Stream == logs.Stderr {
			text += "err: "
		}
		text += string(r.Data)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return text
}

// records counts those of a log.
func records(t *testing.T, dir string) (n int) {
	t.Helper()
	_ = logs.Follow(context.Background(), dir, logs.Options{Tail: -1}, func(logs.Record) error { n++; return nil })
	return n
}

func TestStreams(t *testing.T) {
	for name, sockets := range map[string]bool{"pipes of a shim": false, "sockets of a microVM": true} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "log")
			cmd := exec.Command(os.Args[0], dir, "") // as a shim does
			cmd.Env = []string{asProgram + "=1"}
			cmd.Stderr = os.Stderr
			out, outThere := pipe(t, sockets)
			errs, errsThere := pipe(t, sockets)
			ready, readyThere, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.ExtraFiles = []*os.File{outThere, errsThere, readyThere}
			var serial *os.File
			if sockets {
				var there *os.File
				serial, there = pipe(t, true)
				cmd.Args[2] = logs.Serial(dir)
				cmd.ExtraFiles = append(cmd.ExtraFiles, there)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			for _, f := range cmd.ExtraFiles {
				f.Close()
			}
			if _, err := io.ReadAll(ready); err != nil { // closed once it is ready
				t.Fatal(err)
			}
			write := func(f *os.File, text string) {
				if _, err := io.WriteString(f, text); err != nil {
					t.Error(err)
				}
			}
			if serial != nil {
				for _, c := range "kernel\n" {
					write(serial, string(c))
				}
			}
			write(out, "printed\n")
			out.Close()
			write(errs, "bad\n") // the others go on
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
			errs.Close()
			want := map[string]string{dir: "printed\nerr: bad\n"}
			if serial != nil {
				write(serial, "power off")
				serial.Close()
				want[logs.Serial(dir)] = "kernel\npower off"
			}
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
			if n := records(t, logs.Serial(dir)); serial != nil && n != 2 {
				t.Errorf("the serial line's log has %d records, want one for each line", n)
			}
			for dir, text := range want {
				if diff := cmp.Diff(text, collect(t, dir)); diff != "" {
					t.Errorf("%s: %s", dir, diff)
				}
			}
		})
	}
}

// TestManualQuotesSerialLimit checks the table of limits in the manual.
func TestManualQuotesSerialLimit(t *testing.T) {
	page, err := os.ReadFile("../../docs/workloads.md")
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("| serial console's log of a `MicroVM` | %d MiB |", serialLimits.FileBytes*int64(serialLimits.Files)>>20)
	if !strings.Contains(string(page), want) {
		t.Errorf("docs/workloads.md lacks %q", want)
	}
}

// Its part of a full disk is no larger than a workload's.
func TestLeaveReserve(t *testing.T) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := leaveReserve(); err != nil { // its thread ends with it
			t.Error(err)
		}
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(&header, &data[0]); err != nil || data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0 {
			t.Errorf("%+v, %v", data, err)
		}
	}()
	<-done
}
