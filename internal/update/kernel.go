package update

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"time"

	"capsule/internal/bundle"
	"capsule/internal/disk"
	"capsule/internal/slot"
)

// kernelKeep is how long what was fetched of a kernel image waits in memory for the
// push to go on, after it broke.
const kernelKeep = 15 * time.Minute

// A kernel is a bundle's kernel image on its way. It is put together in memory, so
// that the boot partition is open only while it is written, not while a network takes
// its time.
type kernel struct {
	part  bundle.Part
	start int64  // of the image in the bundle
	buf   []byte // the image
	have  []bool // which pieces of it are there
}

// kernelOf is what is there of a bundle's kernel image: of a push of it that broke,
// or nothing. The lock of changes is held.
func (m *Manager) kernelOf(h *bundle.Header) *kernel {
	part := h.Manifest.UKI
	if m.kernel == nil || m.kernel.part.SHA256 != part.SHA256 || m.kernel.part.Size != part.Size {
		m.kernel = &kernel{part: part, buf: make([]byte, part.Size), have: make([]bool, (part.Size+bundle.PieceSize-1)/bundle.PieceSize)}
	}
	m.kernel.start = h.UKIAt
	return m.kernel
}

// fetchKernel gives the kernel image of a bundle: pieces that the running system's
// has at the same place are taken from there, the others are asked for.
func (m *Manager) fetchKernel(ctx context.Context, h *bundle.Header, fetch Fetch, tell func(there, reused int64)) ([]byte, error) {
	k := m.kernelOf(h)
	err := m.ESP(disk.ReadOnly, func(esp string) error {
		have, done := m.runningKernel(esp)
		defer done()
		k.reuse(have)
		return nil
	})
	if err != nil {
		m.Log.Warn("update: look for pieces of the kernel image", "error", err) // all is asked for
	}
	tell(k.there(), k.there())
	if err := k.fetch(ctx, fetch, func() { tell(k.there(), 0) }); err != nil {
		time.AfterFunc(kernelKeep, func() { m.dropKernel(k) })
		return nil, err
	}
	m.kernel = nil
	if sum := sha256.Sum256(k.buf); hex.EncodeToString(sum[:]) != k.part.SHA256 {
		return nil, damaged("its kernel image is not the one that was signed")
	}
	return k.buf, nil
}

// dropKernel forgets what nobody went on with.
func (m *Manager) dropKernel(k *kernel) {
	m.changing.Lock()
	defer m.changing.Unlock()
	if m.kernel == k {
		m.kernel = nil
	}
}

// runningKernel opens the kernel image of the running system; nil without one.
func (m *Manager) runningKernel(esp string) (have io.ReaderAt, done func()) {
	entry, err := entryOf(esp, m.boot.Slot)
	var f *os.File
	if err == nil && entry != nil {
		f, err = slot.OpenUKI(esp, *entry)
	}
	if err != nil || f == nil {
		return nil, func() {}
	}
	return f, func() { _ = f.Close() }
}

// piece i of the image.
func (k *kernel) piece(i int) []byte {
	at := i * bundle.PieceSize
	return k.buf[at:min(at+bundle.PieceSize, len(k.buf))]
}

// reuse takes the pieces that another image has at the same place.
func (k *kernel) reuse(other io.ReaderAt) {
	if other == nil {
		return
	}
	for i := range k.have {
		at := int64(i) * bundle.PieceSize
		want := k.part.PieceAt(at)
		if k.have[i] || want == "" {
			continue
		}
		piece := k.piece(i)
		n, err := other.ReadAt(piece, at)
		k.have[i] = n == len(piece) && (err == nil || errors.Is(err, io.EOF)) && bundle.Piece(piece) == want
	}
}

// there is how many bytes of the image are there.
func (k *kernel) there() (sum int64) {
	for i, have := range k.have {
		if have {
			sum += int64(len(k.piece(i)))
		}
	}
	return sum
}

// fetch asks for what is missing, at most chunkSize at once.
func (k *kernel) fetch(ctx context.Context, fetch Fetch, got func()) error {
	for first := 0; first < len(k.have); {
		var pieces []int
		for ; first < len(k.have) && len(pieces) < chunkSize/bundle.PieceSize; first++ {
			if !k.have[first] {
				pieces = append(pieces, first)
			}
		}
		if len(pieces) == 0 {
			continue
		}
		if err := k.ask(ctx, fetch, pieces); err != nil {
			return err
		}
		got()
	}
	return nil
}

// ask fetches some pieces, whose numbers rise.
func (k *kernel) ask(ctx context.Context, fetch Fetch, pieces []int) error {
	var ranges []Range
	var size int64
	for _, i := range pieces {
		at, length := k.start+int64(i)*bundle.PieceSize, int64(len(k.piece(i)))
		size += length
		if last := len(ranges) - 1; last >= 0 && ranges[last].Offset+ranges[last].Length == at {
			ranges[last].Length += length
			continue
		}
		ranges = append(ranges, Range{at, length})
	}
	sent := make([]byte, size)
	if err := fetch.into(ctx, ranges, sent); err != nil {
		return err
	}
	for _, i := range pieces {
		n := copy(k.piece(i), sent)
		sent = sent[n:]
		if want := k.part.PieceAt(int64(i) * bundle.PieceSize); want != "" && bundle.Piece(k.piece(i)) != want {
			return damaged("its kernel image is not the one that was signed, from byte %d on", int64(i)*bundle.PieceSize)
		}
		k.have[i] = true
	}
	return nil
}
