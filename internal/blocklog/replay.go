package blocklog

import (
	"fmt"
	"io"

	"github.com/containerd/errdefs"
)

// chunk is how much is copied at a time, in bytes.
const chunk = 1 << 20

// A Target is a disk that entries are replayed onto. A discarded range reads as
// zeros, as on the disk that was recorded.
type Target interface {
	io.WriterAt
	Discard(at, length int64) error
}

// A Replayer takes one disk through the recording, forward only, so that many
// cuts cost little more than one.
type Replayer struct {
	log *Log
	to  Target
	at  int
	buf []byte
}

// NewReplayer begins with a disk as it was before the first entry.
func NewReplayer(l *Log, to Target) *Replayer {
	return &Replayer{log: l, to: to, buf: make([]byte, chunk)}
}

// At is how many entries the disk holds.
func (r *Replayer) At() int { return r.at }

// Forward replays up to n entries.
func (r *Replayer) Forward(n int) error {
	if n < r.at || n > len(r.log.Entries) {
		return fmt.Errorf("replay %d of %d log entries onto a disk that holds %d: %w", n, len(r.log.Entries), r.at, errdefs.ErrOutOfRange)
	}
	for ; r.at < n; r.at++ {
		if err := r.put(r.to, piece{entry: r.at, len: r.log.Entries[r.at].Len}); err != nil {
			return err
		}
	}
	return nil
}

// Rest writes what a cut keeps behind its base onto another disk, whose content
// is that of the base: a snapshot of this one, or this one itself, which then
// is of no use for later cuts.
func (r *Replayer) Rest(to Target, c Cut) error {
	base, err := r.log.Base(c)
	if err != nil {
		return err
	}
	if base != r.at {
		return fmt.Errorf("cut %v is based on %d log entries, the disk holds %d: %w", c, base, r.at, errdefs.ErrFailedPrecondition)
	}
	pieces, err := r.log.rest(base, c)
	if err != nil {
		return err
	}
	for _, p := range pieces {
		if err := r.put(to, p); err != nil {
			return err
		}
	}
	return nil
}

// Replay makes a disk, as it was before the first entry, what the cut left.
func Replay(l *Log, to Target, c Cut) error {
	base, err := l.Base(c)
	if err != nil {
		return err
	}
	r := NewReplayer(l, to)
	if err := r.Forward(base); err != nil {
		return err
	}
	return r.Rest(to, c)
}

func (r *Replayer) put(to Target, p piece) (err error) {
	e := r.log.Entries[p.entry]
	switch {
	case p.len == 0 || e.Flags&Mark != 0:
		return nil
	case e.Flags&Discard != 0:
		err = to.Discard(e.At+p.from, p.len)
	default:
		err = r.write(to, e, p)
	}
	if err != nil {
		return fmt.Errorf("replay log entry %d (%d bytes at %d): %w", p.entry, p.len, e.At+p.from, err)
	}
	return nil
}

func (r *Replayer) write(to Target, e Entry, p piece) error {
	for done := int64(0); done < p.len; {
		b := r.buf[:min(chunk, p.len-done)]
		if err := r.log.Data(e, p.from+done, b); err != nil {
			return err
		}
		if _, err := to.WriteAt(b, e.At+p.from+done); err != nil {
			return err
		}
		done += int64(len(b))
	}
	return nil
}
