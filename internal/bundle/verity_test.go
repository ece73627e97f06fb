package bundle

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

// That the kernel agrees with the hashes is shown by every boot.
func TestHashTree(t *testing.T) {
	data := make([]byte, 300*BlockSize) // two levels of hashes
	for i := range data {
		data[i] = byte(i / BlockSize)
	}
	tree, root, err := HashTree(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if len(tree) != (1+1+3)*BlockSize {
		t.Fatalf("tree of %d bytes, want a superblock, one block and three", len(tree))
	}
	if !bytes.HasPrefix(tree, []byte("verity\x00\x00\x01\x00\x00\x00\x01")) {
		t.Errorf("superblock starts %q", tree[:16])
	}
	_, other, err := HashTree(bytes.NewReader(append(data[:len(data)-1:len(data)-1], 0xff)))
	if err != nil || root == other {
		t.Errorf("a changed last byte has the same root hash: %v", err)
	}
}

// The hash is veritysetup's of the same data:
//
//	veritysetup format --salt=$(printf "capsule root" | sha256sum | head -c 64) DATA TREE
func TestHashTreeIsThatOfVeritysetup(t *testing.T) {
	_, root, err := HashTree(bytes.NewReader(bytes.Repeat([]byte("capsule\n"), 300*BlockSize/8)))
	if want := "24a40f4ea6968f1a3a7ec33f78f7eb026ebe518b676dfe64c9cd2a02a05388f3"; err != nil || root != want {
		t.Errorf("root hash %s, %v, want %s", root, err, want)
	}
}

func TestTreeSize(t *testing.T) {
	for blocks, want := range map[int64]int64{1: 2, 2: 2, 128: 2, 129: 4, 128 * 128: 130, 128*128 + 1: 133} {
		if got := TreeSize(blocks * BlockSize); got != want*BlockSize {
			t.Errorf("%d blocks: %d bytes, want %d blocks", blocks, got, want)
		}
	}
	for _, blocks := range []int64{1, 128, 129} {
		tree, _, err := HashTree(io.LimitReader(zeros{}, blocks*BlockSize))
		if got := TreeSize(blocks * BlockSize); err != nil || got != int64(len(tree)) {
			t.Errorf("%d blocks: %d bytes, %v, the tree has %d", blocks, got, err, len(tree))
		}
	}
	for _, bytes := range []int64{0, 1, BlockSize + 1} {
		if _, _, err := HashTree(io.LimitReader(zeros{}, bytes)); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes: %v", bytes, err)
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
