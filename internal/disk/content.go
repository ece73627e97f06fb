package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
)

// A Content is something on a disk that is lost when a capsule is installed on it.
type Content struct {
	Where string // "" for the disk as a whole, else `partition 2 "data"`
	Kind  string // "ext4", "GPT", "unknown data"
	Label string
	Bytes uint64
}

// String is for people: `partition 2 "data": ext4 "photos"`.
func (c Content) String() string {
	text := c.Kind
	if c.Label != "" {
		text += fmt.Sprintf(" %q", c.Label)
	}
	if c.Where != "" {
		text = c.Where + ": " + text
	}
	return text
}

const (
	edgeBytes   = 1 << 20 // of the head and the tail of a disk that are read
	samples     = 64      // places between them
	sampleBytes = 64 << 10
	contentsMax = 130 // of one disk
)

// UnknownData is the kind of what is not zero and not known.
const UnknownData = "unknown data"

// Contents says what is on a disk of this size: its partition table, and the file
// systems and alike on the disk and its partitions. None, and no error, says that the
// disk is empty as far as one can tell without reading all of it, or that an
// installation was cut there.
func Contents(r io.ReaderAt, sector int, size uint64) ([]Content, error) {
	if sector < 512 || size < 2*edgeBytes {
		return nil, fmt.Errorf("disk of %d bytes: %w", size, errdefs.ErrInvalidArgument)
	}
	head := make([]byte, edgeBytes)
	if _, err := r.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("read disk: %w", err)
	}
	var found []Content
	c, ok := known(r, 0, size)
	if ok {
		found = append(found, c)
	} else if unfinished(head, sector) {
		return nil, nil
	}
	found = append(found, tableContents(r, head, sector, size)...)
	if len(found) > 0 {
		return found[:min(len(found), contentsMax)], nil
	}
	empty, err := zero(r, head, size)
	if err != nil {
		return nil, fmt.Errorf("read disk: %w", err)
	}
	if !empty {
		found = []Content{{Kind: UnknownData, Bytes: size}}
	}
	return found, nil
}

// zero looks at the disk's two ends and at places between them.
func zero(r io.ReaderAt, head []byte, size uint64) (bool, error) {
	nothing := make([]byte, edgeBytes)
	if !bytes.Equal(head, nothing) {
		return false, nil
	}
	chunk := make([]byte, edgeBytes)
	if _, err := r.ReadAt(chunk, int64(size-edgeBytes)); err != nil {
		return false, err
	}
	if !bytes.Equal(chunk, nothing) {
		return false, nil
	}
	step := (size - 2*edgeBytes) / samples / 4096 * 4096
	for i := range uint64(samples) {
		n := min(sampleBytes, size-edgeBytes-i*step)
		if _, err := r.ReadAt(chunk[:n], int64(edgeBytes+i*step)); err != nil {
			return false, err
		}
		if !bytes.Equal(chunk[:n], nothing[:n]) {
			return false, nil
		}
	}
	return true, nil
}

// tableContents is a partition table with what its partitions hold.
func tableContents(r io.ReaderAt, head []byte, sector int, size uint64) []Content {
	table, err := ReadTable(r, sector, size/uint64(sector))
	if err != nil {
		if !errdefs.IsNotFound(err) {
			return []Content{{Kind: "damaged GPT", Bytes: size}}
		}
		return mbrContents(r, head, sector, size)
	}
	found := []Content{{Kind: "GPT", Bytes: size}}
	for _, p := range table.Partitions {
		c, ok := known(r, table.Offset(p), table.Bytes(p))
		if !ok {
			c = Content{Kind: "unknown or empty", Bytes: table.Bytes(p)}
		}
		c.Where = fmt.Sprintf("partition %d", p.Number)
		if p.Name != "" {
			c.Where += fmt.Sprintf(" %q", tidy(p.Name))
		}
		found = append(found, c)
	}
	return found
}

// mbrContents are those of the old partition table.
func mbrContents(r io.ReaderAt, head []byte, sector int, size uint64) []Content {
	if head[510] != 0x55 || head[511] != 0xaa {
		return nil
	}
	var found []Content
	for i := range 4 {
		e := head[446+16*i:][:16]
		first, count := binary.LittleEndian.Uint32(e[8:]), binary.LittleEndian.Uint32(e[12:])
		if e[0]&0x7f != 0 { // a boot sector's program, not a table
			return nil
		}
		if e[4] == 0 || count == 0 {
			continue
		}
		bytes := uint64(count) * uint64(sector)
		c, ok := known(r, int64(first)*int64(sector), min(bytes, size))
		if !ok {
			c = Content{Kind: fmt.Sprintf("type %02x", e[4]), Bytes: bytes}
		}
		c.Where = fmt.Sprintf("partition %d", i+1)
		found = append(found, c)
	}
	if len(found) == 0 {
		return nil
	}
	return append([]Content{{Kind: "MBR", Bytes: size}}, found...)
}

// A signature is what a file system, or something alike, is told by.
type signature struct {
	at    int // bytes
	magic string
	kind  string
	label func(b []byte) string // of the head, may be nil
}

const headBytes = 260 << 10 // of what is looked at: ZFS and btrfs lie deepest

// signatures by their format's own descriptions. Those that others may lie within
// (LUKS, LVM) come first.
var signatures = []signature{
	{0, "LUKS\xba\xbe", "LUKS", nil},
	{3, "-FVE-FS-", "BitLocker", nil},
	{512 + 24, "LVM2 001", "LVM", nil},
	{24, "LVM2 001", "LVM", nil},
	{1024 + 24, "LVM2 001", "LVM", nil},
	{1536 + 24, "LVM2 001", "LVM", nil},
	{4096, "\xfc\x4e\x2b\xa9", "RAID member", nil},
	{0, "\xfc\x4e\x2b\xa9", "RAID member", nil},
	{3, "NTFS    ", "NTFS", nil},
	{3, "EXFAT   ", "exFAT", nil},
	{3, "ReFS\x00", "ReFS", nil},
	{82, "FAT32   ", "FAT", text(71, 11)},
	{54, "FAT1", "FAT", text(43, 11)},
	{0, "XFSB", "XFS", text(108, 12)},
	{0x10040, "_BHRfS_M", "btrfs", text(0x1012b, 256)},
	{1024, "\x10\x20\xf5\xf2", "F2FS", nil},
	{1024, "\xe2\xe1\xf5\xe0", "EROFS", text(1024+64, 16)},
	{1024, "H+", "HFS+", nil},
	{1024, "HX", "HFS+", nil},
	{32, "NXSB", "APFS", nil},
	{0, "hsqs", "SquashFS", nil},
	{0x8001, "CD001", "ISO 9660", text(0x8028, 32)},
	{4096 - 10, "SWAPSPACE2", "swap", text(1024+28, 16)},
	{4096 + 24, "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef", "bcachefs", nil},
	{4096 + 24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "bcache", nil},
}

func text(at, n int) func([]byte) string {
	return func(b []byte) string {
		s, _, _ := strings.Cut(string(b[at:at+n]), "\x00")
		return tidy(s)
	}
}

// tidy keeps what may stand in a line of a terminal.
func tidy(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == '�' {
			return -1
		}
		return r
	}, s)
	return strings.TrimSpace(s)
}

// known says what lies there. What can't be read is unknown.
func known(r io.ReaderAt, at int64, size uint64) (Content, bool) {
	b := make([]byte, headBytes)
	n, err := r.ReadAt(b[:min(uint64(len(b)), size)], at)
	if err != nil && n == 0 {
		return Content{}, false
	}
	for _, s := range signatures {
		if !bytes.HasPrefix(b[s.at:], []byte(s.magic)) {
			continue
		}
		c := Content{Kind: s.kind, Bytes: size}
		if s.label != nil {
			c.Label = s.label(b)
		}
		return c, true
	}
	if kind, label := ext(b); kind != "" {
		return Content{Kind: kind, Label: label, Bytes: size}, true
	}
	if zfs(b) {
		return Content{Kind: "ZFS", Bytes: size}, true
	}
	if raidAtEnd(r, at, size) {
		return Content{Kind: "RAID member", Bytes: size}, true
	}
	return Content{}, false
}

// ext tells ext2 to ext4 apart by what the journal and extents need
// (kernel Documentation/filesystems/ext4/super.rst).
func ext(b []byte) (kind, label string) {
	s, le := b[1024:], binary.LittleEndian
	if le.Uint16(s[0x38:]) != 0xef53 {
		return "", ""
	}
	kind = "ext2"
	if le.Uint32(s[0x5c:])&0x4 != 0 {
		kind = "ext3"
	}
	if le.Uint32(s[0x60:])&0x40 != 0 {
		kind = "ext4"
	}
	return kind, text(0x78, 16)(s)
}

// zfs looks for an uberblock of the first label, in either byte order.
func zfs(b []byte) bool {
	for at := 128 << 10; at < 256<<10; at += 1 << 10 {
		if binary.LittleEndian.Uint64(b[at:]) == 0x00bab10c || binary.BigEndian.Uint64(b[at:]) == 0x00bab10c {
			return true
		}
	}
	return false
}

// raidAtEnd looks for the superblocks of Linux's RAID that lie behind the data:
// versions 0.90 and 1.0 (md(4)).
func raidAtEnd(r io.ReaderAt, at int64, size uint64) bool {
	if size < 256<<10 {
		return false
	}
	for _, offset := range []uint64{size&^0xffff - 0x10000, (size/512 - 16) &^ 7 * 512} {
		b := make([]byte, 4)
		if _, err := r.ReadAt(b, at+int64(offset)); err == nil && string(b) == "\xfc\x4e\x2b\xa9" {
			return true
		}
	}
	return false
}
