// Package disk finds the disk that the machine booted from and owns its
// partition table, and it tells what other disks there are and what is on them. It
// writes to no other disk, and to no partition but what is done in the mounted ESP.
package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"unicode/utf16"

	"github.com/containerd/errdefs"
)

// Names of our partitions in the GPT.
const (
	ESP   = "ESP"
	SlotA = "slot_a"
	SlotB = "slot_b"
	PERM  = "PERM"
)

// Sizes of our partitions, bytes: fixed for the life of a disk. PERM takes the rest.
const (
	ESPBytes  = 1 << 30
	SlotBytes = 1 << 30
)

// The layout of a GPT (UEFI 2.10, section 5.3). Disks with 4096-byte sectors use
// the same structures at other offsets.
const (
	headerLen   = 92
	entryLen    = 128
	entriesMax  = 1024
	tableMin    = 128 * entryLen
	gptMagic    = "EFI PART"
	alignBytes  = 1 << 20
	entryNameAt = 56
)

// A GUID in the byte order of the disk: the first three fields little endian.
type GUID [16]byte

// String is the usual text form, lower case.
func (g GUID) String() string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(g[0:]),
		binary.LittleEndian.Uint16(g[4:]), binary.LittleEndian.Uint16(g[6:]), g[8:10], g[10:])
}

// A Partition is one used entry of the table.
type Partition struct {
	Number      int // from 1, as in the kernel's names
	Name        string
	Type, ID    GUID
	First, Last uint64 // sectors, both included
}

// A Table is a partition table in memory, with all that's needed to write it back.
type Table struct {
	Sector     int    // bytes
	Sectors    uint64 // of the disk
	Partitions []Partition
	// Damaged says that one of the two copies is missing, bad or at the wrong place.
	Damaged bool

	header  []byte
	entries []byte
}

// ReadTable reads the primary table, or the backup at the disk's end when the
// primary is not valid (a cut while it was being written). The error of a disk
// without a table is NotFound.
func ReadTable(r io.ReaderAt, sector int, sectors uint64) (*Table, error) {
	if sector < 512 || sector > 64<<10 || sectors < 8 {
		return nil, fmt.Errorf("disk of %d sectors of %d bytes: %w", sectors, sector, errdefs.ErrInvalidArgument)
	}
	t, err := readCopy(r, sector, sectors, 1)
	backup, backupErr := readCopy(r, sector, sectors, sectors-1)
	if err != nil {
		if backupErr != nil {
			return nil, err
		}
		t, backup = backup, nil
	}
	t.Damaged = backup == nil || !bytes.Equal(backup.entries, t.entries)
	return t, nil
}

func readCopy(r io.ReaderAt, sector int, sectors, at uint64) (*Table, error) {
	head := make([]byte, sector)
	if _, err := r.ReadAt(head, int64(at)*int64(sector)); err != nil {
		return nil, fmt.Errorf("read partition table at sector %d: %w", at, err)
	}
	if string(head[:8]) != gptMagic {
		return nil, fmt.Errorf("partition table at sector %d: %w", at, errdefs.ErrNotFound)
	}
	le := binary.LittleEndian
	size, count, each := le.Uint32(head[12:]), le.Uint32(head[80:]), le.Uint32(head[84:])
	if size < headerLen || int(size) > sector || count > entriesMax || each != entryLen || le.Uint64(head[24:]) != at {
		return nil, fmt.Errorf("partition table header at sector %d is not sane: %w", at, errdefs.ErrDataLoss)
	}
	if sum(head[:size], 16) != le.Uint32(head[16:]) {
		return nil, fmt.Errorf("partition table header at sector %d has a wrong checksum: %w", at, errdefs.ErrDataLoss)
	}
	array := le.Uint64(head[72:])
	if array >= sectors {
		return nil, fmt.Errorf("partition entries at sector %d lie beyond the disk: %w", array, errdefs.ErrDataLoss)
	}
	entries := make([]byte, count*entryLen)
	if _, err := r.ReadAt(entries, int64(array)*int64(sector)); err != nil {
		return nil, fmt.Errorf("read partition entries at sector %d: %w", array, err)
	}
	if crc32.ChecksumIEEE(entries) != le.Uint32(head[88:]) {
		return nil, fmt.Errorf("partition entries at sector %d have a wrong checksum: %w", array, errdefs.ErrDataLoss)
	}
	t := &Table{Sector: sector, Sectors: sectors, header: head[:size], entries: entries}
	return t, t.parseEntries()
}

// sum is the CRC32 of b with the four bytes at skip taken as zero.
func sum(b []byte, skip int) uint32 {
	c := bytes.Clone(b)
	copy(c[skip:], make([]byte, 4))
	return crc32.ChecksumIEEE(c)
}

func (t *Table) parseEntries() error {
	le := binary.LittleEndian
	for i := range len(t.entries) / entryLen {
		e := t.entries[i*entryLen:][:entryLen]
		p := Partition{Number: i + 1, First: le.Uint64(e[32:]), Last: le.Uint64(e[40:])}
		copy(p.Type[:], e[0:])
		copy(p.ID[:], e[16:])
		if p.Type == (GUID{}) {
			continue
		}
		if p.First > p.Last {
			return fmt.Errorf("partition %d ends before it starts: %w", p.Number, errdefs.ErrDataLoss)
		}
		var name []uint16
		for at := entryNameAt; at < entryLen; at += 2 {
			name = append(name, le.Uint16(e[at:]))
		}
		p.Name, _, _ = strings.Cut(string(utf16.Decode(name)), "\x00")
		t.Partitions = append(t.Partitions, p)
	}
	return nil
}

// ByName finds a partition; NotFound when there's none, AlreadyExists when several
// have the name (then none of them is safe to touch).
func (t *Table) ByName(name string) (Partition, error) {
	var found []Partition
	for _, p := range t.Partitions {
		if p.Name == name {
			found = append(found, p)
		}
	}
	switch len(found) {
	case 0:
		return Partition{}, fmt.Errorf("partition %q: %w", name, errdefs.ErrNotFound)
	case 1:
		return found[0], nil
	}
	return Partition{}, fmt.Errorf("partition %q exists %d times: %w", name, len(found), errdefs.ErrAlreadyExists)
}

// ByID finds a partition by its unique GUID in text form, in any letter case.
func (t *Table) ByID(id string) (Partition, bool) {
	for _, p := range t.Partitions {
		if strings.EqualFold(p.ID.String(), strings.Trim(id, "\x00 {}")) {
			return p, true
		}
	}
	return Partition{}, false
}

// Bytes is the partition's size.
func (t *Table) Bytes(p Partition) uint64 { return (p.Last - p.First + 1) * uint64(t.Sector) }

// tableSectors is what one copy of the entries takes.
func (t *Table) tableSectors() uint64 {
	n := max(len(t.entries), tableMin)
	return uint64((n + t.Sector - 1) / t.Sector)
}

// lastUsable is the last sector before the backup copy.
func (t *Table) lastUsable() uint64 { return t.Sectors - 2 - t.tableSectors() }

// Grow makes the named partition, the last one on the disk, reach to the disk's
// end, and reports whether anything has to be written. It never shrinks.
func (t *Table) Grow(name string) (changed bool, err error) {
	p, err := t.ByName(name)
	if err != nil {
		return false, err
	}
	for _, other := range t.Partitions {
		if other.First > p.Last {
			return false, fmt.Errorf("grow partition %q: partition %q lies behind it: %w", name, other.Name, errdefs.ErrFailedPrecondition)
		}
	}
	align := uint64(alignBytes / t.Sector)
	last := (t.lastUsable()+1)/align*align - 1
	if last > p.Last {
		binary.LittleEndian.PutUint64(t.entries[(p.Number-1)*entryLen+40:], last)
		for i := range t.Partitions {
			if t.Partitions[i].Number == p.Number {
				t.Partitions[i].Last = last
			}
		}
		return true, nil
	}
	return t.Damaged, nil
}

// A Target is what a table is written to: a disk.
type Target interface {
	io.WriterAt
	Sync() error
}

// Write writes the backup at the disk's end, and only when that is safe on disk
// the primary: at any moment one of both is whole.
func (t *Table) Write(w Target) error {
	if t.lastUsable() >= t.Sectors {
		return fmt.Errorf("write partition table: disk of %d sectors is too small: %w", t.Sectors, errdefs.ErrInvalidArgument)
	}
	end := t.Sectors - 1
	backup := t.headerFor(end, 1, end-t.tableSectors())
	primary := t.headerFor(1, end, 2)
	steps := []func() error{
		func() error { return writeAt(w, t.Sector, end-t.tableSectors(), t.entries) },
		func() error { return writeAt(w, t.Sector, end, backup) },
		w.Sync,
		func() error { return writeAt(w, t.Sector, 2, t.entries) },
		func() error { return writeAt(w, t.Sector, 1, primary) },
		w.Sync,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (t *Table) headerFor(self, other, array uint64) []byte {
	h, le := bytes.Clone(t.header), binary.LittleEndian
	le.PutUint64(h[24:], self)
	le.PutUint64(h[32:], other)
	le.PutUint64(h[48:], t.lastUsable())
	le.PutUint64(h[72:], array)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(t.entries))
	le.PutUint32(h[16:], sum(h, 16))
	return h
}

func writeAt(w Target, sector int, at uint64, b []byte) error {
	padded := make([]byte, (len(b)+sector-1)/sector*sector)
	copy(padded, b)
	if _, err := w.WriteAt(padded, int64(at)*int64(sector)); err != nil {
		return fmt.Errorf("write partition table at sector %d: %w", at, err)
	}
	return nil
}
