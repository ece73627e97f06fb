package lvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"capsule/internal/ext4"
	"capsule/internal/run"
)

// The mark of a PERM partition that is new, or whose initialisation was cut. It
// stands in lvm's boot loader area, which lvm keeps out of. It goes away, with a
// flush, before anything of value can be written; from then on nothing in here
// ever writes over the partition.
const (
	MarkAt   = 1 * mib
	markLen  = 512
	markText = "capsule PERM unfinished v1\n"

	// blankMax is the largest partition without mark that is read as a whole to
	// prove that it's blank. A larger one needs the mark.
	blankMax = 16 * gib

	// permReserve is the part of /perm, in percent, that no workload can take: what
	// is declared can be changed on a disk that is full.
	permReserve = "5"

	zeroLen = 2 * mib // head of the partition that a new start clears
	mkfsMax = 10 * time.Minute
)

// A Content is what a PERM partition holds.
type Content int

// What Inspect finds.
const (
	Used    Content = iota // something: it is only ever opened
	New                    // marked as new or unfinished
	Blank                  // not marked, all zero
	Unknown                // zero at its head, but too large to prove blank
)

// Inspect says what a partition holds, reading all of it only when its head is
// zero and has no mark.
func Inspect(device string) (Content, error) {
	f, err := os.Open(device)
	if err != nil {
		return Used, fmt.Errorf("open PERM: %w", err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return Used, fmt.Errorf("size of PERM: %w", err)
	}
	c, err := inspect(f, size)
	if err != nil {
		return Used, fmt.Errorf("read PERM %q: %w", device, err)
	}
	return c, nil
}

func inspect(r io.ReaderAt, size int64) (Content, error) {
	if size < zeroLen {
		return Used, fmt.Errorf("%d bytes are too few for PERM: %w", size, errdefs.ErrInvalidArgument)
	}
	got := make([]byte, markLen)
	if _, err := r.ReadAt(got, MarkAt); err != nil {
		return Used, err
	}
	if bytes.Equal(got, Mark()) {
		return New, nil
	}
	zero := make([]byte, mib)
	chunk := make([]byte, mib)
	for at := int64(0); at < size; at += mib {
		n := min(mib, size-at)
		if at == zeroLen && size > blankMax {
			return Unknown, nil
		}
		if _, err := r.ReadAt(chunk[:n], at); err != nil {
			return Used, err
		}
		if !bytes.Equal(chunk[:n], zero[:n]) {
			return Used, nil
		}
	}
	return Blank, nil
}

// Mark is the sector at MarkAt of a new PERM partition.
func Mark() []byte {
	b := make([]byte, markLen)
	copy(b, markText)
	return b
}

// MarkNew marks a partition that Inspect found Blank, so that a cut later finds
// it New.
func MarkNew(device string) error { return writeMark(device, Mark()) }

func writeMark(device string, b []byte) error {
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("open PERM: %w", err)
	}
	_, err = f.WriteAt(b, MarkAt)
	return errors.Join(err, f.Sync(), f.Close())
}

// Create initialises a New partition: group, /perm's file system, pool. A cut at
// any moment leaves the mark, and the next boot starts again from zero.
func Create(ctx context.Context, device string) error {
	if c, err := Inspect(device); err != nil || c != New {
		return errors.Join(err, fmt.Errorf("initialise PERM %q: it isn't marked as new: %w", device, errdefs.ErrFailedPrecondition))
	}
	if err := clearHead(device); err != nil {
		return fmt.Errorf("clear PERM %q: %w", device, err)
	}
	for _, args := range [][]string{
		{"pvcreate", "-y", "-ff", "--zero", "y", "--bootloaderareasize", "1m", device},
		{"vgcreate", "-y", Group, device},
	} {
		if _, err := command(ctx, args...); err != nil {
			return err
		}
	}
	s, err := readState(ctx, device)
	if err != nil {
		return err
	}
	l := plan(s.home, s.size, s.extent)
	if l.pool == 0 {
		return fmt.Errorf("PERM of %d bytes is too small: %w", s.size, errdefs.ErrInvalidArgument)
	}
	if err := createVolumes(ctx, l); err != nil {
		return err
	}
	if err := finish(device); err != nil {
		return fmt.Errorf("finish PERM %q: %w", device, err)
	}
	return nil
}

// finish takes the mark away, after all that was made is on the disk for certain.
func finish(device string) error {
	unix.Sync()
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil { // flushes the disk's cache
		return err
	}
	return writeMark(device, make([]byte, markLen))
}

// createVolumes makes perm with its file system, and the pool.
func createVolumes(ctx context.Context, l layout) error {
	if _, err := command(ctx, "lvcreate", "-y", "-Wy", "-Zy", "-L", bytesArg(l.perm), "-n", Perm, Group); err != nil {
		return err
	}
	if _, err := run.Output(ctx, mkfsMax, "mkfs.ext4", "-q", "-F", "-m", permReserve, "-L", Perm,
		"-O", ext4.ProjectFeatures, "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,"+ext4.ProjectQuota, PermDevice); err != nil {
		return err
	}
	return CreatePool(ctx, l.pool, l.metadata)
}

// CreatePool makes the group's pool of so many bytes of data, and of metadata which
// lvm's spare needs once more. Discards end at the pool: while it passes one down,
// its counts of references are too high, and if the power is cut then, thin_check
// refuses the pool with all volumes in it ("bad reference count", for a chunk that
// snapshots share).
func CreatePool(ctx context.Context, dataBytes, metadataBytes uint64) error {
	_, err := command(ctx, "lvcreate", "-y", "--type", "thin-pool", "-L", bytesArg(dataBytes),
		"--poolmetadatasize", bytesArg(metadataBytes), "-c", "64k", "--discards", "nopassdown", "-n", Pool, Group)
	return err
}

// clearHead zeroes the head but for the mark: the rest of an earlier start.
func clearHead(device string) error {
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	zero := make([]byte, zeroLen)
	_, err = f.WriteAt(zero[:MarkAt], 0)
	if err == nil {
		_, err = f.WriteAt(zero[:zeroLen-MarkAt-markLen], MarkAt+markLen)
	}
	return errors.Join(err, f.Sync(), f.Close())
}

func bytesArg(n uint64) string { return strconv.FormatUint(n, 10) + "b" }
