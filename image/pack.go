package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

const (
	packMax = 20 * time.Minute

	// rootUUID is the same in every image: nothing looks a root up by it.
	rootUUID = "a8b5e6a0-ca95-4c1e-9d1b-0c6a95a1e0f5"

	// Level 9 takes six times as long for 4 % less; the denser packing options run
	// on one core only.
	compression = "zstd,level=3"
	clusterSize = 64 << 10 // bytes that are compressed together
)

// rootImage is a root file system with its hash tree behind it.
type rootImage struct {
	Path   string
	Offset int64  // where the hash tree's superblock starts, in bytes
	Hash   string // root hash, hexadecimal
	Digest string // SHA-256 of the whole file, hexadecimal
}

// packRoot compresses the tree and appends its hash tree.
func (b *builder) packRoot() (rootImage, error) {
	tree, image := filepath.Join(b.work, "root"), filepath.Join(b.work, "root.erofs")
	k := newKey("pack 2", compression, clusterSize, rootUUID, b.buildUnix).tree(tree)
	facts := image + ".facts"
	err := b.step("root image", k, []string{image, facts}, func() error { return b.packTree(tree, image, facts) })
	if err != nil {
		return rootImage{}, err
	}
	return readRootImage(image, facts)
}

// packTree also writes down where the hash tree is and what its root hash is.
func (b *builder) packTree(tree, image, facts string) error {
	if err := os.Remove(image); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	_, err := b.tool(packMax, "usr/bin/mkfs.erofs", "--quiet", "-z"+compression,
		"-C"+strconv.Itoa(clusterSize), "-T"+strconv.FormatInt(b.buildUnix, 10), "--all-root", "-x-1",
		"-U"+rootUUID, "--workers=2", image, tree)
	if err != nil {
		return err
	}
	offset, hash, err := appendVerity(image)
	if err != nil {
		return err
	}
	return replaceFile(facts, fmt.Appendf(nil, "%d %s\n", offset, hash))
}

func readRootImage(image, facts string) (rootImage, error) {
	root := rootImage{Path: image}
	content, err := os.ReadFile(facts)
	if err != nil {
		return root, err
	}
	if _, err := fmt.Sscanf(string(content), "%d %s\n", &root.Offset, &root.Hash); err != nil {
		return root, fmt.Errorf("read %s: %w", facts, err)
	}
	f, err := os.Open(image)
	if err != nil {
		return root, err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return root, err
	}
	root.Digest = hex.EncodeToString(sum.Sum(nil))
	return root, nil
}
