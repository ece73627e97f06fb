package update

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/bundle"
	"capsule/internal/slot"
)

// root is the one of a bundle on its way into a slot.
type root struct {
	tree   *slot.Tree
	at     int64 // of the root in the bundle, bytes
	fetch  Fetch
	target *os.File // the slot that doesn't run
	name   string   // of it
	source *os.File // the slot that runs; nil when its blocks can't be used
	blocks *index   // of the source
	meter  *meter

	missing []bool // by block: not in the target
	lacks   int64  // how many those are
}

// openRoot fetches the hash tree, proves it, and opens both slots. It writes nothing.
func (m *Manager) openRoot(ctx context.Context, h *bundle.Header, fetch Fetch, meter *meter) (*root, error) {
	want := h.Manifest.Root
	raw := make([]byte, want.Size-want.DataBytes)
	if err := fetch.into(ctx, []Range{{h.RootAt + want.DataBytes, int64(len(raw))}}, raw); err != nil {
		return nil, err
	}
	tree, err := slot.ParseTree(raw, want.DataBytes, want.VerityHash)
	if err != nil {
		return nil, damaged("hash tree of its root: %v", err)
	}
	if !asBuilt(tree) {
		return nil, damaged("head of its root's hash tree")
	}
	r := &root{tree: tree, at: h.RootAt, fetch: fetch, name: m.other(), meter: meter}
	device, err := m.boot.Device(m.other())
	if err != nil {
		return nil, err
	}
	if r.target, err = os.OpenFile(device, os.O_RDWR, 0); err != nil {
		return nil, fmt.Errorf("open %s: %w", m.other(), err)
	}
	if err := r.openSource(m); err != nil {
		m.Log.Warn("update: the running root is no help", "error", err) // the bundle has all
	}
	return r, nil
}

// openSource finds the blocks of the running slot without reading them: its tree
// has their hashes.
func (r *root) openSource(m *Manager) error {
	running, err := m.Root()
	if err != nil {
		return err
	}
	f, err := m.open(m.boot.Slot)
	if err != nil {
		return err
	}
	t, err := slot.OpenTree(f, running.DataBytes, running.Hash)
	if err == nil && !t.Comparable(r.tree) {
		err = fmt.Errorf("its hashes have another salt: %w", errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	r.source, r.blocks = f, newIndex(t)
	return nil
}

func (r *root) close() {
	_ = r.target.Close() // all was synced, or is of no use
	if r.source != nil {
		_ = r.source.Close()
	}
}

func (r *root) dataBytes() int64 { return r.tree.Blocks() * blockSize }

// compare finds out which blocks are where they belong already: of a push that
// broke off, or of the former system.
func (r *root) compare(ctx context.Context) error {
	r.meter.begin(v1.UpdatePhase_UPDATE_PHASE_COMPARE, r.dataBytes())
	r.missing = make([]bool, r.tree.Blocks())
	err := scan(ctx, r.tree, r.target, func(block int64, ok bool) error {
		if r.missing[block] = !ok; ok {
			r.meter.now.Reused += blockSize
		} else {
			r.lacks++
		}
		r.meter.at((block + 1) * blockSize)
		return nil
	})
	if err != nil {
		return err
	}
	r.meter.end()
	return nil
}

// write brings the missing blocks, from the running slot where it has them, and
// then the hash tree. When it returns all is on the disk.
func (r *root) write(ctx context.Context) error {
	r.meter.begin(v1.UpdatePhase_UPDATE_PHASE_WRITE, r.lacks*blockSize)
	if err := r.copyBlocks(ctx); err != nil {
		return err
	}
	if err := r.fetchBlocks(ctx); err != nil {
		return err
	}
	if _, err := r.target.WriteAt(r.tree.Bytes(), r.dataBytes()); err != nil {
		return fmt.Errorf("write %s: %w", r.name, err)
	}
	if err := r.target.Sync(); err != nil {
		return fmt.Errorf("write %s: %w", r.name, err)
	}
	r.meter.end()
	return nil
}

// copyBlocks takes what the running slot has, wherever it has it.
func (r *root) copyBlocks(ctx context.Context) error {
	if r.source == nil {
		return nil
	}
	data := make([]byte, blockSize)
	for block := range r.tree.Blocks() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !r.missing[block] {
			continue
		}
		from, ok := r.blocks.find(r.tree.Leaf(block))
		if !ok {
			continue
		}
		if _, err := r.source.ReadAt(data, from*blockSize); err != nil || r.tree.Verify(block, data) != nil {
			continue // the bundle has it, too
		}
		r.meter.now.Reused += blockSize
		if err := r.put(block, data); err != nil {
			return err
		}
	}
	return nil
}

// put writes blocks that follow each other from the first one on.
func (r *root) put(first int64, data []byte) error {
	if _, err := r.target.WriteAt(data, first*blockSize); err != nil {
		return fmt.Errorf("write %s: %w", r.name, err)
	}
	for block := first; block < first+int64(len(data)/blockSize); block++ {
		r.missing[block] = false
		r.lacks--
	}
	r.meter.at(r.meter.now.Total - r.lacks*blockSize)
	return nil
}

// fetchBlocks asks for all that is still missing, a few MiB at a time.
func (r *root) fetchBlocks(ctx context.Context) error {
	buf := make([]byte, chunkSize)
	for next := int64(0); ; {
		var runs []Range // of blocks
		if runs, next = r.nextRuns(next); len(runs) == 0 {
			return nil
		}
		if err := r.fetchRuns(ctx, runs, buf); err != nil {
			return err
		}
	}
}

// nextRuns gives the missing blocks from one on, as many as a chunk has, and where
// to go on.
func (r *root) nextRuns(block int64) (runs []Range, next int64) {
	for left := int64(chunkSize / blockSize); left > 0 && block < r.tree.Blocks(); block++ {
		if !r.missing[block] {
			continue
		}
		if n := len(runs); n > 0 && runs[n-1].Offset+runs[n-1].Length == block {
			runs[n-1].Length++
		} else {
			runs = append(runs, Range{block, 1})
		}
		left--
	}
	return runs, block
}

// fetchRuns fetches blocks and writes what proves right. Blocks before a wrong one
// are kept.
func (r *root) fetchRuns(ctx context.Context, runs []Range, buf []byte) error {
	asked := make([]Range, len(runs))
	size := int64(0)
	for i, run := range runs {
		asked[i] = Range{r.at + run.Offset*blockSize, run.Length * blockSize}
		size += asked[i].Length
	}
	buf = buf[:size]
	if err := r.fetch.into(ctx, asked, buf); err != nil {
		return err
	}
	for _, run := range runs {
		data := buf[:run.Length*blockSize]
		buf = buf[len(data):]
		for i := range run.Length {
			if err := r.tree.Verify(run.Offset+i, data[i*blockSize:][:blockSize]); err != nil {
				return damaged("its root: %v", err)
			}
		}
		if err := r.put(run.Offset, data); err != nil {
			return err
		}
	}
	return nil
}

// verify reads all back from the disk itself.
func (r *root) verify(ctx context.Context) error {
	r.meter.begin(v1.UpdatePhase_UPDATE_PHASE_VERIFY, r.dataBytes())
	if err := dropCache(r.target); err != nil {
		return fmt.Errorf("read %s back: %w", r.name, err)
	}
	err := scan(ctx, r.tree, r.target, func(block int64, ok bool) error {
		if !ok {
			return fmt.Errorf("%s doesn't keep what is written to it, block %d: replace the disk: %w", r.name, block, errdefs.ErrDataLoss)
		}
		r.meter.at((block + 1) * blockSize)
		return nil
	})
	if err != nil {
		return err
	}
	tree := make([]byte, len(r.tree.Bytes()))
	if _, err := r.target.ReadAt(tree, r.dataBytes()); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read %s back: %w", r.name, err)
	}
	if !bytes.Equal(tree, r.tree.Bytes()) {
		return fmt.Errorf("%s doesn't keep what is written to it, hash tree: replace the disk: %w", r.name, errdefs.ErrDataLoss)
	}
	r.meter.end()
	return nil
}

// dropCache lets the next reads of a synced device come from the device.
func dropCache(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Mode()&os.ModeDevice != 0 {
		return unix.IoctlSetInt(int(f.Fd()), unix.BLKFLSBUF, 0)
	}
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}
