package update

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"

	"github.com/containerd/errdefs"

	"capsule/internal/bundle"
)

// Range is a part of the bundle, in bytes from its begin.
type Range struct {
	Offset, Length int64
}

// Fetch asks whoever has the bundle for parts of it: got is called for pieces of
// them, in any order, until all was given. Ranges are sorted and don't touch.
type Fetch func(ctx context.Context, ranges []Range, got func(offset int64, data []byte) error) error

// into fetches ranges and puts them one behind the other into buf, which has their
// size. Its content is whatever was sent.
func (f Fetch) into(ctx context.Context, ranges []Range, buf []byte) error {
	starts := make([]int64, len(ranges)) // of each range in buf
	var want, have int64
	for i, r := range ranges {
		starts[i] = want
		want += r.Length
	}
	err := f(ctx, ranges, func(offset int64, data []byte) error {
		i, found := slices.BinarySearchFunc(ranges, offset, func(r Range, at int64) int { return cmp.Compare(r.Offset, at) })
		if !found {
			i--
		}
		if i < 0 || offset-ranges[i].Offset > ranges[i].Length-int64(len(data)) {
			return fmt.Errorf("%d bytes at %d of the bundle were sent and not asked for: %w", len(data), offset, errdefs.ErrInvalidArgument)
		}
		copy(buf[starts[i]+offset-ranges[i].Offset:], data)
		have += int64(len(data))
		return nil
	})
	if err != nil {
		return err
	}
	if have < want {
		return fmt.Errorf("%d of %d bytes that were asked for were not sent: %w", want-have, want, errdefs.ErrDataLoss)
	}
	return nil
}

// chunkSize is what is asked for at once, in bytes: all that a push holds of the
// bundle, and all that is lost when the connection breaks.
const chunkSize = 4 << 20

// kernelReader reads the kernel image out of a bundle as it goes, and never gives
// the last of it unless all was right.
type kernelReader struct {
	ctx   context.Context // of the one push that it's for
	fetch Fetch
	have  io.ReaderAt // the running system's, of which pieces are taken; or nil
	part  bundle.Part
	start int64 // of the image in the bundle
	next  Range // that is not asked for yet
	buf   []byte
	sum   hash.Hash
	tell  func(read, reused int64)
}

func newKernelReader(ctx context.Context, fetch Fetch, h *bundle.Header, have io.ReaderAt, tell func(read, reused int64)) *kernelReader {
	part := h.Manifest.UKI
	return &kernelReader{ctx: ctx, fetch: fetch, have: have, part: part, start: h.UKIAt, next: Range{h.UKIAt, part.Size}, sum: sha256.New(), tell: tell}
}

func (k *kernelReader) Read(p []byte) (int, error) {
	if len(k.buf) == 0 {
		if k.next.Length == 0 {
			return 0, io.EOF
		}
		if err := k.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, k.buf)
	k.buf = k.buf[n:]
	return n, nil
}

func (k *kernelReader) fill() error {
	buf := make([]byte, min(k.next.Length, chunkSize))
	missing := k.reuse(buf)
	sent, err := k.ask(missing, buf)
	if err != nil {
		return err
	}
	k.sum.Write(buf)
	k.next.Offset += int64(len(buf))
	k.next.Length -= int64(len(buf))
	k.tell(k.part.Size-k.next.Length, int64(len(buf))-sent)
	if k.next.Length == 0 && hex.EncodeToString(k.sum.Sum(nil)) != k.part.SHA256 {
		return fmt.Errorf("kernel image is not the one that was signed: the bundle is damaged: %w", errdefs.ErrDataLoss)
	}
	k.buf = buf
	return nil
}

// ask fetches what is missing in buf, and gives how much that was.
func (k *kernelReader) ask(missing []Range, buf []byte) (sent int64, err error) {
	var ranges []Range
	for _, r := range missing {
		ranges = append(ranges, Range{k.next.Offset + r.Offset, r.Length})
		sent += r.Length
	}
	if sent == 0 {
		return 0, nil
	}
	got := make([]byte, sent)
	if err := k.fetch.into(k.ctx, ranges, got); err != nil {
		return 0, err
	}
	for _, r := range missing {
		n := copy(buf[r.Offset:r.Offset+r.Length], got)
		got = got[n:]
	}
	return sent, nil
}

// reuse fills buf with the pieces that the running system's image has at the same
// place, and gives what is missing, from the begin of buf.
func (k *kernelReader) reuse(buf []byte) (missing []Range) {
	for at := int64(0); at < int64(len(buf)); at += bundle.PieceSize {
		piece := buf[at:min(at+bundle.PieceSize, int64(len(buf)))]
		if k.has(k.next.Offset-k.start+at, piece) {
			continue
		}
		if last := len(missing) - 1; last >= 0 && missing[last].Offset+missing[last].Length == at {
			missing[last].Length += int64(len(piece))
			continue
		}
		missing = append(missing, Range{at, int64(len(piece))})
	}
	return missing
}

// has reads the piece at an offset of the image from the running system's.
func (k *kernelReader) has(offset int64, piece []byte) bool {
	want := k.part.PieceAt(offset)
	if k.have == nil || want == "" {
		return false
	}
	n, err := k.have.ReadAt(piece, offset)
	return n == len(piece) && (err == nil || errors.Is(err, io.EOF)) && bundle.Piece(piece) == want
}
