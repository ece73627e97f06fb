package slot

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	gocmp "github.com/google/go-cmp/cmp"
)

// fatESP mounts a new FAT of 34 MiB as WithESP does.
func fatESP(t *testing.T, have files) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED, needs root to mount a FAT")
	}
	if _, err := exec.LookPath("mkfs.vfat"); err != nil {
		t.Skip("SKIPPED, needs mkfs.vfat:", err)
	}
	image, dir := filepath.Join(t.TempDir(), "esp"), t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "mkfs.vfat", "-F", "32", "-C", image, "34816").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "vfat", "-o", "loop,sync,umask=0077", image, dir).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED, needs a kernel with loop devices and vfat: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		if out, err := exec.Command("fsck.vfat", "-n", image).CombinedOutput(); err != nil {
			t.Errorf("the file system is damaged: %v: %s", err, out)
		}
	})
	have.write(t, dir)
	return dir
}

var firstStart = files{"loader/entries/CAPSULE-slot_a+2-1.conf": "1 1.0", kernels + "1.0.efi": "MZ a", "FSCK0000.REC": "x"}

func TestRounds(t *testing.T) {
	dir := t.TempDir()
	firstStart.write(t, dir)
	rounds(t, dir)
}

func TestRoundsOnFAT(t *testing.T) { rounds(t, fatESP(t, firstStart)) }

// rounds are two updates with a way back between them.
func rounds(t *testing.T, dir string) {
	t.Helper()
	e := esp{dir: dir}
	steps := []func() error{
		func() error { return e.bless("loader/entries/capsule-slot_a+2-1.CONF") },
		func() error { _, err := Tidy(dir, "slot_a"); return err },
		func() error { return update(e) },
		func() error {
			return os.Rename(filepath.Join(dir, newB), filepath.Join(dir, triedB)) // the loader counts
		},
		func() error { return e.bless(triedB) },
		func() error { return Prefer(dir, "slot_a") },
		func() error { return e.bless("loader/entries/capsule-slot_a-3+3-0.conf") },
		func() error { return update(e) }, // to the same version again
		func() error { return Condemn(dir, "slot_b") },
		func() error { _, err := Tidy(dir, "slot_a"); return err },
	}
	for i, step := range steps {
		if err := step(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	want := files{"loader/entries/capsule-slot_a-3.conf": "3 1.0", kernels + "1.0.efi": "MZ a"}
	if diff := gocmp.Diff(want, readFiles(t, dir)); diff != "" {
		t.Error(diff)
	}
}

// TestFullFAT leaves a full ESP as it was.
func TestFullFAT(t *testing.T) {
	before := whole(nil)
	dir := fatESP(t, before)
	free, err := Space(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Install(dir, "slot_b", "2.0", strings.NewReader(strings.Repeat("x", int(free))), free)
	if !errdefs.IsResourceExhausted(err) {
		t.Error(err)
	}
	if diff := gocmp.Diff(before, readFiles(t, dir)); diff != "" {
		t.Error(diff)
	}
}
