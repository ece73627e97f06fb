package disk

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"unicode/utf16"

	"github.com/containerd/errdefs"
)

// PERMBytesMin is the least that PERM is made with: half of it holds /perm, and the
// rest is a pool that is worth having.
const PERMBytesMin = 4 << 30

// NeededBytes is the least size of a disk that a capsule is installed on. A "8 GB"
// disk has it.
const NeededBytes = 2*alignBytes + ESPBytes + 2*SlotBytes + PERMBytesMin

// Types of our partitions, in the byte order of the disk.
var (
	typeESP   = GUID{0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}
	typeLinux = GUID{0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4}
	typeLVM   = GUID{0x79, 0xd3, 0xd6, 0xe6, 0x07, 0xf5, 0xc2, 0x44, 0xa2, 0x3c, 0x23, 0x8f, 0x2a, 0x3d, 0xf9, 0x28}
)

// NewTable is the table of a capsule's disk with unique ids of its own, so that no
// two disks that were installed from one stick are taken for each other.
func NewTable(sector int, sectors uint64) (*Table, error) {
	if sector != 512 && sector != 4096 {
		return nil, fmt.Errorf("disk with blocks of %d bytes: want 512 or 4096: %w", sector, errdefs.ErrFailedPrecondition)
	}
	if size := sectors * uint64(sector); size < NeededBytes {
		return nil, fmt.Errorf("disk of %d MiB: %d MiB are needed: %w", size>>20, NeededBytes>>20, errdefs.ErrFailedPrecondition)
	}
	t := &Table{Sector: sector, Sectors: sectors, header: newHeader(sector), entries: make([]byte, tableMin)}
	copy(t.header[56:], newGUID())
	align := uint64(alignBytes / sector)
	next, end := align, (t.lastUsable()+1)/align*align
	for i, part := range []struct {
		name  string
		kind  GUID
		bytes uint64
	}{{ESP, typeESP, ESPBytes}, {SlotA, typeLinux, SlotBytes}, {SlotB, typeLinux, SlotBytes}, {PERM, typeLVM, 0}} {
		last := next + part.bytes/uint64(sector) - 1
		if part.bytes == 0 {
			last = end - 1
		}
		putEntry(t.entries[i*entryLen:], part.name, part.kind, next, last)
		next = last + 1
	}
	return t, t.parseEntries()
}

func newHeader(sector int) []byte {
	h, le := make([]byte, headerLen), binary.LittleEndian
	copy(h, gptMagic)
	le.PutUint32(h[8:], 0x10000) // revision 1.0
	le.PutUint32(h[12:], headerLen)
	le.PutUint64(h[40:], 2+uint64(max(tableMin/sector, 1))) // first usable
	le.PutUint32(h[80:], tableMin/entryLen)
	le.PutUint32(h[84:], entryLen)
	return h
}

func putEntry(e []byte, name string, kind GUID, first, last uint64) {
	copy(e, kind[:])
	copy(e[16:], newGUID())
	binary.LittleEndian.PutUint64(e[32:], first)
	binary.LittleEndian.PutUint64(e[40:], last)
	for i, unit := range utf16.Encode([]rune(name)) {
		binary.LittleEndian.PutUint16(e[entryNameAt+2*i:], unit)
	}
}

// newGUID is a random one, version 4, in the byte order of the disk.
func newGUID() []byte {
	g := make([]byte, 16)
	_, _ = rand.Read(g) // never fails
	g[7], g[8] = g[7]&0x0f|0x40, g[8]&0x3f|0x80
	return g
}

// ProtectiveMBR is the first sector of a disk with a GPT (UEFI 2.10, 5.2.3): without
// it neither a firmware nor the kernel looks for one.
func ProtectiveMBR(sector int, sectors uint64) []byte {
	b := make([]byte, sector)
	e := b[446:]
	copy(e, []byte{0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff})
	binary.LittleEndian.PutUint32(e[8:], 1)
	binary.LittleEndian.PutUint32(e[12:], uint32(min(sectors-1, 0xffffffff)))
	b[510], b[511] = 0x55, 0xaa
	return b
}

// Offset is where a partition begins, bytes.
func (t *Table) Offset(p Partition) int64 { return int64(p.First) * int64(t.Sector) }

const unfinishedText = "capsule installation unfinished v1\n"

// UnfinishedMark is the first sector of a disk while a capsule is installed on it,
// where the protective MBR will be: nothing boots, and what lies on the disk is
// nobody's.
func UnfinishedMark(sector int) []byte {
	b := make([]byte, sector)
	copy(b, unfinishedText)
	return b
}

// unfinished tells whether a disk's head is as a cut installation leaves it: the mark,
// perhaps our table, and nothing else. The text alone says little: it lies where an MBR
// has its program, which tools keep that partition a disk or make it part of a RAID.
func unfinished(head []byte, sector int) bool {
	rest := head[2*sector+tableMin:]
	return bytes.Equal(head[:sector], UnfinishedMark(sector)) && bytes.Equal(rest, make([]byte, len(rest)))
}
