package update

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
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
// root, and all that is lost when the connection breaks.
const chunkSize = 4 << 20
