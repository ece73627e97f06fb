package faults

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat32"
)

const (
	volumeStart = 1 << 20
	volumeSize  = 64 << 20
)

// volume makes an image with a FAT32 volume that holds one file of 10,000 bytes.
func volume(t *testing.T) (*os.File, *fat32.FileSystem) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(volumeStart + volumeSize); err != nil {
		t.Fatal(err)
	}
	fs, err := fat32.Create(file.New(f, false), volumeSize, volumeStart, 512, "ESP", true)
	if err != nil {
		t.Fatal(err)
	}
	out, err := fs.OpenFile("/KEEP.TXT", os.O_CREATE|os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Write(bytes.Repeat([]byte("keep"), 2500)); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return f, fs
}

func free(t *testing.T, f *os.File) (bytes int64) {
	t.Helper()
	v, err := openFAT(f, volumeStart)
	if err != nil {
		t.Fatal(err)
	}
	for _, next := range v.next[fatFirst:] {
		if next == 0 {
			bytes += v.cluster
		}
	}
	return bytes
}

func TestFillFAT(t *testing.T) {
	f, _ := volume(t)
	before, report := free(t, f), fsck(t, f)
	const want = 1 << 20
	if err := FillFAT(f, volumeStart, "FSCK0000.REC", want); err != nil {
		t.Fatal(err)
	}
	if got := free(t, f); got != want {
		t.Errorf("%d bytes are free, want %d", got, want)
	}
	fs, err := fat32.Read(file.New(f, false), volumeSize, volumeStart, 512)
	if err != nil {
		t.Fatal(err)
	}
	info, err := fs.Stat("FSCK0000.REC")
	if err != nil || info.Size() != before-want {
		t.Errorf("the file: %v, %v, want %d bytes", info, err, before-want)
	}
	if kept, err := fs.ReadFile("KEEP.TXT"); err != nil || !bytes.Equal(kept, bytes.Repeat([]byte("keep"), 2500)) {
		t.Errorf("the file that was there has %d bytes, %v", len(kept), err)
	}
	if got := fsck(t, f); got != report {
		t.Errorf("fsck.fat says %q, and before it was filled %q", got, report)
	}
	for name, space := range map[string]int64{"FSCK0000.REC": 0, "MORE.REC": 2 * want, "too-long.name": 0} {
		if err := FillFAT(f, volumeStart, name, space); err == nil {
			t.Errorf("%s down to %d bytes: no error", name, space)
		}
	}
	if err := FillFAT(f, volumeStart, "more.rec", 0); err != nil || free(t, f) != 0 {
		t.Errorf("filled up: %v", err)
	}
	for _, name := range []string{"MORE.REC", "fsck0000.rec"} {
		if err := EmptyFAT(f, volumeStart, name); err != nil {
			t.Error(err)
		}
	}
	if got := free(t, f); got != before {
		t.Errorf("%d bytes are free again, want %d", got, before)
	}
	if got := fsck(t, f); got != report {
		t.Errorf("fsck.fat says %q, and before all %q", got, report)
	}
	if err := EmptyFAT(f, volumeStart, "MORE.REC"); err == nil {
		t.Error("a file was removed twice")
	}
	if err := FillFAT(f, 0, "MORE.REC", 0); err == nil {
		t.Error("what is no volume was filled")
	}
}

// fsck is another opinion of the volume, where it is installed: what is wrong with it.
// That isn't nothing for one of go-diskfs.
func fsck(t *testing.T, f *os.File) string {
	t.Helper()
	part := filepath.Join(t.TempDir(), "volume")
	out, err := os.Create(part)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(out, io.NewSectionReader(f, volumeStart, volumeSize))
	if err := errors.Join(err, out.Close()); err != nil {
		t.Fatal(err)
	}
	report, err := exec.Command("/usr/sbin/fsck.fat", "-n", part).CombinedOutput()
	if err != nil && len(report) == 0 {
		t.Log(err)
	}
	// The last line counts what is used.
	text, _, _ := strings.Cut(string(report), part)
	return text
}

func TestFlipBitTwiceIsNothing(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("abc"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"acc", "abc"} {
		got := make([]byte, 3)
		if err := FlipBit(f, 1); err != nil {
			t.Fatal(err)
		}
		if _, err := f.ReadAt(got, 0); err != nil || string(got) != want {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
	if err := FlipBit(f, 3); !errors.Is(err, io.EOF) {
		t.Errorf("beyond the end: %v", err)
	}
}

func TestExtentsOfDumpEROFS(t *testing.T) {
	const out = ` Ext:   logical offset   |  length :     physical offset    |  length
   0:        0..  134226 |  134226 :    2162688..   2228224 |   65536
 306: 20082688.. 20193406 |  110718 :    9908224..   9928704 |   20480
/usr/bin/capsuled: 2 extents found
`
	found := extent.FindAllStringSubmatch(out, -1)
	if len(found) != 2 || found[0][1] != "2162688" || found[1][1] != "9908224" {
		t.Errorf("found %q", found)
	}
}
