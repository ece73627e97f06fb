package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	diskfs "github.com/diskfs/go-diskfs"
	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/google/go-cmp/cmp"
)

// testDisk writes a disk image with a small root and ESP.
func testDisk(t *testing.T, dir string) (string, []espFile) {
	t.Helper()
	root := filepath.Join(dir, "root")
	if err := os.WriteFile(root, []byte("the root"), 0o644); err != nil {
		t.Fatal(err)
	}
	files := []espFile{
		{path: "/EFI/BOOT/BOOTX64.EFI", content: strings.Repeat("loader", 5000)},
		{path: "/EFI/capsule/capsule-1.2.3-a_long_version.efi", content: strings.Repeat("kernel", 100000)},
		{path: "/EFI/capsule/capsule-1.2.4-a_long_version.efi", content: "second of the same short name"},
		{path: "/loader/loader.conf", content: loaderConf},
		{path: "/loader/entries/capsule-slot_a+3-0.conf", content: "title Capsule 1\nsort-key capsule\nversion 1\nefi /k.efi\n"},
	}
	image := filepath.Join(dir, "disk.img")
	b := &builder{buildUnix: 1795599500}
	if err := b.writeDisk(image, rootImage{Path: root, Hash: "abc"}, files); err != nil {
		t.Fatal(err)
	}
	return image, files
}

func TestDisk(t *testing.T) {
	image, files := testDisk(t, t.TempDir())
	d, err := diskfs.Open(image, diskfs.WithOpenMode(diskfs.ReadOnly))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	table, err := d.GetPartitionTable()
	if err != nil {
		t.Fatal(err)
	}
	type part struct {
		Name       string
		Start, End uint64
		Kind       gpt.Type
	}
	var got []part
	ids := map[string]bool{}
	for _, p := range table.(*gpt.Table).Partitions {
		got = append(got, part{p.Name, p.Start, p.End, p.Type})
		ids[p.GUID] = true
	}
	const mib, gib = 2048, 2048 * 1024 // in sectors
	want := []part{
		{"ESP", mib, mib + gib - 1, typeESP}, {"slot_a", mib + gib, mib + 2*gib - 1, typeSlot},
		{"slot_b", mib + 2*gib, mib + 3*gib - 1, typeSlot}, {"PERM", mib + 3*gib, mib + 4*gib - 1, typePERM},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("partitions (-want +got):\n%s", diff)
	}
	if len(ids) != len(want) {
		t.Errorf("partitions share identifiers: %v", ids)
	}
	esp, err := d.GetFilesystem(1)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		f, err := esp.OpenFile(file.path, os.O_RDONLY)
		if err != nil {
			t.Errorf("open %s: %v", file.path, err)
			continue
		}
		content, err := io.ReadAll(f)
		if err != nil || string(content) != file.content {
			t.Errorf("%s: %d bytes read, %d written: %v", file.path, len(content), len(file.content), err)
		}
	}
}

// TestFATCheck asks the file system checker, where the machine has it.
func TestFATCheck(t *testing.T) {
	if _, err := exec.LookPath("fsck.vfat"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	image, _ := testDisk(t, dir)
	esp := filepath.Join(dir, "esp.img")
	in, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(esp)
	if err != nil {
		t.Fatal(err)
	}
	// The end of the ESP is a hole: what is used stands at its beginning.
	if _, err := io.Copy(out, io.NewSectionReader(in, alignment, 16<<20)); err != nil {
		t.Fatal(err)
	}
	if err := out.Truncate(espSize); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("fsck.vfat", "-n", esp).CombinedOutput(); err != nil {
		t.Errorf("fsck.vfat: %v\n%s", err, out)
	}
}

func TestDiskRepeats(t *testing.T) {
	var sums [2]string
	for i := range sums {
		image, _ := testDisk(t, t.TempDir())
		f, err := os.Open(image)
		if err != nil {
			t.Fatal(err)
		}
		k := newKey()
		// Table, ESP's used beginning, slot A's.
		for _, at := range []int64{0, alignment + espSize, diskSize - alignment} {
			if _, err := io.Copy(k.hash, io.NewSectionReader(f, at, 2<<20)); err != nil {
				t.Fatal(err)
			}
		}
		f.Close()
		if sums[i], err = k.sum(); err != nil {
			t.Fatal(err)
		}
	}
	if sums[0] != sums[1] {
		t.Error("two disks of the same content differ")
	}
}

func TestLoaderNamesNoDefault(t *testing.T) {
	if strings.Contains(loaderConf, "default") {
		t.Error("loader.conf names a default: a slot without tries left would boot for ever")
	}
}
