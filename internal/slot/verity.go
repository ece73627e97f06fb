package slot

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
)

// The superblock that veritysetup writes before the hash tree (cryptsetup's
// lib/verity/verity.c).
const (
	superLen   = 512
	superMagic = "verity\x00\x00"
	blockSize  = 4096
	saltMax    = 256
)

// A Verity is a slot's content with the hash tree that proves it.
type Verity struct {
	Blocks    uint64 // of data, 4096 bytes each
	TreeBlock uint64 // where the tree starts in the slot
	Salt      []byte
	Root      []byte
}

// ReadVerity reads the hash tree's superblock at offset and checks that the tree
// there is the one with this root hash. A slot with other content is NotFound.
func ReadVerity(r io.ReaderAt, offset int64, root string) (*Verity, error) {
	if offset <= 0 || offset%blockSize != 0 {
		return nil, fmt.Errorf("verity offset %d: %w", offset, errdefs.ErrInvalidArgument)
	}
	head := make([]byte, 2*blockSize)
	if n, err := r.ReadAt(head, offset); n < len(head) {
		return nil, fmt.Errorf("read verity superblock: %w", err)
	}
	v, err := parseHead(head, root)
	if err != nil {
		return nil, err
	}
	if v.Blocks > uint64(offset/blockSize) {
		return nil, fmt.Errorf("verity data runs into its own tree: %w", errdefs.ErrDataLoss)
	}
	v.TreeBlock = uint64(offset/blockSize) + 1
	return v, nil
}

// parseHead checks the superblock and the tree's top, the block behind it.
func parseHead(head []byte, rootHash string) (*Verity, error) {
	want, err := hex.DecodeString(rootHash)
	if err != nil || len(want) != sha256.Size {
		return nil, fmt.Errorf("verity root hash %q: %w", rootHash, errdefs.ErrInvalidArgument)
	}
	v, err := parseSuper(head[:superLen])
	if err != nil {
		return nil, err
	}
	if got := saltedHash(v.Salt, head[blockSize:2*blockSize]); string(got[:]) != string(want) {
		return nil, fmt.Errorf("content with root hash %s: %w", rootHash, errdefs.ErrNotFound)
	}
	v.Root = want
	return v, nil
}

func parseSuper(b []byte) (*Verity, error) {
	le := binary.LittleEndian
	if string(b[:8]) != superMagic {
		return nil, fmt.Errorf("verity superblock: %w", errdefs.ErrNotFound)
	}
	algorithm, _, _ := strings.Cut(string(b[32:64]), "\x00")
	salt := le.Uint16(b[80:])
	if le.Uint32(b[8:]) != 1 || le.Uint32(b[12:]) != 1 || algorithm != "sha256" ||
		le.Uint32(b[64:]) != blockSize || le.Uint32(b[68:]) != blockSize || salt > saltMax {
		return nil, fmt.Errorf("verity superblock of a kind that we don't write: %w", errdefs.ErrDataLoss)
	}
	return &Verity{Blocks: le.Uint64(b[72:]), Salt: append([]byte{}, b[88:88+int(salt)]...)}, nil
}

// table is the dm-verity target's line for a device given as major:minor
// (kernel Documentation/admin-guide/device-mapper/verity.rst). A wrong block is a
// panic, counted boot or not. On trial it's what brings the other slot back: a
// process that gets I/O errors may still look healthy, a panic takes a boot try. A
// good slot has no tries to lose, so the panic is only a restart. That heals what a
// cable or a memory cell did, and on a bad disk it's better seen at once than a
// daemon that runs with the half of its files that can be read.
func (v *Verity) table(device string) string {
	salt := "-"
	if len(v.Salt) > 0 {
		salt = hex.EncodeToString(v.Salt)
	}
	return fmt.Sprintf("1 %s %s %d %d %d %d sha256 %x %s 1 panic_on_corruption",
		device, device, blockSize, blockSize, v.Blocks, v.TreeBlock, v.Root, salt)
}
