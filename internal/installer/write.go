package installer

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"

	"capsule/internal/disk"
	"capsule/internal/fat"
	"capsule/internal/lvm"
	"capsule/internal/slot"
)

// A Source is what a capsule is made of.
type Source struct {
	System io.ReaderAt // a slot that holds the system
	Root   slot.Root   // of it
	Files  []fat.File  // of the ESP
}

// A Target is a disk that is written to. Fresh reads what is on the medium, whatever
// the kernel remembers of it.
type Target interface {
	io.WriterAt
	Sync() error
	Fresh() (Reader, error)
}

// Reader is closed after use.
type Reader interface {
	io.ReaderAt
	io.Closer
}

// Progress of an installation.
type Progress struct {
	Step        string
	Done, Total int64 // bytes written and read back
}

const (
	chunkBytes = 1 << 20
	blankBytes = 2 << 20 // of a partition whose old content must not be taken for ours
)

// A writer puts a source on a target. It remembers what it wrote where.
type writer struct {
	ctx      context.Context //nolint:containedctx // the end of one call, asked for at each write
	target   Target
	table    *disk.Table
	source   Source
	progress func(Progress)

	now     Progress
	written []extent
}

type extent struct {
	at  int64
	len int
	sum [sha256.Size]byte
}

func newWriter(ctx context.Context, target Target, table *disk.Table, source Source, progress func(Progress)) *writer {
	w := &writer{ctx: ctx, target: target, table: table, source: source, progress: progress}
	w.now.Total = 2 * (source.Root.DataBytes + slot.TreeBytes(source.Root.DataBytes) + w.espBytes() + 4*blankBytes)
	return w
}

// fill brings all that matters to the disk and reads it back. The disk doesn't boot.
func (w *writer) fill() error {
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"clear the disk", w.clear},
		{"write the system", w.system},
		{"write the boot partition", w.esp},
		{"prepare the data partition", w.perm},
		{"verify", w.verify},
	} {
		if err := w.step(step.name, step.do); err != nil {
			return err
		}
	}
	return nil
}

// errMayBoot says of a failed installation that its disk may be one that boots.
var errMayBoot = errors.New("the disk may boot now, although the installation failed")

// finish makes a disk that was filled one that boots, or leaves one that doesn't: it
// isn't stopped half-way, and what fails is undone.
func (w *writer) finish() error {
	if err := w.ctx.Err(); err != nil {
		return fmt.Errorf("stopped: %w", err)
	}
	w.ctx = context.WithoutCancel(w.ctx)
	if err := w.step("write the partition table", w.tables); err != nil {
		if undo := w.clear(); undo != nil {
			return fmt.Errorf("%w; %w: %w", err, errMayBoot, undo)
		}
		return err
	}
	w.now.Done = w.now.Total
	w.tell(0)
	return nil
}

func (w *writer) step(name string, do func() error) error {
	w.now.Step = name
	w.tell(0)
	if err := do(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (w *writer) tell(n int) {
	w.now.Done = min(w.now.Done+int64(n), w.now.Total)
	if w.progress != nil {
		w.progress(w.now)
	}
}

// WriteAt writes to the target and remembers it.
func (w *writer) WriteAt(p []byte, at int64) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, fmt.Errorf("stopped: %w", err)
	}
	n, err := w.target.WriteAt(p, at)
	if err == nil {
		w.written = append(w.written, extent{at, len(p), sha256.Sum256(p)})
		w.tell(n)
	}
	return n, err
}

// clear takes away all by which the disk is known.
func (w *writer) clear() error {
	return Clear(w, w.table.Sector, int64(w.table.Sectors)*int64(w.table.Sector))
}

// Clear takes away all by which a disk is known, from the first sector on, and leaves
// our mark: from then on it counts as empty.
func Clear(to interface {
	io.WriterAt
	Sync() error
}, sector int, sizeBytes int64) error {
	head := make([]byte, chunkBytes)
	copy(head, disk.UnfinishedMark(sector))
	if _, err := to.WriteAt(head, 0); err != nil {
		return err
	}
	if err := to.Sync(); err != nil {
		return err
	}
	if _, err := to.WriteAt(make([]byte, chunkBytes), sizeBytes-chunkBytes); err != nil {
		return err
	}
	return to.Sync()
}

func (w *writer) partition(name string) (at int64, err error) {
	p, err := w.table.ByName(name)
	return w.table.Offset(p), err
}

// system copies the root with its tree to slot A, each block checked by the root's
// hash, which the firmware's loader gave to the kernel. Slot B is empty.
func (w *writer) system() error {
	a, err := w.partition(disk.SlotA)
	if err != nil {
		return err
	}
	b, err := w.partition(disk.SlotB)
	if err != nil {
		return err
	}
	root := w.source.Root
	if need := root.DataBytes + slot.TreeBytes(root.DataBytes); need > disk.SlotBytes {
		return fmt.Errorf("the system has %d bytes, a slot %d: %w", need, disk.SlotBytes, errdefs.ErrFailedPrecondition)
	}
	tree, err := slot.OpenTree(w.source.System, root.DataBytes, root.Hash)
	if err != nil {
		return fmt.Errorf("the stick: %w", err)
	}
	chunk := make([]byte, chunkBytes)
	for at := int64(0); at < root.DataBytes; at += chunkBytes {
		n := min(chunkBytes, root.DataBytes-at)
		if got, err := w.source.System.ReadAt(chunk[:n], at); int64(got) < n {
			return fmt.Errorf("read the stick: %w", errors.Join(err, io.ErrUnexpectedEOF))
		}
		for i := int64(0); i < n; i += slot.BlockSize {
			if err := tree.Verify((at+i)/slot.BlockSize, chunk[i:i+slot.BlockSize]); err != nil {
				return fmt.Errorf("the stick is damaged: %w", err)
			}
		}
		if _, err := w.WriteAt(chunk[:n], a+at); err != nil {
			return err
		}
	}
	if _, err := w.WriteAt(tree.Bytes(), a+root.DataBytes); err != nil {
		return err
	}
	_, err = w.WriteAt(make([]byte, blankBytes), b)
	return err
}

func (w *writer) espBytes() (sum int64) {
	for _, f := range w.source.Files {
		sum += f.Bytes
	}
	return sum
}

func (w *writer) esp() error {
	at, err := w.partition(disk.ESP)
	if err != nil {
		return err
	}
	serial := make([]byte, 4)
	_, _ = rand.Read(serial) // never fails
	return fat.Write(fat.Volume{
		Out: io.NewOffsetWriter(w, at), Bytes: disk.ESPBytes, Sector: w.table.Sector, Hidden: uint32(at / int64(w.table.Sector)),
		Serial: binary.LittleEndian.Uint32(serial), Label: disk.ESP, When: time.Now(),
	}, w.source.Files)
}

// perm marks PERM as new: the capsule's first start makes its volumes.
func (w *writer) perm() error {
	at, err := w.partition(disk.PERM)
	if err != nil {
		return err
	}
	head := make([]byte, blankBytes)
	copy(head[lvm.MarkAt:], lvm.Mark())
	_, err = w.WriteAt(head, at)
	return err
}

// verify reads back from the medium what was written since the last time.
func (w *writer) verify() (err error) {
	if err := w.target.Sync(); err != nil {
		return err
	}
	r, err := w.target.Fresh()
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	for _, e := range w.written {
		if err := w.ctx.Err(); err != nil {
			return fmt.Errorf("stopped: %w", err)
		}
		b := make([]byte, e.len)
		if n, err := r.ReadAt(b, e.at); n < e.len {
			return fmt.Errorf("read back %d bytes at %d: %w", e.len, e.at, errors.Join(err, io.ErrUnexpectedEOF))
		}
		if sha256.Sum256(b) != e.sum {
			return fmt.Errorf("the disk doesn't hold what was written to it: %d bytes at %d: %w", e.len, e.at, errdefs.ErrDataLoss)
		}
		w.tell(e.len)
	}
	w.written = nil
	return nil
}

// tables makes the disk a capsule's: both copies of the table, then the sector that
// leads to them.
func (w *writer) tables() error {
	if err := w.table.Write(w); err != nil {
		return err
	}
	if _, err := w.WriteAt(disk.ProtectiveMBR(w.table.Sector, w.table.Sectors), 0); err != nil {
		return err
	}
	return w.verify()
}

// Sync is for the table, whose copies are written one after the other.
func (w *writer) Sync() error { return w.target.Sync() }

// aligned reads whole blocks, as reads past the kernel's cache must.
func aligned(r io.ReaderAt, buffer, p []byte, at int64, block int64) (int, error) {
	begin := at / block * block
	end := (at + int64(len(p)) + block - 1) / block * block
	n := 0
	for from := begin; from < end; from += int64(len(buffer)) {
		part := buffer[:min(int64(len(buffer)), end-from)]
		got, err := r.ReadAt(part, from)
		skip := max(at-from, 0)
		if int64(got) <= skip {
			return n, errors.Join(err, io.ErrUnexpectedEOF)
		}
		n += copy(p[n:], part[skip:got])
		if got < len(part) && n < len(p) {
			return n, errors.Join(err, io.ErrUnexpectedEOF)
		}
	}
	return n, nil
}
