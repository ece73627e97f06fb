//go:build linux

package lab

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat32"
	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/google/go-cmp/cmp"
)

func TestParsePublish(t *testing.T) {
	for text, want := range map[string]Publish{
		"8080:80":   {8080, 80, "tcp"},
		"0:53/udp":  {0, 53, "udp"},
		"8080":      {},
		"80:0":      {},
		"-1:80":     {},
		"80:80/foo": {},
		"65536:80":  {},
		"a:b":       {},
	} {
		got, err := ParsePublish(text)
		if (err == nil) != (want.Port != 0) {
			t.Errorf("ParsePublish(%q): error %v", text, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("ParsePublish(%q): %s", text, diff)
		}
	}
}

func TestArguments(t *testing.T) {
	m := &Machine{
		Name: "a", Dir: "/d,1", Sockets: "/s", API: "127.0.0.1:4000", MemoryBytes: 512 << 20, CPUs: 2, Accel: "kvm",
		Publish: []Publish{{8080, 80, "tcp"}, {53, 5353, "udp"}}, Firmware: "/f", DiskCache: "directsync", Args: []string{"-S"},
	}
	args := m.arguments()
	for _, want := range []string{
		"if=none,id=disk,format=raw,discard=unmap,detect-zeroes=unmap,cache=directsync,file=/d,,1/disk.img",
		"user,id=net0,hostfwd=tcp:127.0.0.1:4000-:50000,hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=udp:127.0.0.1:53-:5353",
		"512M", "kvm", "host", "-S",
	} {
		if !slices.Contains(args, want) {
			t.Errorf("no argument %q in %q", want, args)
		}
	}
}

// blklogwrites refuses what QEMU makes of several requests of one moment.
func TestRecordArguments(t *testing.T) {
	m := &Machine{Name: "a", Dir: t.TempDir(), Record: true}
	if all := strings.Join(m.diskArguments(), " "); !strings.Contains(all, "virtio-blk-pci,drive=disk,") || !strings.Contains(all, ",request-merging=off") {
		t.Errorf("a recorded disk merges requests: %s", all)
	}
}

func TestSeedESP(t *testing.T) {
	const size, start, espBytes = 64 << 20, 2048, 40 << 20
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	storage := file.New(f, false)
	table := &gpt.Table{LogicalSectorSize: sectorBytes, PhysicalSectorSize: sectorBytes, ProtectiveMBR: true, Partitions: []*gpt.Partition{
		{Index: 1, Start: start, End: start + espBytes/sectorBytes - 1, Type: gpt.EFISystemPartition, Name: espName},
	}}
	writable, err := storage.Writable()
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Write(writable, size); err != nil {
		t.Fatal(err)
	}
	if _, err := fat32.Create(storage, espBytes, start*sectorBytes, sectorBytes, espName, false); err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("seed\n"), 300)
	if err := seedESP(path, want); err != nil {
		t.Fatal(err)
	}
	fs, err := fat32.Read(storage, espBytes, start*sectorBytes, sectorBytes)
	if err != nil {
		t.Fatal(err)
	}
	info, err := fs.Stat("capsule/seed.pem")
	if err != nil {
		t.Fatal(err)
	}
	got, err := fs.ReadFile("capsule/seed.pem") // whole clusters
	if err != nil {
		t.Fatal(err)
	}
	got = got[:min(int(info.Size()), len(got))]
	if !bytes.Equal(got, want) {
		t.Errorf("read %d bytes of %d", len(got), len(want))
	}
}
