package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"capsule/internal/bundle"
)

// appendVerity pads a file to whole blocks and appends the superblock and the hash
// tree over them. It gives the superblock's offset in bytes and the root hash.
func appendVerity(path string) (offset int64, rootHash string, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return 0, "", err
	}
	offset = (info.Size() + bundle.BlockSize - 1) / bundle.BlockSize * bundle.BlockSize
	if err := f.Truncate(offset); err != nil {
		return 0, "", err
	}
	tree, rootHash, err := bundle.HashTree(f)
	if err != nil {
		return 0, "", fmt.Errorf("hash %s: %w", path, err)
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return 0, "", err
	}
	if _, err := f.Write(tree); err != nil {
		return 0, "", err
	}
	return offset, rootHash, nil
}
