package slot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

// treeOver builds what lies behind data with these hashes, and the root hash.
func treeOver(leaves [][sha256.Size]byte) (raw []byte, root string) {
	image, _ := slotImage()
	raw = bytes.Clone(image[2*blockSize : 3*blockSize]) // the superblock of two blocks
	raw[72], raw[73] = byte(len(leaves)), byte(len(leaves)>>8)
	var above [][]byte
	for {
		var level []byte
		for _, leaf := range leaves {
			level = append(level, leaf[:]...)
		}
		level = append(level, make([]byte, -len(level)&(blockSize-1))...)
		above, leaves = append([][]byte{level}, above...), nil
		for at := 0; at < len(level); at += blockSize {
			leaves = append(leaves, saltedHash([]byte("salt"), level[at:at+blockSize]))
		}
		if len(leaves) == 1 {
			return append(raw, bytes.Join(above, nil)...), hex.EncodeToString(leaves[0][:])
		}
	}
}

// numbered are n blocks with different content, and their hashes.
func numbered(n int) (data []byte, leaves [][sha256.Size]byte) {
	data = make([]byte, n*blockSize)
	for i := range n {
		block := data[i*blockSize:][:blockSize]
		block[0], block[1] = byte(i), byte(i>>8)
		leaves = append(leaves, sha256.Sum256(append([]byte("salt"), block...)))
	}
	return data, leaves
}

func TestTreeBytes(t *testing.T) {
	for blocks, want := range map[int64]int64{2: 2, 128: 2, 129: 1 + 2 + 1, 128 * 128: 1 + 128 + 1, 128*128 + 1: 1 + 129 + 2 + 1} {
		if got := TreeBytes(blocks * blockSize); got != want*blockSize {
			t.Errorf("%d blocks: %d bytes, want %d blocks", blocks, got, want)
		}
	}
}

func TestTree(t *testing.T) {
	for _, n := range []int{2, 128, 129, 300} {
		data, leaves := numbered(n)
		raw, root := treeOver(leaves)
		size := int64(len(data))
		tree, err := OpenTree(bytes.NewReader(append(data, raw...)), size, root)
		if err != nil {
			t.Fatalf("%d blocks: %v", n, err)
		}
		if tree.Blocks() != int64(n) || !bytes.Equal(tree.Bytes(), raw) {
			t.Errorf("%d blocks: a tree over %d", n, tree.Blocks())
		}
		for i, leaf := range leaves {
			if tree.Leaf(int64(i)) != leaf {
				t.Fatalf("%d blocks: leaf %d", n, i)
			}
			if err := tree.Verify(int64(i), data[i*blockSize:][:blockSize]); err != nil {
				t.Fatalf("%d blocks: %v", n, err)
			}
		}
		if err := tree.Verify(0, data[blockSize:][:blockSize]); !errdefs.IsDataLoss(err) {
			t.Errorf("block 1 passes as block 0: %v", err)
		}
		if v, err := ReadVerity(bytes.NewReader(append(data, raw...)), size, root); err != nil || v.Blocks != uint64(n) {
			t.Errorf("what boots reads something else: %v, %v", v, err)
		}
	}
}

// TestDeepTree has three levels.
func TestDeepTree(t *testing.T) {
	leaves := make([][sha256.Size]byte, 128*128+1)
	for i := range leaves {
		leaves[i] = [sha256.Size]byte{byte(i), byte(i >> 8)}
	}
	raw, root := treeOver(leaves)
	tree, err := ParseTree(raw, int64(len(leaves))*blockSize, root)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := tree.Leaf(128*128), leaves[128*128]; got != want {
		t.Errorf("the last leaf is %x, want %x", got, want)
	}
}

func TestBadTrees(t *testing.T) {
	_, leaves := numbered(300)
	raw, root := treeOver(leaves)
	const size = 300 * blockSize
	for name, tc := range map[string]struct {
		hurt  func(b []byte) []byte
		size  int64
		root  string
		class func(error) bool
	}{
		"another root":            {nil, size, hex.EncodeToString(make([]byte, 32)), errdefs.IsNotFound},
		"no root hash":            {nil, size, "zz", errdefs.IsInvalidArgument},
		"nothing":                 {func(b []byte) []byte { return make([]byte, len(b)) }, size, root, errdefs.IsNotFound},
		"top":                     {func(b []byte) []byte { b[blockSize]++; return b }, size, root, errdefs.IsNotFound},
		"a leaf":                  {func(b []byte) []byte { b[2*blockSize]++; return b }, size, root, errdefs.IsDataLoss},
		"the last leaf's padding": {func(b []byte) []byte { b[len(b)-1]++; return b }, size, root, errdefs.IsDataLoss},
		"salt":                    {func(b []byte) []byte { b[88]++; return b }, size, root, errdefs.IsNotFound},
		"other blocks":            {func(b []byte) []byte { b[72]++; return b }, size, root, errdefs.IsDataLoss},
		"short":                   {func(b []byte) []byte { return b[:len(b)-1] }, size, root, errdefs.IsInvalidArgument},
		"long":                    {func(b []byte) []byte { return append(b, 0) }, size, root, errdefs.IsInvalidArgument},
		"odd size":                {nil, size + 1, root, errdefs.IsInvalidArgument},
		"no size":                 {nil, 0, root, errdefs.IsInvalidArgument},
		"one block":               {nil, blockSize, root, errdefs.IsInvalidArgument},
		"huge":                    {nil, 1 << 60, root, errdefs.IsInvalidArgument},
		"negative":                {nil, -size, root, errdefs.IsInvalidArgument},
	} {
		b := bytes.Clone(raw)
		if tc.hurt != nil {
			b = tc.hurt(b)
		}
		if _, err := ParseTree(b, tc.size, tc.root); !tc.class(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := OpenTree(bytes.NewReader(raw), size, root); err == nil {
		t.Error("a slot that's too small was taken")
	}
}

func TestVerifyRefusesOddBlocks(t *testing.T) {
	_, leaves := numbered(2)
	raw, root := treeOver(leaves)
	tree, err := ParseTree(raw, 2*blockSize, root)
	if err != nil {
		t.Fatal(err)
	}
	for i, block := range map[int64][]byte{-1: make([]byte, blockSize), 2: make([]byte, blockSize), 0: make([]byte, 1)} {
		if err := tree.Verify(i, block); !errdefs.IsInvalidArgument(err) {
			t.Errorf("block %d: %v", i, err)
		}
	}
	if !tree.Comparable(tree) || tree.Comparable(&Tree{salt: []byte("pepper")}) {
		t.Error("trees are compared by something else than their salt")
	}
}

// FuzzParseTree: no tree but the true one has this root hash.
func FuzzParseTree(f *testing.F) {
	_, leaves := numbered(130)
	raw, root := treeOver(leaves)
	f.Add(0, []byte{'V'})
	f.Add(blockSize, []byte{1, 2, 3})
	f.Add(len(raw)-8, []byte{0, 0})
	f.Fuzz(func(t *testing.T, at int, patch []byte) {
		b := bytes.Clone(raw)
		if at >= 0 && at < len(b) {
			copy(b[at:], patch)
		}
		tree, err := ParseTree(b, 130*blockSize, root)
		if err != nil {
			return
		}
		var got [][sha256.Size]byte
		for i := range tree.Blocks() {
			got = append(got, tree.Leaf(i))
		}
		if diff := cmp.Diff(leaves, got); diff != "" {
			t.Error(diff)
		}
	})
}
