package main

import (
	"bytes"
	"testing"

	"github.com/containerd/errdefs"

	"capsule/internal/blocklog"
	"capsule/internal/bundle"
	"capsule/internal/slot"
)

func TestRootWhole(t *testing.T) {
	const blocks = 300 // more than one block of hashes, and more than is read at once
	data := make([]byte, blocks*slot.BlockSize)
	for i := range data {
		data[i] = byte(i / slot.BlockSize)
	}
	tree, hash, err := bundle.HashTree(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	want := slot.Root{Hash: hash, DataBytes: int64(len(data))}
	root := append(data, tree...)
	if err := rootWhole(t.Context(), bytes.NewReader(root), want); err != nil {
		t.Error(err)
	}
	for _, at := range []int{0, 256*slot.BlockSize + 1, len(data) - 1, len(root) - 4000} {
		root[at] ^= 1
		if err := rootWhole(t.Context(), bytes.NewReader(root), want); !errdefs.IsDataLoss(err) && !errdefs.IsNotFound(err) {
			t.Errorf("byte %d is wrong: %v", at, err)
		}
		root[at] ^= 1
	}
}

func TestWritten(t *testing.T) {
	l := &blocklog.Log{Entries: []blocklog.Entry{
		{At: 0, Len: 512},
		{Flags: blocklog.Flush},
		{At: 4096, Len: 8192},
		{At: 20480, Len: 4096, Flags: blocklog.Discard},
	}}
	area := blocklog.Entry{At: 8192, Len: 12288}
	for _, tc := range []struct {
		from, to int
		want     bool
	}{{0, 2, false}, {0, 3, true}, {2, 4, true}, {3, 4, false}, {3, 3, false}} {
		b := &boot{log: l, cut: blocklog.Cut{N: tc.to}}
		if got := b.written(area, tc.from); got != tc.want {
			t.Errorf("entries %d to %d: %v", tc.from, tc.to, got)
		}
	}
}
