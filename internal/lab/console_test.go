//go:build linux

package lab

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"
)

// A kernel that hangs under emulation is started again; the same words of a machine
// on KVM mean something else. This QEMU ends when it's reset.
func TestHungKernelIsReset(t *testing.T) {
	qemu, err := findQEMU()
	if err != nil {
		t.Skip(err)
	}
	const line = "[  296.1] rcu: \tPossible timer handling issue on cpu=1 timer-softirq=2\n"
	for accel, want := range map[string]error{"tcg": errEnded, "kvm": context.DeadlineExceeded} {
		t.Run(accel, func(t *testing.T) {
			dir := t.TempDir()
			m := &Machine{Name: "hung", Dir: dir, Sockets: dir, Accel: accel}
			if err := os.WriteFile(m.ConsoleLog(), []byte(line), 0o600); err != nil { // of an earlier start
				t.Fatal(err)
			}
			if out, err := exec.Command(qemu, "-machine", "none", "-S", "-nodefaults", "-display", "none", "-no-reboot", "-daemonize",
				"-pidfile", m.path("qemu.pid"), "-qmp", "unix:"+m.socket("qmp")+",server=on,wait=off").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			t.Cleanup(func() { _ = m.Kill(context.Background()) })
			limit := time.Minute
			if accel == "kvm" {
				limit = time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			ctx, ended := context.WithCancelCause(ctx)
			followed := make(chan struct{})
			m.progress = func(s Step) { t.Log(s.Text) }
			go func() { m.follow(ctx, ended); close(followed) }()
			f, err := os.OpenFile(m.ConsoleLog(), os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			again := time.NewTicker(consoleEvery) // the kernel says it every 21 s
			defer again.Stop()
			for going := true; going; {
				select {
				case <-again.C:
					if _, err := f.WriteString(line); err != nil {
						t.Fatal(err)
					}
				case <-followed:
					going = false
				}
			}
			if err := context.Cause(ctx); !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
		})
	}
}
