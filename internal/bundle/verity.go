package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
)

// BlockSize is that of dm-verity's data and hash blocks in bytes: the kernel's page.
const BlockSize = 4096

const hashesPerBlock = BlockSize / sha256.Size

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

// HashTree gives what stands behind a root's data, which must be whole blocks: one
// block with the superblock, then the hash tree, its top first. All is SHA-256 with
// the salt SHA-256("capsule root"). rootHash is hexadecimal.
func HashTree(data io.Reader) (tree []byte, rootHash string, err error) {
	var levels [][]byte
	var blocks uint64
	for {
		level, count, err := hashBlocks(data)
		if err != nil {
			return nil, "", err
		}
		if len(levels) == 0 {
			if blocks = count; count == 0 {
				return nil, "", io.ErrUnexpectedEOF
			}
		} else if count == 1 {
			rootHash = hex.EncodeToString(level)
			break
		}
		level = append(level, make([]byte, -len(level)&(BlockSize-1))...)
		levels = append(levels, level)
		data = bytes.NewReader(level)
	}
	tree = superblock(blocks)
	for i := len(levels) - 1; i >= 0; i-- {
		tree = append(tree, levels[i]...)
	}
	return tree, rootHash, nil
}

// TreeSize is how many bytes HashTree gives for so many bytes of whole blocks.
func TreeSize(dataBytes int64) int64 {
	blocks := int64(1) // the superblock
	for level := dataBytes / BlockSize; ; {
		level = (level + hashesPerBlock - 1) / hashesPerBlock
		blocks += level
		if level <= 1 {
			return blocks * BlockSize
		}
	}
}

// superblock fills the whole first block of the hash area.
func superblock(blocks uint64) []byte {
	s := veritySuperblock{
		Signature: [8]byte{'v', 'e', 'r', 'i', 't', 'y'}, Version: 1, HashType: 1,
		DataBlockSize: BlockSize, HashBlockSize: BlockSize, DataBlocks: blocks, SaltSize: uint16(len(veritySalt)),
	}
	copy(s.Algorithm[:], "sha256")
	copy(s.UUID[:], veritySalt[:])
	copy(s.Salt[:], veritySalt[:])
	var block bytes.Buffer
	_ = binary.Write(&block, binary.LittleEndian, s) // a fixed size into memory
	return append(block.Bytes(), make([]byte, BlockSize-block.Len())...)
}

// hashBlocks gives the salted hashes of all blocks in order, and their number.
func hashBlocks(data io.Reader) (hashes []byte, count uint64, err error) {
	block := make([]byte, len(veritySalt)+BlockSize)
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
