// Package ext4 makes, checks and grows the file systems of volumes. Only Format
// ever makes one, and only where nothing but zeros is.
package ext4

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"capsule/internal/run"
)

const (
	formatMax = 10 * time.Minute
	checkMax  = time.Hour // a full check of many TiB; a clean one takes no time

	// emptyLen is the head of a device that must be zero for it to be formatted.
	emptyLen = 1 << 20

	// A journal is in use as a whole after a while: of a thin volume that is space
	// of the pool, and mke2fs would take up to 1 GiB.
	journalMax  = "size=128" // MiB
	journalFrom = 32 << 30   // bytes of the device, from which mke2fs would take more
)

// Format makes an empty file system on a device that reads as zeros all over, as a
// new thin volume does: inode tables are not written, so nothing of the pool is
// used for them, now or later. What it made is on the disk when it returns. A
// device with anything in its head is refused.
func Format(ctx context.Context, device string) error {
	size, err := emptySize(device)
	if err != nil {
		return fmt.Errorf("format %q: %w", device, err)
	}
	args := []string{"-q", "-m", "0", "-b", "4096", "-O", "64bit,resize_inode",
		"-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,assume_storage_prezeroed=1,root_owner=0:0"}
	if size >= journalFrom {
		args = append(args, "-J", journalMax)
	}
	if _, err := run.Output(ctx, formatMax, "mkfs.ext4", append(args, device)...); err != nil {
		return fmt.Errorf("format %q: %w", device, err)
	}
	f, err := os.Open(device)
	if err != nil {
		return fmt.Errorf("format %q: %w", device, err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("flush %q: %w", device, err)
	}
	return nil
}

// emptySize is the size of a device, or an error when it isn't empty.
func emptySize(device string) (int64, error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	head := make([]byte, min(emptyLen, size))
	if _, err := f.ReadAt(head, 0); err != nil {
		return 0, err
	}
	if !bytes.Equal(head, make([]byte, len(head))) {
		return 0, fmt.Errorf("it isn't empty, and data is never written over: %w", errdefs.ErrFailedPrecondition)
	}
	return size, nil
}

// Bits of e2fsck's exit status (e2fsck(8)).
const (
	fsckRepaired = 1
	fsckReboot   = 2 // repaired; matters only for a mounted root
	fsckLeft     = 4 // damage is left: it wants a person's decision
)

// Check replays the journal of a file system that nobody has mounted, and repairs
// what can be repaired without risk, a superblock that a power cut tore included.
// It's over in no time when the file system is clean. The error is of class DataLoss when damage is left, with e2fsck's last
// words; NotFound without a device; Unavailable while somebody has it open.
func Check(ctx context.Context, device string) error {
	if err := free(device); err != nil {
		return fmt.Errorf("check %q: %w", device, err)
	}
	if _, err := ReadSuper(device); err != nil {
		return err
	}
	mended, err := mend(device)
	if err != nil {
		return fmt.Errorf("check %q: %w", device, err)
	}
	args := []string{"-p", device}
	if mended {
		args = []string{"-f", "-p", device} // all of it
	}
	out, err := run.Output(ctx, checkMax, "e2fsck", args...)
	var exit *exec.ExitError
	if err == nil || errors.As(err, &exit) && exit.ExitCode()&^(fsckRepaired|fsckReboot) == 0 && exit.Exited() {
		return nil
	}
	if exit != nil && exit.Exited() && exit.ExitCode()&fsckLeft != 0 {
		return fmt.Errorf("check %q: damage that only a person may repair: %s: %w", device, lastWords(out), errdefs.ErrDataLoss)
	}
	return fmt.Errorf("check %q: %w: %s", device, err, lastWords(out))
}

// free says whether a device is there and nobody else's. The kernel's own rule is
// asked: who mounts a device, or opens it for a virtual machine, has it alone.
func free(device string) error {
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_EXCL, 0)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENXIO):
		return errors.Join(errdefs.ErrNotFound, err)
	case errors.Is(err, unix.EBUSY):
		return errors.Join(errdefs.ErrUnavailable, err)
	case err != nil:
		return err
	}
	return f.Close()
}

// lastWords is the end of what e2fsck printed, on one line.
func lastWords(out []byte) string {
	const most = 400 // bytes
	out = bytes.Join(bytes.Fields(out), []byte(" "))
	if len(out) > most {
		out = out[len(out)-most:]
	}
	return string(out)
}
