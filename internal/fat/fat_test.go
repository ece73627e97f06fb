package fat

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

const volumeBytes = 300 << 20 // at 4096 bytes a cluster just more than FAT32's least

// used is a file of 0xff: a disk with something on it, of which nothing may show.
func used(t *testing.T, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "volume"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	old := bytes.Repeat([]byte{0xff}, 1<<20)
	for at := int64(0); at < 8<<20; at += int64(len(old)) { // as far as anything is written here
		if _, err := f.WriteAt(old, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestWrite(t *testing.T) {
	files := []File{
		Text("/EFI/BOOT/BOOTX64.EFI", bytes.Repeat([]byte("loader "), 300_000)),
		Text("/EFI/capsule/capsule-1.0+dev.efi", bytes.Repeat([]byte("kernel "), 200_000)),
		Text("/loader/entries/capsule-slot_a+3-0.conf", []byte("title Capsule\n")),
		Text("/capsule/stay", nil),
	}
	for _, sector := range []int{512, 4096} {
		t.Run(fmt.Sprint(sector), func(t *testing.T) {
			f := used(t, volumeBytes)
			v := Volume{Out: f, Bytes: volumeBytes, Sector: sector, Hidden: 2048, Serial: 7, Label: "ESP", When: time.Unix(1_700_000_000, 0)}
			if err := Write(v, files); err != nil {
				t.Fatal(err)
			}
			check(t, f.Name())
			dir := mount(t, f.Name(), sector)
			for _, file := range files {
				got, err := os.ReadFile(filepath.Join(dir, file.Path))
				if err != nil {
					t.Error(err)
					continue
				}
				want := make([]byte, file.Bytes)
				if _, err := file.Content.ReadAt(want, 0); err != nil && file.Bytes > 0 {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Errorf("%s: %d bytes read, %d written", file.Path, len(got), len(want))
				}
			}
		})
	}
}

// check asks the checker of dosfstools, where there is one.
func check(t *testing.T, image string) {
	t.Helper()
	if _, err := exec.LookPath("fsck.vfat"); err != nil {
		t.Log("not checked:", err)
		return
	}
	if out, err := exec.CommandContext(t.Context(), "fsck.vfat", "-n", image).CombinedOutput(); err != nil {
		t.Errorf("fsck.vfat: %v\n%s", err, out)
	}
}

// mount has the kernel read the volume from a disk with these sectors.
func mount(t *testing.T, image string, sector int) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED, needs root to mount")
	}
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", "--read-only", "--sector-size", fmt.Sprint(sector), image).CombinedOutput()
	if err != nil {
		t.Skipf("SKIPPED, needs loop devices: %v: %s", err, out)
	}
	device := string(bytes.TrimSpace(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", device).Run() })
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "vfat", "-o", "ro", device, dir).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED, needs a kernel with vfat: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", dir).Run() })
	return dir
}

type broken struct{ error }

func (b broken) ReadAt([]byte, int64) (int, error)  { return 0, b.error }
func (b broken) WriteAt([]byte, int64) (int, error) { return 0, b.error }

func TestWriteFails(t *testing.T) {
	cause := errors.New("no medium")
	f := used(t, volumeBytes)
	for name, tc := range map[string]struct {
		change func(*Volume)
		file   File
		want   error
	}{
		"too small":    {func(v *Volume) { v.Bytes = 20 << 20 }, Text("/a", nil), errdefs.ErrInvalidArgument},
		"odd sectors":  {func(v *Volume) { v.Sector = 520 }, Text("/a", nil), errdefs.ErrNotImplemented},
		"too large":    {func(*Volume) {}, File{"/a", bytes.NewReader(nil), volumeBytes}, errdefs.ErrResourceExhausted},
		"not readable": {func(*Volume) {}, File{"/a", broken{cause}, 10}, cause},
		"not writable": {func(v *Volume) { v.Out = broken{cause} }, Text("/a", nil), cause},
	} {
		t.Run(name, func(t *testing.T) {
			v := Volume{Out: f, Bytes: volumeBytes, Sector: 512}
			tc.change(&v)
			if err := Write(v, []File{tc.file}); !errors.Is(err, tc.want) {
				t.Errorf("%v, want %v", err, tc.want)
			}
		})
	}
}
