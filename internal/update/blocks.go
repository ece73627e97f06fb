package update

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"slices"

	"capsule/internal/bundle"
	"capsule/internal/slot"
)

const (
	blockSize = slot.BlockSize
	scanSize  = 1 << 20 // bytes read at once
)

// scan reads all data of a slot and tells for each block whether it's the tree's.
// What can't be read isn't.
func scan(ctx context.Context, t *slot.Tree, r io.ReaderAt, found func(block int64, ok bool) error) error {
	buf := make([]byte, scanSize)
	for block := int64(0); block < t.Blocks(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := buf[:min(scanSize, (t.Blocks()-block)*blockSize)]
		n, err := r.ReadAt(part, block*blockSize)
		if err != nil && !errors.Is(err, io.EOF) {
			n = 0 // a bad sector somewhere: block by block then
		}
		for at := 0; at < len(part); at, block = at+blockSize, block+1 {
			data := part[at:][:blockSize]
			if at+blockSize > n {
				_, err = r.ReadAt(data, block*blockSize)
			} else {
				err = nil
			}
			if err := found(block, err == nil && t.Hash(data) == t.Leaf(block)); err != nil {
				return err
			}
		}
	}
	return nil
}

// asBuilt says whether a tree's superblock is byte for byte the one of bundles: the
// root hash doesn't cover all of it.
func asBuilt(t *slot.Tree) bool {
	like, _, err := bundle.HashTree(bytes.NewReader(make([]byte, 2*blockSize)))
	if err != nil {
		return false
	}
	const blocks = 72 // where the superblock has their number
	binary.LittleEndian.PutUint64(like[blocks:], uint64(t.Blocks()))
	return bytes.Equal(like[:blockSize], t.Bytes()[:blockSize])
}

// index finds blocks by their content, at 4 bytes each.
type index struct {
	tree   *slot.Tree
	sorted []uint32 // blocks, in the order of their hashes
}

func newIndex(t *slot.Tree) *index {
	x := &index{tree: t, sorted: make([]uint32, t.Blocks())}
	for i := range x.sorted {
		x.sorted[i] = uint32(i)
	}
	slices.SortFunc(x.sorted, func(a, b uint32) int { return compare(t.Leaf(int64(a)), t.Leaf(int64(b))) })
	return x
}

// find gives a block with this hash.
func (x *index) find(hash [sha256.Size]byte) (block int64, ok bool) {
	i, ok := slices.BinarySearchFunc(x.sorted, hash, func(b uint32, hash [sha256.Size]byte) int {
		return compare(x.tree.Leaf(int64(b)), hash)
	})
	if !ok {
		return 0, false
	}
	return int64(x.sorted[i]), true
}

func compare(a, b [sha256.Size]byte) int { return bytes.Compare(a[:], b[:]) }
