package watchdog

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestOpenAndFeed(t *testing.T) {
	dir := t.TempDir()
	device := filepath.Join(dir, "watchdog0")
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w := New(dir)
	w.Feed()
	if names := w.Open(); len(names) != 1 {
		t.Fatalf("armed %q", names)
	}
	if names := w.Open(); len(names) != 1 {
		t.Fatalf("armed twice: %q", names)
	}
	w.Feed()
	got, err := os.ReadFile(device)
	if err != nil || string(got) != "\x00" {
		t.Errorf("device got %q, %v: want one zero byte and no magic close", got, err)
	}
}

// What is promised of every hang.
func TestWithinAMinute(t *testing.T) {
	if Timeout+Every > time.Minute {
		t.Errorf("%v after food that may come %v late", Timeout, Every)
	}
}
