package watchdog

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestFeedsOnlyTheLiving(t *testing.T) {
	dir := t.TempDir()
	device := filepath.Join(dir, "watchdog0")
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w := &Watchdog{dir: dir, files: map[string]*os.File{}}
	if names := w.Open(); len(names) != 1 {
		t.Fatalf("armed %q", names)
	}
	if names := w.Open(); len(names) != 1 {
		t.Fatalf("armed twice: %q", names)
	}
	w.Alive(time.Minute)
	w.feed(time.Now())
	w.feed(time.Now().Add(2 * time.Minute))
	got, err := os.ReadFile(device)
	if err != nil || string(got) != "\x00" {
		t.Errorf("device got %q, %v: want one zero byte and no magic close", got, err)
	}
}
