package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"github.com/containerd/errdefs"
)

// A superblock is two sectors of most disks, and its checksum stands in the second:
// a power cut between them leaves one that neither the kernel nor e2fsck -p takes.
// What differs then are counters and times, which e2fsck counts anew; all that the
// file system's shape depends on is as in the backup of the second group.

const (
	checksumAt = 0x3fc

	roCompatChecksums = 0x400
	roCompatOrphans   = 0x10000 // set while orphans are listed

	sparseSuper  = 0x1   // of roCompat: the second group has a backup
	sparseSuper2 = 0x200 // of compat: backups are elsewhere
)

// changing are the fields, from and to, that backups don't follow: counts, times,
// state, the group's own number, last mount, orphans, use, errors, overhead.
var changing = [][2]int{
	{0x0c, 0x14}, {0x2c, 0x36}, {0x3a, 0x3c}, {0x40, 0x44}, {0x5a, 0x5c}, {0x88, 0xc8}, {0xe8, 0xec},
	{0x158, 0x15c}, {0x178, 0x180}, {0x194, 0x240}, {0x248, 0x24c}, {0x274, 0x27c}, {checksumAt, superLen},
}

// growing are the counts of inodes, of blocks and of reserved ones, in which a
// superblock and its backup differ while the file system grows.
var growing = [][2]int{{0x00, 0x0c}, {0x150, 0x158}}

// mend gives a torn superblock its checksum, and says whether it did. One that is
// damaged otherwise, or has no backup to be compared with, is left as it is, with
// an error of class DataLoss.
func mend(device string) (mended bool, err error) {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return false, err
	}
	defer f.Close()
	b := make([]byte, superLen)
	if _, err := f.ReadAt(b, superAt); err != nil {
		return false, err
	}
	if sum(b) {
		return false, nil
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return false, err
	}
	if err := sameShape(f, size, b); err != nil && !alone(f, size, b) {
		return false, fmt.Errorf("damage that only a person may repair: the superblock's checksum is wrong and %w", err)
	}
	binary.LittleEndian.PutUint32(b[checksumAt:], checksum(b))
	_, err = f.WriteAt(b, superAt)
	return true, errors.Join(err, f.Sync())
}

// sum says whether a superblock's checksum is right, or not used.
func sum(b []byte) bool {
	le := binary.LittleEndian
	return le.Uint32(b[0x64:])&roCompatChecksums == 0 || le.Uint32(b[checksumAt:]) == checksum(b)
}

// checksum is the kernel's crc32c, which isn't inverted at the end.
func checksum(b []byte) uint32 {
	return ^crc32.Checksum(b[:checksumAt], crc32.MakeTable(crc32.Castagnoli))
}

// grows tells whether the counts of blocks and inodes fit each other and the device.
func grows(b []byte, size int64) bool {
	s, err := parseSuper(b)
	if err != nil || s.SizeBytes > size {
		return false
	}
	le := binary.LittleEndian
	blocks, first, perGroup := uint64(s.SizeBytes/s.BlockBytes), uint64(le.Uint32(b[0x14:])), uint64(le.Uint32(b[0x20:]))
	if perGroup == 0 || blocks <= first {
		return false
	}
	groups := (blocks - first + perGroup - 1) / perGroup
	return groups*uint64(le.Uint32(b[0x28:])) == uint64(le.Uint32(b))
}

// The first group's descriptor, of a file system with metadata checksums.
const (
	uuidAt, uuidLen = 0x68, 16
	descriptorSum   = 0x1e // two bytes
	descriptorMin   = 32
	descriptorMax   = 1024

	incompatSeed = 0x2000 // the seed of checksums is kept, not reckoned
	seedAt       = 0x270
)

// alone tells whether a superblock without backup, as small file systems have it,
// is that of what is on the device: the counts fit, and the descriptor of the only
// group has the checksum that follows from the superblock's identity.
func alone(r io.ReaderAt, size int64, b []byte) bool {
	s, err := parseSuper(b)
	le := binary.LittleEndian
	if err != nil || !grows(b, size) || s.BlockBytes < 4096 || s.SizeBytes/s.BlockBytes > int64(le.Uint32(b[0x20:])) || le.Uint32(b[0x64:])&roCompatChecksums == 0 {
		return false
	}
	length := int(le.Uint16(b[0xfe:]))
	if le.Uint32(b[0x60:])&incompat64bit == 0 {
		length = descriptorMin
	}
	if length < descriptorMin || length > descriptorMax {
		return false
	}
	d := make([]byte, length)
	if _, err := r.ReadAt(d, s.BlockBytes); err != nil {
		return false
	}
	want := le.Uint16(d[descriptorSum:])
	le.PutUint16(d[descriptorSum:], 0)
	seed := crc(^uint32(0), b[uuidAt:][:uuidLen])
	if le.Uint32(b[0x60:])&incompatSeed != 0 {
		seed = le.Uint32(b[seedAt:])
	}
	return uint16(crc(crc(seed, make([]byte, 4)), d)) == want // of group 0
}

// crc goes on with the kernel's crc32c.
func crc(c uint32, b []byte) uint32 { return ^crc32.Update(^c, crc32.MakeTable(crc32.Castagnoli), b) }

// sameShape compares a superblock of a device of so many bytes with its backup.
func sameShape(r io.ReaderAt, size int64, b []byte) error {
	s, err := parseSuper(b)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	at := int64(le.Uint32(b[0x20:])) * s.BlockBytes // groups have so many blocks
	if le.Uint32(b[0x64:])&sparseSuper == 0 || le.Uint32(b[0x5c:])&sparseSuper2 != 0 || s.BlockBytes < 4096 || at == 0 || at+s.BlockBytes > size {
		return fmt.Errorf("there is no backup of it: %w", errdefs.ErrDataLoss)
	}
	backup := make([]byte, superLen)
	if _, err := r.ReadAt(backup, at); err != nil {
		return fmt.Errorf("its backup can't be read: %w: %w", err, errdefs.ErrDataLoss)
	}
	own, other := shape(b), shape(backup)
	if grows(b, size) {
		for _, c := range growing {
			copy(own[c[0]:c[1]], other[c[0]:c[1]])
		}
	}
	if !sum(backup) || !bytes.Equal(own, other) {
		return fmt.Errorf("its backup differs: %w", errdefs.ErrDataLoss)
	}
	return nil
}

// shape is a superblock without what changes.
func shape(b []byte) []byte {
	b = bytes.Clone(b)
	for _, c := range changing {
		clear(b[c[0]:c[1]])
	}
	le := binary.LittleEndian
	le.PutUint32(b[0x60:], le.Uint32(b[0x60:])&^incompatRecover)
	le.PutUint32(b[0x64:], le.Uint32(b[0x64:])&^roCompatOrphans)
	return b
}
