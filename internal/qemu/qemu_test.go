package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
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
)

const greeting = `{"QMP": {"version": {}, "capabilities": []}}` + "\n"

// script is a QEMU that answers each command by fn, whose lines it sends.
func script(t *testing.T, fn func(execute string, id uint64) string) *Monitor {
	t.Helper()
	m, err := NewMonitor(t.Context(), fake(t, greeting, fn))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func fake(t *testing.T, hello string, fn func(execute string, id uint64) string) net.Conn {
	t.Helper()
	here, there := net.Pipe()
	t.Cleanup(func() { here.Close() })
	go func() {
		defer there.Close()
		fmt.Fprint(there, hello)
		for in := bufio.NewScanner(there); in.Scan(); {
			var c command
			if err := json.Unmarshal(in.Bytes(), &c); err != nil {
				return
			}
			lines := fmt.Sprintf(`{"return": {}, "id": %d}`+"\n", c.ID)
			if c.Execute != "qmp_capabilities" {
				lines = fn(c.Execute, c.ID)
			}
			fmt.Fprint(there, lines)
		}
	}()
	return here
}

func TestAnswers(t *testing.T) {
	m := script(t, func(execute string, id uint64) string {
		if execute == "bad" {
			return fmt.Sprintf(`{"id": %d, "error": {"class": "CommandNotFound", "desc": "no bad"}}`+"\r\n", id)
		}
		return `{"event": "RESET", "data": {"guest": true}, "timestamp": {"seconds": 5, "microseconds": 7}}` + "\r\n" +
			`{"return": "late", "id": 9999}` + "\r\n" +
			fmt.Sprintf(`{"return": {"name": %q}, "id": %d}`+"\r\n", execute, id)
	})
	var result struct{ Name string }
	if err := m.Do(t.Context(), "query", map[string]int{"a": 1}, &result); err != nil || result.Name != "query" {
		t.Errorf("answer %+v, %v", result, err)
	}
	want := Event{Name: "RESET", Data: json.RawMessage(`{"guest": true}`), Time: time.Unix(5, 7000)}
	if diff := cmp.Diff(want, <-m.Events()); diff != "" {
		t.Error(diff)
	}
	err := m.Do(t.Context(), "bad", nil, nil)
	refused := (*Error)(nil)
	if !errors.As(err, &refused) || refused.Class != "CommandNotFound" || err.Error() != "ask QEMU to bad: no bad" {
		t.Errorf("refusal %v", err)
	}
}

func TestOldestEventsAreLost(t *testing.T) {
	m := script(t, func(_ string, id uint64) string {
		var b strings.Builder
		for i := range eventsMax + 3 {
			fmt.Fprintf(&b, `{"event": "E%d"}`+"\n", i)
		}
		return b.String() + fmt.Sprintf(`{"return": {}, "id": %d}`+"\n", id)
	})
	if err := m.Do(t.Context(), "go", nil, nil); err != nil {
		t.Fatal(err)
	}
	if e := <-m.Events(); e.Name != "E3" {
		t.Errorf("first event %q", e.Name)
	}
}

// A QEMU that says too much, ends, or says nothing is an error in time, also for
// those who ask after it.
func TestEnds(t *testing.T) {
	for name, c := range map[string]struct{ answer, want string }{
		"long line": {strings.Repeat("x", messageMax+1) + "\n", "token too long"},
		"not JSON":  {"hello\n", "invalid character"},
	} {
		t.Run(name, func(t *testing.T) {
			m := script(t, func(string, uint64) string { return c.answer })
			for range 2 {
				if err := m.Do(t.Context(), "go", nil, nil); err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want %q", err, c.want)
				}
			}
			if _, open := <-m.Events(); open || m.Err() == nil {
				t.Errorf("events open %v, error %v", open, m.Err())
			}
		})
	}
}

func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := script(t, func(string, uint64) string { return "" })
		if err := m.Do(t.Context(), "go", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if err := m.Do(ctx, "go", nil, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		m.Close()
		for range m.Events() {
			t.Error("an event")
		}
		if _, err := NewMonitor(t.Context(), fake(t, "", nil)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("no greeting: %v", err)
		}
		if _, err := NewMonitor(t.Context(), fake(t, "220 mail\n", nil)); err == nil {
			t.Error("mail server greeted")
		}
		if _, err := NewMonitor(t.Context(), fake(t, "{}\n", nil)); err == nil {
			t.Error("JSON server greeted")
		}
	})
}

func program(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("SKIPPED: needs qemu-system-x86_64")
	}
	return path
}

func TestRealQEMU(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "qmp")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program(t), "-M", "none", "-nodefaults", "-display", "none", "-S",
		"-chardev", "socket,id=qmp,fd=3,server=on,wait=off", "-mon", "chardev=qmp,mode=control")
	cmd.ExtraFiles, cmd.Stderr = []*os.File{f}, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	for range 2 { // one connection after the other
		m, err := Dial(t.Context(), socket)
		if err != nil {
			t.Fatal(err)
		}
		var status struct{ Status string }
		if err := m.Do(t.Context(), "query-status", nil, &status); err != nil || status.Status != "prelaunch" {
			t.Errorf("status %+v, %v", status, err)
		}
		m.Close()
	}
	m, err := Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Do(t.Context(), "quit", nil, nil); err != nil {
		t.Error(err)
	}
	var names []string
	for e := range m.Events() {
		names = append(names, e.Name)
	}
	if diff := cmp.Diff([]string{"SHUTDOWN"}, names); diff != "" {
		t.Error(diff)
	}
}

// The probe guest must run where everything runs, or it would rule out KVM
// everywhere.
func TestProbeRunsUnderEmulation(t *testing.T) {
	if err := probe(t.Context(), program(t), "tcg", "max"); err != nil {
		t.Error(err)
	}
}
