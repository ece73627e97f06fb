package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
)

// verityBlock is the size of data and hash blocks in bytes: the kernel's page.
const verityBlock = 4096

// veritySalt is fixed: it hides nothing, and equal roots shall be equal files.
var veritySalt = sha256.Sum256([]byte("capsule root"))

// veritySuperblock describes a hash tree, as veritysetup writes it:
// https://gitlab.com/cryptsetup/cryptsetup/-/wikis/DMVerity
type veritySuperblock struct {
	Signature     [8]byte
	Version       uint32
	HashType      uint32
	UUID          [16]byte
	Algorithm     [32]byte
	DataBlockSize uint32
	HashBlockSize uint32
	DataBlocks    uint64
	SaltSize      uint16
	_             [6]byte
	Salt          [256]byte
	_             [168]byte
}

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
	blocks := (info.Size() + verityBlock - 1) / verityBlock
	offset = blocks * verityBlock
	if err := f.Truncate(offset); err != nil {
		return 0, "", err
	}
	levels, root, err := verityLevels(f)
	if err != nil {
		return 0, "", fmt.Errorf("hash %s: %w", path, err)
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return 0, "", err
	}
	if _, err := f.Write(superblock(uint64(blocks))); err != nil {
		return 0, "", err
	}
	for i := len(levels) - 1; i >= 0; i-- { // the root's level comes first
		if _, err := f.Write(levels[i]); err != nil {
			return 0, "", err
		}
	}
	return offset, hex.EncodeToString(root[:]), nil
}

// superblock fills the whole first block of the hash area.
func superblock(blocks uint64) []byte {
	s := veritySuperblock{
		Signature: [8]byte{'v', 'e', 'r', 'i', 't', 'y'}, Version: 1, HashType: 1,
		DataBlockSize: verityBlock, HashBlockSize: verityBlock, DataBlocks: blocks, SaltSize: uint16(len(veritySalt)),
	}
	copy(s.Algorithm[:], "sha256")
	copy(s.UUID[:], veritySalt[:])
	copy(s.Salt[:], veritySalt[:])
	var block bytes.Buffer
	_ = binary.Write(&block, binary.LittleEndian, s) // a fixed size into memory
	return append(block.Bytes(), make([]byte, verityBlock-block.Len())...)
}

// verityLevels hashes the data block by block, then the hashes, until one block
// is left. Level 0 lies over the data; each is padded to whole blocks.
func verityLevels(data io.Reader) (levels [][]byte, root [sha256.Size]byte, err error) {
	for {
		level, count, err := hashBlocks(data)
		if err != nil {
			return nil, root, err
		}
		if count == 1 && len(levels) > 0 {
			return levels, [sha256.Size]byte(level), nil
		}
		level = append(level, make([]byte, -len(level)&(verityBlock-1))...)
		levels = append(levels, level)
		data = bytes.NewReader(level)
	}
}

// hashBlocks gives the salted hashes of all blocks in order, and their number.
func hashBlocks(data io.Reader) (hashes []byte, count int, err error) {
	block := make([]byte, len(veritySalt)+verityBlock)
	copy(block, veritySalt[:])
	for ; ; count++ {
		_, err := io.ReadFull(data, block[len(veritySalt):])
		if errors.Is(err, io.EOF) {
			return hashes, count, nil
		}
		if err != nil {
			return nil, 0, err
		}
		sum := sha256.Sum256(block)
		hashes = append(hashes, sum[:]...)
	}
}
