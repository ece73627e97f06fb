//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	capsulev1 "capsule/api/capsule/v1"
)

// run is one command line of the operator, in this process.
func run(t *testing.T, args ...string) {
	t.Helper()
	if code := execute(t.Context(), &ui{in: strings.NewReader(""), out: io.Discard, err: os.Stderr}, args); code != 0 {
		t.Fatalf("capsulectl %v: exit code %d", args, code)
	}
}

// commanded is a capsule that the commands of a test are for.
type commanded struct {
	*testCapsule
	t     *testing.T
	stops []func()
}

func newCommanded(t *testing.T) *commanded {
	t.Helper()
	config := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", config)
	t.Setenv("CAPSULE_HOST", "test")
	c := &commanded{t: t}
	t.Cleanup(c.stop)
	var err error
	if c.testCapsule, err = startCapsule(t.TempDir(), nil, c.later); err != nil {
		t.Fatal(err)
	}
	if err := c.save(filepath.Join(config, "capsule"), "test", capsulev1.Role_ROLE_ADMIN); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *commanded) later(f func()) { c.stops = append(c.stops, f) }

// stop ends the daemon; start starts it again.
func (c *commanded) stop() {
	for i := len(c.stops) - 1; i >= 0; i-- {
		c.stops[i]()
	}
	c.stops = nil
}

func (c *commanded) start() {
	c.t.Helper()
	if err := c.serve(nil, c.later); err != nil {
		c.t.Fatal(err)
	}
}

// Following goes on over a restart of the daemon: each number once, in order.
func TestFollowEvents(t *testing.T) {
	c := newCommanded(t)
	file := filepath.Join(t.TempDir(), "web.yaml")
	if err := os.WriteFile(file, []byte("kind: Container\nname: web\nimage: web:1\ncommand: [sleep, \"1000\"]\n"), 0o600); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	ended := make(chan int)
	go func() {
		ended <- execute(ctx, &ui{in: strings.NewReader(""), out: w, err: os.Stderr}, []string{"events", "-f", "-o", "name"})
		w.Close()
	}()
	numbers := make(chan string, 1000)
	go func() {
		defer close(numbers)
		for lines := bufio.NewScanner(r); lines.Scan(); {
			numbers <- lines.Text()
		}
	}()
	seen := 0
	// until reads numbers without a gap up to the newest that the capsule has now.
	until := func() {
		t.Helper()
		var newest strings.Builder
		if code := execute(t.Context(), &ui{in: strings.NewReader(""), out: &newest, err: os.Stderr}, []string{"events", "--tail", "1", "-o", "name"}); code != 0 {
			t.Fatalf("exit code %d", code)
		}
		for fmt.Sprint(seen) != strings.TrimSpace(newest.String()) {
			select {
			case n := <-numbers:
				if seen++; n != fmt.Sprint(seen) {
					t.Fatalf("got number %q, want %d", n, seen)
				}
			case <-time.After(5 * time.Minute):
				t.Fatalf("still at %d, want %s", seen, &newest)
			}
		}
	}
	run(t, "apply", "-f", file)
	until()
	for range 2 {
		c.stop()
		c.start()
		run(t, "workload", "restart", "web")
		until()
	}
	cancel()
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d", code)
	}
	for n := range numbers { // of what happened meanwhile
		if seen++; n != fmt.Sprint(seen) {
			t.Errorf("then number %q, want %d", n, seen)
		}
	}
}
