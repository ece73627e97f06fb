package ext4

import (
	"encoding/binary"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
)

// A Super is what the superblock says (Documentation/filesystems/ext4/super.rst of
// the kernel).
type Super struct {
	SizeBytes     int64
	BlockBytes    int64
	Errors        bool // the kernel met damage: a check is due
	NeedsRecovery bool // not unmounted, or mounted now: the journal counts
	Projects      bool // folders can be bounded
}

const (
	superAt  = 1024
	superLen = 1024
	magic    = 0xef53

	stateErrors     = 0x2
	incompatRecover = 0x4
	incompat64bit   = 0x80
	rocompatQuota   = 0x100
	rocompatProject = 0x2000
	shiftMax        = 6 // blocks of 64 KiB
)

// ReadSuper reads the superblock of a device. Without a sane one the error is of
// class DataLoss; without a device, NotFound.
func ReadSuper(device string) (Super, error) {
	f, err := os.Open(device)
	if os.IsNotExist(err) {
		return Super{}, fmt.Errorf("read superblock: %w: %w", errdefs.ErrNotFound, err)
	}
	if err != nil {
		return Super{}, fmt.Errorf("read superblock: %w", err)
	}
	defer f.Close()
	b := make([]byte, superLen)
	if _, err := f.ReadAt(b, superAt); err != nil {
		return Super{}, fmt.Errorf("read superblock of %q: %w", device, err)
	}
	s, err := parseSuper(b)
	if err != nil {
		return Super{}, fmt.Errorf("superblock of %q: %w", device, err)
	}
	return s, nil
}

func parseSuper(b []byte) (Super, error) {
	le := binary.LittleEndian
	if len(b) < superLen || le.Uint16(b[0x38:]) != magic {
		return Super{}, fmt.Errorf("no ext4: %w", errdefs.ErrDataLoss)
	}
	shift := le.Uint32(b[0x18:])
	if shift > shiftMax {
		return Super{}, fmt.Errorf("blocks of 2^%d KiB: %w", shift, errdefs.ErrDataLoss)
	}
	incompat := le.Uint32(b[0x60:])
	blocks := uint64(le.Uint32(b[0x4:]))
	if incompat&incompat64bit != 0 {
		blocks |= uint64(le.Uint32(b[0x150:])) << 32
	}
	size := blocks << (10 + shift)
	if blocks == 0 || size>>(10+shift) != blocks || int64(size) < 0 {
		return Super{}, fmt.Errorf("%d blocks of 2^%d KiB: %w", blocks, shift, errdefs.ErrDataLoss)
	}
	return Super{
		SizeBytes:     int64(size),
		BlockBytes:    1 << (10 + shift),
		Errors:        le.Uint16(b[0x3a:])&stateErrors != 0,
		NeedsRecovery: incompat&incompatRecover != 0,
		Projects:      le.Uint32(b[0x64:])&(rocompatQuota|rocompatProject) == rocompatQuota|rocompatProject,
	}, nil
}
