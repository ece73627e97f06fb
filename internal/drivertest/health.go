package drivertest

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"capsule/internal/health"
	"capsule/internal/workload"
)

// checkMax is the timeout of a check that hangs: long enough for it to have begun,
// on an emulated processor too.
const checkMax = 10 * time.Second

// Checks that are commands run in the instance, as its user, and leave nothing.
func (s *suite) health(t *testing.T) {
	in := s.instance("print", "ready", "then", "sleep", "10h")
	in.Env = append(in.Env, "A=1")
	in.User = "app"
	s.start(t, in)
	s.printed(t, in, "ready")
	before := s.living(t, in.ID)
	at := health.Place{Exec: workload.Checks(s.driver, in.ID)}
	for _, test := range []struct {
		name    string
		args    []string
		timeout time.Duration
		ok      bool
		text    string // the beginning
	}{
		{"ok", []string{"env", "A"}, patience, true, "1"},
		{"as the workload's user", []string{"id"}, patience, true, "uid=1000 gid=1000"},
		{"fails", []string{"printerr", "refused", "then", "exit", "3"}, patience, false, "exit code 3: refused"},
		{"is killed", []string{"kill", "9"}, patience, false, "exit code 137"},
		{"floods", []string{"bytes", "1000000", "then", "false"}, patience, false, "exit code 1: xxxx"},
		// What it started holds its output, and is in a session of its own.
		{"times out", []string{"spawn", "sleep", "10h", "then", "sleep", "10h"}, checkMax, false, "timed out after 10s: spawned "},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := health.Probe(t.Context(), health.Check{Exec: append([]string{"/payload"}, test.args...), Timeout: test.timeout}, at)
			if r.OK != test.ok || r.Void || !strings.HasPrefix(r.Text, test.text) || len(r.Text) > health.TextMax {
				t.Errorf("%+v, want %v %q", r, test.ok, test.text)
			}
			s.onlyLiving(t, in.ID, before)
		})
	}
	t.Run("no such program", func(t *testing.T) {
		r := health.Probe(t.Context(), health.Check{Exec: []string{"nosuch"}, Timeout: patience}, at)
		if r.OK || r.Void || !strings.HasPrefix(r.Text, "exit code 127: ") {
			t.Errorf("%+v", r)
		}
	})
	t.Run("of what has ended", func(t *testing.T) {
		if err := s.driver.Stop(t.Context(), in.ID, sigkill, time.Second); err != nil {
			t.Fatal(err)
		}
		if r := health.Probe(t.Context(), health.Check{Exec: []string{"/payload", "true"}, Timeout: patience}, at); r.OK || !r.Void {
			t.Errorf("%+v", r)
		}
	})
}

// living are the processes of an instance that have not ended, the listing one not
// counted: of what is not its own child the first process may reap nothing.
func (s *suite) living(t *testing.T, id workload.ID) (pids []string) {
	t.Helper()
	for _, pid := range s.processes(t, id) {
		code, out, _ := s.command(t, id, payload("cat", "/proc/"+pid+"/stat"))
		_, after, _ := strings.Cut(out, ") ")
		if code == 0 && !strings.HasPrefix(after, "Z") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// onlyLiving waits until no other process is left.
func (s *suite) onlyLiving(t *testing.T, id workload.ID, want []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	look := time.NewTicker(200 * time.Millisecond)
	defer look.Stop()
	for {
		got := s.living(t, id)
		if slices.Equal(got, want) {
			return
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			t.Fatalf("processes %q are left beside %q", got, want)
		}
	}
}
