package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestQuantile(t *testing.T) {
	var times []time.Duration
	for i := range 1000 {
		times = append(times, time.Duration(1000-i))
	}
	for q, want := range map[float64]time.Duration{0.5: 501, 0.99: 991, 1: 1000} {
		if got := quantile(times, q); got != want {
			t.Errorf("quantile %v is %d, want %d", q, got, want)
		}
	}
	if got := quantile(nil, 0.99); got != 0 {
		t.Errorf("of nothing it is %v", got)
	}
}

// What is read of a process is there for this one.
func TestProcess(t *testing.T) {
	p := process(os.Getpid())
	if mib, err := p.memory(); err != nil || mib < 1 || mib > 10000 {
		t.Errorf("%v MiB, %v", mib, err)
	}
	if _, err := p.cpu(); err != nil {
		t.Error(err)
	}
	if _, err := process(0).cpu(); err == nil {
		t.Error("process 0 has a time")
	}
}

func TestWithoutLimits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.json")
	const config = `{"process":{"args":["/web"],"rlimits":[{}]},"linux":{"resources":{"pids":{"limit":1}},"seccomp":{}},"hostname":"web"}`
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := withoutLimits(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"process": map[string]any{"args": []any{"/web"}}, "linux": map[string]any{"seccomp": map[string]any{}}, "hostname": "web"}
	if diff := cmp.Diff(any(want), got); diff != "" {
		t.Error(diff)
	}
}
