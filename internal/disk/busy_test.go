package disk

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A program that has a file of the file system open, as one has that is just being
// started, holds an unmount up and doesn't make it fail.
func TestUnmountBusy(t *testing.T) {
	for name, tc := range map[string]struct {
		holds string // seconds
		limit time.Duration
	}{
		"for a moment": {"0.3", time.Minute},
		"for long":     {"60", 50 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
				t.Skipf("SKIPPED, can't mount here: %v", err)
			}
			f, err := os.Create(filepath.Join(dir, "file"))
			if err != nil {
				t.Fatal(err)
			}
			holder := exec.Command("sleep", tc.holds)
			holder.ExtraFiles = []*os.File{f}
			if err := holder.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				_ = holder.Process.Kill()
				_ = holder.Wait()
			})
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			if err := unix.Unmount(dir, 0); err != unix.EBUSY {
				t.Fatalf("%v: the file is not held", err)
			}
			if err := unmount(dir, tc.limit); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(dir, "file")); !os.IsNotExist(err) {
				t.Errorf("%v: it is still mounted", err)
			}
		})
	}
}

// What a process that was killed left mounted is gone for who comes next.
func TestClearMounts(t *testing.T) {
	top := t.TempDir()
	left, plain := filepath.Join(top, "esp-1"), filepath.Join(top, "esp-2")
	for _, dir := range []string{left, plain} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("tmpfs", left, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		t.Skipf("SKIPPED, can't mount here: %v", err)
	}
	clearMounts(filepath.Join(top, "esp-*"))
	if have, err := os.ReadDir(top); err != nil || len(have) > 0 {
		t.Errorf("%v is still there, %v", have, err)
	}
}
