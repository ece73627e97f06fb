package update

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
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
	part  bundle.Part
	next  Range // that is not asked for yet
	buf   []byte
	sum   hash.Hash
	tell  func(read int64)
}

func newKernelReader(ctx context.Context, fetch Fetch, h *bundle.Header, tell func(read int64)) *kernelReader {
	part := h.Manifest.UKI
	return &kernelReader{ctx: ctx, fetch: fetch, part: part, next: Range{h.UKIAt, part.Size}, sum: sha256.New(), tell: tell}
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
	if err := k.fetch.into(k.ctx, []Range{{k.next.Offset, int64(len(buf))}}, buf); err != nil {
		return err
	}
	k.sum.Write(buf)
	k.next.Offset += int64(len(buf))
	k.next.Length -= int64(len(buf))
	k.tell(k.part.Size - k.next.Length)
	if k.next.Length == 0 && hex.EncodeToString(k.sum.Sum(nil)) != k.part.SHA256 {
		return fmt.Errorf("kernel image is not the one that was signed: the bundle is damaged: %w", errdefs.ErrDataLoss)
	}
	k.buf = buf
	return nil
}
