// Package backup owns the form of a backup: one stream of records, which a capsule
// writes and an operator's machine keeps, encrypted. It knows nothing of what is in
// the files, nor where they come from.
//
//	"capsule backup\n"
//	header                       who, when, and on which backup this one stands
//	file, data, data, …          the state, file by file
//	volume, chunk, chunk, …      the volumes in the order of their names, if asked for
//	end                          the SHA-256 of all before it
//
// Each record is a BackupRecord after its length, a varint. A volume is its chunks
// of ChunkBytes by number, but those that are all zeros. A chunk without data has the
// data that the backup before has for it: so an incremental one is read together with
// those that it stands on (Chain).
//
// What was cut off has no end, and a Reader says so. That nobody else wrote it is for
// the encryption around it to say, and for the hashes of chunks, which are made with a
// key of the capsule's own.
package backup

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"fmt"

	"github.com/containerd/errdefs"
)

// Format of what this version writes; a Reader knows it and all before.
const Format = 1

// Limits of a backup.
const (
	ChunkBytes = 256 << 10 // of a volume, and at most of a file's data in one record
	FileMax    = 512 << 20 // bytes of one file
	FilesMax   = 64
	VolumesMax = 1000
	VolumeMax  = 16 << 40 // bytes
	// ChainMax bounds how many backups stand on each other.
	ChainMax = 64

	recordMax = 1 << 20 // bytes
	nameMax   = 255     // bytes of a path, a name or a version
)

const (
	magic  = "capsule backup\n"
	idSize = 16 // bytes
)

// Errors that callers tell apart, each in a chain that says where.
var (
	// ErrCut: it ends before its end.
	ErrCut = fmt.Errorf("it is cut off: %w", errdefs.ErrDataLoss)
	// ErrDamaged: it was written by no capsule like that.
	ErrDamaged = fmt.Errorf("it is damaged: %w", errdefs.ErrDataLoss)
	// ErrForeign: it's something else.
	ErrForeign = fmt.Errorf("it is no backup of a capsule: %w", errdefs.ErrInvalidArgument)
	// ErrNewer: this version does not know its form.
	ErrNewer = fmt.Errorf("it was made by a newer version: use one at least as new: %w", errdefs.ErrFailedPrecondition)
)

// NewID is that of a new backup.
func NewID() []byte {
	id := make([]byte, idSize)
	_, _ = rand.Read(id) // never fails
	return id
}

// IsID tells whether it has the form of one.
func IsID(id []byte) bool { return len(id) == idSize }

// A Hasher makes the hashes of one capsule's chunks: nobody without its key can tell
// from one what a chunk holds, nor make another chunk fit.
type Hasher struct{ key []byte }

// NewHasher is for the capsule with this secret, such as its CA's key.
func NewHasher(secret []byte) (Hasher, error) {
	key, err := hkdf.Key(sha256.New, secret, nil, "capsule backup chunks v1", sha256.Size)
	return Hasher{key}, err
}

// Hash of a chunk.
func (h Hasher) Hash(chunk []byte) []byte {
	mac := hmac.New(sha256.New, h.key)
	mac.Write(chunk)
	return mac.Sum(nil)
}

// Chunks is how many chunks a volume of that size has, zeros included.
func Chunks(sizeBytes uint64) uint64 { return (sizeBytes + ChunkBytes - 1) / ChunkBytes }

// ChunkSize of chunk i of a volume of that size: the last may be shorter.
func ChunkSize(i, sizeBytes uint64) int { return int(min(ChunkBytes, sizeBytes-i*ChunkBytes)) } //nolint:gosec // small
