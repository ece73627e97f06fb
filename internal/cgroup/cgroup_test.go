package cgroup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A folder of files stands for a group: the drivers' suites meet real ones.
func TestUse(t *testing.T) {
	g := Group(t.TempDir())
	files := map[string]string{
		"memory.current": "1000\n", "memory.stat": "anon 1\ninactive_file 300\n", "cpu.stat": "usage_usec 1500000\n",
		"pids.current": "7\n", "memory.events": "oom 0\noom_kill 0\n", "cgroup.kill": "",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(string(g), name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if use, err := g.Use(); err != nil || use != (Use{Memory: 700, CPU: 1500 * time.Millisecond, PIDs: 7}) {
		t.Errorf("%+v, %v", use, err)
	}
	if g.OutOfMemory() {
		t.Error("out of memory without a kill")
	}
	if err := g.Set("memory.events", "oom 3\noom_kill 2\n"); err != nil || !g.OutOfMemory() {
		t.Errorf("not out of memory: %v", err)
	}
	if err := g.Kill(); err != nil {
		t.Error(err)
	}
	if text, _ := os.ReadFile(filepath.Join(string(g), "cgroup.kill")); string(text) != "1" {
		t.Errorf("told to kill: %q", text)
	}
	if err := g.Set("none", "1"); err == nil {
		t.Error("made a file that the kernel doesn't have")
	}
	if err := g.Set("cpu.stat", "other line\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Use(); err == nil || !strings.Contains(err.Error(), "usage_usec") {
		t.Errorf("a missing line: %v", err)
	}
}

// One without a limit may have a part of what all may have, if that has an end.
func TestLimitMemory(t *testing.T) {
	all, one := Group(t.TempDir()), Group(t.TempDir())
	write(t, filepath.Join(string(one), "memory.max"), "max\n")
	for text, want := range map[string]string{"max\n": "max\n", "1000000\n": "750000"} {
		write(t, filepath.Join(string(all), "memory.max"), text)
		err := one.LimitMemory(all)
		got, _ := os.ReadFile(filepath.Join(string(one), "memory.max"))
		if err != nil || !strings.HasPrefix(string(got), strings.TrimSpace(want)) {
			t.Errorf("of %q: %q, %v", text, got, err)
		}
		write(t, filepath.Join(string(one), "memory.max"), "max\n")
	}
	write(t, filepath.Join(string(all), "memory.max"), "much\n")
	if err := one.LimitMemory(all); err == nil {
		t.Error("of no number")
	}
}
