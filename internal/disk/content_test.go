package disk

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// put writes bytes at places of an empty disk.
func put(size int, at map[int]string) *bytes.Reader {
	b := make([]byte, size)
	for offset, text := range at {
		copy(b[offset:], text)
	}
	return bytes.NewReader(b)
}

func TestContents(t *testing.T) {
	const size = 8 << 20
	mbr := func(kind byte) string {
		e := make([]byte, 66)
		e[4] = kind
		binary.LittleEndian.PutUint32(e[8:], 2048)
		binary.LittleEndian.PutUint32(e[12:], 4096)
		e[64], e[65] = 0x55, 0xaa
		return string(e)
	}
	whole := func(kind, label string) []Content { return []Content{{Kind: kind, Label: label, Bytes: size}} }
	for name, tc := range map[string]struct {
		at   map[int]string
		want []Content
	}{
		"empty":              {nil, nil},
		"a cut installation": {map[int]string{0: string(UnfinishedMark(512)), 2 << 20: "something"}, nil},
		"ntfs":               {map[int]string{3: "NTFS    ", 510: "\x55\xaa"}, whole("NTFS", "")},
		"exfat":              {map[int]string{3: "EXFAT   "}, whole("exFAT", "")},
		"fat":                {map[int]string{82: "FAT32   ", 71: "PHOTOS     "}, whole("FAT", "PHOTOS")},
		"xfs":                {map[int]string{0: "XFSB", 108: "data"}, whole("XFS", "data")},
		"btrfs":              {map[int]string{0x10040: "_BHRfS_M", 0x1012b: "pool\x1b[2J"}, whole("btrfs", "pool[2J")},
		"luks":               {map[int]string{0: "LUKS\xba\xbe"}, whole("LUKS", "")},
		"lvm":                {map[int]string{512: "LABELONE", 512 + 24: "LVM2 001"}, whole("LVM", "")},
		"raid at the end":    {map[int]string{size - 8192: "\xfc\x4e\x2b\xa9"}, whole("RAID member", "")},
		"zfs":                {map[int]string{132 << 10: "\x0c\xb1\xba\x00\x00\x00\x00\x00"}, whole("ZFS", "")},
		"something":          {map[int]string{100: "x"}, whole(UnknownData, "")},
		"something between":  {map[int]string{edgeBytes + 4096: "x"}, whole(UnknownData, "")},
		"something at end":   {map[int]string{size - 1: "x"}, whole(UnknownData, "")},
		"mbr": {map[int]string{446: mbr(7), 1<<20 + 3: "NTFS    "}, []Content{
			{Kind: "MBR", Bytes: size}, {Where: "partition 1", Kind: "NTFS", Bytes: 4096 * 512},
		}},
		"mbr with what we don't know": {map[int]string{446: mbr(0xa5)}, []Content{
			{Kind: "MBR", Bytes: size}, {Where: "partition 1", Kind: "type a5", Bytes: 4096 * 512},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Contents(put(size, tc.at), 512, size)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The mark of a cut installation stays where an MBR has its program when people make
// something else of the disk afterwards: what they made counts.
func TestStaleMark(t *testing.T) {
	const size = 8 << 20
	entry := make([]byte, 66)
	entry[4], entry[9], entry[13], entry[64], entry[65] = 0x83, 8, 16, 0x55, 0xaa
	for name, at := range map[string]map[int]string{
		"an MBR":                       {446: string(entry)},
		"an MBR without partitions":    {510: "\x55\xaa"},
		"a protective MBR, no GPT":     {0: unfinishedText + string(ProtectiveMBR(512, size/512)[len(unfinishedText):])},
		"a disk's id of Windows":       {440: "\x12\x34\x56\x78"},
		"RAID 1.2":                     {4096: "\xfc\x4e\x2b\xa9"},
		"RAID 1.0":                     {size - 8192: "\xfc\x4e\x2b\xa9"},
		"RAID 0.90":                    {size - 65536: "\xfc\x4e\x2b\xa9"},
		"LVM":                          {512: "LABELONE", 512 + 24: "LVM2 001"},
		"ext4":                         {1024 + 0x38: "\x53\xef"},
		"btrfs":                        {0x10040: "_BHRfS_M"},
		"swap":                         {4096 - 10: "SWAPSPACE2"},
		"something that we can't name": {edgeBytes - 1: "x"},
	} {
		for _, sector := range []int{512, 4096} {
			mark := map[int]string{0: string(UnfinishedMark(sector))}
			if got, err := Contents(put(size, mark), sector, size); err != nil || len(got) > 0 {
				t.Errorf("the mark alone: %v, %v", got, err)
			}
			b := make([]byte, size)
			copy(b, UnfinishedMark(sector))
			for offset, text := range at {
				copy(b[offset:], text)
			}
			if got, err := Contents(bytes.NewReader(b), sector, size); err != nil || len(got) == 0 {
				t.Errorf("%s, blocks of %d: taken as empty, %v", name, sector, err)
			}
		}
	}
	for _, sector := range []int{512, 4096} {
		d := newDisk(t, sector, 8)
		copy(d.b, ProtectiveMBR(sector, uint64(size/sector)))
		copy(d.b, unfinishedText)
		if got, err := Contents(d, sector, size); err != nil || len(got) < 2 || got[0].Kind != "GPT" {
			t.Errorf("a GPT, blocks of %d: %v, %v", sector, got, err)
		}
	}
}

func TestContentsOfGPT(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		d := newDisk(t, sector, 8)
		copy(d.b[4<<20+1024+0x38:], "\x53\xef")
		copy(d.b[4<<20+1024+0x60:], "\x40")
		copy(d.b[4<<20+1024+0x78:], "perm")
		want := []Content{
			{Kind: "GPT", Bytes: 8 << 20},
			{Where: `partition 1 "ESP"`, Kind: "unknown or empty", Bytes: 1 << 20},
			{Where: `partition 2 "slot_a"`, Kind: "unknown or empty", Bytes: 1 << 20},
			{Where: `partition 3 "slot_b"`, Kind: "unknown or empty", Bytes: 1 << 20},
			{Where: `partition 4 "PERM"`, Kind: "ext4", Label: "perm", Bytes: 1 << 20},
		}
		for name, spoil := range map[string]func(){"whole": func() {}, "only the backup is left": func() { clear(d.b[:1<<20]) }} {
			spoil()
			got, err := Contents(d, sector, 8<<20)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" && name == "whole" {
				t.Errorf("%d, %s: %s", sector, name, diff)
			}
			if len(got) == 0 {
				t.Errorf("%d, %s: nothing found", sector, name)
			}
		}
	}
}

// TestContentsOfTools looks at what the usual tools make.
func TestContentsOfTools(t *testing.T) {
	for kind, argv := range map[string][]string{
		"ext4": {"mkfs.ext4", "-q", "-F", "-L", "photos"}, "ext2": {"mkfs.ext2", "-q", "-F", "-L", "photos"},
		"FAT": {"mkfs.vfat", "-n", "photos"}, "NTFS": {"mkfs.ntfs", "-q", "-F", "-f"}, "XFS": {"mkfs.xfs", "-q", "-L", "photos"},
		"btrfs": {"mkfs.btrfs", "-q", "-L", "photos"}, "swap": {"mkswap", "-L", "photos"},
	} {
		t.Run(kind, func(t *testing.T) {
			if _, err := exec.LookPath(argv[0]); err != nil {
				t.Skip("SKIPPED:", err)
			}
			image := filepath.Join(t.TempDir(), "disk")
			f, err := os.Create(image)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			const size = 512 << 20
			if err := f.Truncate(size); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.CommandContext(t.Context(), argv[0], append(argv[1:], image)...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if err := f.Truncate(size); err != nil {
				t.Fatal(err)
			}
			got, err := Contents(f, 512, size)
			if err != nil || len(got) != 1 || got[0].Kind != kind {
				t.Errorf("%v, %v", got, err)
			}
			t.Log(got)
		})
	}
}

func FuzzContents(f *testing.F) {
	f.Add([]byte("LUKS\xba\xbe"), 0)
	f.Add([]byte(gptMagic), 512)
	f.Fuzz(func(_ *testing.T, b []byte, at int) {
		const size = 4 << 20
		d := make([]byte, size)
		copy(d[min(max(at, 0), size):], b)
		_, _ = Contents(bytes.NewReader(d), 512, size)
	})
}
