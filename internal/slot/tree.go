package slot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
)

// BlockSize is the size in bytes of what one hash proves, and of the tree's blocks.
const BlockSize = blockSize

const (
	hashesPerBlock = blockSize / sha256.Size
	dataMax        = 8 << 30 // bytes of a root, far more than a slot has
)

// A Tree is a root's whole hash tree, verified up to the root hash. It's safe for
// use by many goroutines.
type Tree struct {
	raw    []byte // superblock and tree, as they lie behind the data
	leaves []byte // within raw: the hashes of the data's blocks, in order
	salt   []byte
	blocks int64
}

// TreeBytes is the size of the superblock and the tree that follow this much data;
// a root of dataBytes and its tree have dataBytes + TreeBytes(dataBytes) bytes.
func TreeBytes(dataBytes int64) int64 {
	size := int64(blockSize)
	for _, blocks := range levels(dataBytes / blockSize) {
		size += blocks * blockSize
	}
	return size
}

// levels gives the number of blocks of each level over so many blocks of data, the
// leaves first.
func levels(blocks int64) (counts []int64) {
	for {
		blocks = (blocks + hashesPerBlock - 1) / hashesPerBlock
		counts = append(counts, blocks)
		if blocks <= 1 {
			return counts
		}
	}
}

// OpenTree reads and verifies the tree behind the first dataBytes bytes of r: a
// slot's device, or a root as it lies in a bundle. NotFound says that there is
// another root or none, DataLoss that the tree of this one is damaged.
func OpenTree(r io.ReaderAt, dataBytes int64, rootHash string) (*Tree, error) {
	if err := checkData(dataBytes); err != nil {
		return nil, err
	}
	raw := make([]byte, TreeBytes(dataBytes))
	if n, err := r.ReadAt(raw, dataBytes); n < len(raw) {
		return nil, fmt.Errorf("read verity tree: %w", err)
	}
	return ParseTree(raw, dataBytes, rootHash)
}

// ParseTree is OpenTree for a tree that isn't in a slot yet: raw are the
// TreeBytes(dataBytes) bytes behind the data. The tree keeps raw.
func ParseTree(raw []byte, dataBytes int64, rootHash string) (*Tree, error) {
	if err := checkData(dataBytes); err != nil {
		return nil, err
	}
	if want := TreeBytes(dataBytes); int64(len(raw)) != want {
		return nil, fmt.Errorf("verity tree of %d bytes, want %d: %w", len(raw), want, errdefs.ErrInvalidArgument)
	}
	v, err := parseHead(raw, rootHash)
	if err != nil {
		return nil, err
	}
	t := &Tree{raw: raw, salt: v.Salt, blocks: dataBytes / blockSize}
	if v.Blocks != uint64(t.blocks) {
		return nil, fmt.Errorf("verity tree over %d blocks of data, want %d: %w", v.Blocks, t.blocks, errdefs.ErrDataLoss)
	}
	return t, t.climb()
}

// climb verifies each level by the one before it, from the top (which parseHead
// has compared with the root hash) down to the leaves.
func (t *Tree) climb() error {
	counts := levels(t.blocks)
	above, rest := []byte(nil), t.raw[blockSize:]
	for i := len(counts) - 1; i >= 0; i-- {
		level := rest[:counts[i]*blockSize]
		rest = rest[len(level):]
		for at := int64(0); above != nil && at < counts[i]; at++ {
			sum := saltedHash(t.salt, level[at*blockSize:][:blockSize])
			if !bytes.Equal(sum[:], above[at*sha256.Size:][:sha256.Size]) {
				return fmt.Errorf("verity tree: block %d of level %d: %w", at, i, errdefs.ErrDataLoss)
			}
		}
		above = level
	}
	t.leaves = above
	return nil
}

func checkData(dataBytes int64) error {
	// The kernel has no tree over a single block.
	if dataBytes < 2*blockSize || dataBytes > dataMax || dataBytes%blockSize != 0 {
		return fmt.Errorf("root with %d bytes of data: %w", dataBytes, errdefs.ErrInvalidArgument)
	}
	return nil
}

func saltedHash(salt, block []byte) (sum [sha256.Size]byte) {
	h := sha256.New()
	h.Write(salt)
	h.Write(block)
	h.Sum(sum[:0])
	return sum
}

// Bytes are the superblock and the tree, to be written behind the data. They are
// not to be changed.
func (t *Tree) Bytes() []byte { return t.raw }

// Blocks is how many blocks of data there are.
func (t *Tree) Blocks() int64 { return t.blocks }

// Leaf is the hash of the data's block i, counted from 0.
func (t *Tree) Leaf(i int64) [sha256.Size]byte {
	return [sha256.Size]byte(t.leaves[i*sha256.Size:][:sha256.Size])
}

// Hash is what Leaf is for a block with this content.
func (t *Tree) Hash(block []byte) [sha256.Size]byte { return saltedHash(t.salt, block) }

// Verify says with DataLoss that this isn't the content of block i.
func (t *Tree) Verify(i int64, block []byte) error {
	if i < 0 || i >= t.blocks || len(block) != blockSize {
		return fmt.Errorf("block %d with %d bytes: %w", i, len(block), errdefs.ErrInvalidArgument)
	}
	if t.Hash(block) != t.Leaf(i) {
		return fmt.Errorf("block %d doesn't match its hash %s: %w", i, hex.EncodeToString(t.leaves[i*sha256.Size:][:8]), errdefs.ErrDataLoss)
	}
	return nil
}

// Comparable says whether equal blocks have equal hashes in both trees, which is so
// when both have the same salt.
func (t *Tree) Comparable(other *Tree) bool { return bytes.Equal(t.salt, other.salt) }
