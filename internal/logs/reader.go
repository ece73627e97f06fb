package logs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
)

// Options choose what of a log is read.
type Options struct {
	Follow bool      // go on with what is written later, until the folder is removed
	Tail   int64     // only the last lines of what is there; negative is all
	Since  time.Time // only records of this time and later
}

// Follow calls fn with the records of dir in the order of writing. The data of
// a record is valid during the call only. It returns when all is read that was there
// when it was called, or with Options.Follow when dir is removed or ctx ends, both
// without error.
func Follow(ctx context.Context, dir string, o Options, fn func(Record) error) error {
	var changes *watch
	if o.Follow {
		var err error
		if changes, err = newWatch(ctx, dir); err != nil {
			return fmt.Errorf("follow log %q: %w", dir, err)
		}
		defer changes.close()
	}
	r := &reader{dir: dir, since: o.Since, fn: fn}
	defer r.close()
	if !o.Follow {
		var err error
		if r.end, err = newest(dir); err != nil {
			return class(dir, err, false)
		}
	}
	if o.Tail >= 0 {
		if err := r.seekTail(ctx, o.Tail); err != nil {
			return class(dir, err, o.Follow)
		}
	}
	for {
		err := r.drain(ctx)
		if err := class(dir, err, o.Follow); err != nil {
			return err
		}
		if !o.Follow || ctx.Err() != nil {
			return nil
		}
		if removed, err := changes.wait(ctx); err != nil {
			return fmt.Errorf("follow log %q: %w", dir, err)
		} else if removed {
			return class(dir, r.drain(ctx), true)
		}
	}
}

// class tells a missing log from other trouble; a follower waits for its log.
func class(dir string, err error, follow bool) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist) && follow:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("log %q is not there: %w", dir, errdefs.ErrNotFound)
	}
	return err
}

// reader walks over the files of a folder.
type reader struct {
	dir   string
	since time.Time
	fn    func(Record) error
	seq   uint64 // of the open file; 0 before the first
	file  *os.File
	scan  *scanner
	skip  int64 // lines still to pass over
	end   *mark // where it stops; nil when it follows
}

// mark is a place in a log. Who writes faster than is read would have no end.
type mark struct {
	seq  uint64
	size int64 // of that file
}

// newest is the end of a log at this moment.
func newest(dir string) (*mark, error) {
	seqs, err := list(dir)
	if err != nil || len(seqs) == 0 {
		return &mark{}, err
	}
	last := seqs[len(seqs)-1]
	info, err := os.Stat(filepath.Join(dir, fileName(last)))
	if errors.Is(err, fs.ErrNotExist) { // already over the limit
		return &mark{seq: last}, nil
	}
	if err != nil {
		return nil, err
	}
	return &mark{last, info.Size()}, nil
}

func (r *reader) close() {
	if r.file != nil {
		r.file.Close()
		r.file = nil
	}
}

// drain passes on all records there are. A file that has a successor will not
// grow any more.
func (r *reader) drain(ctx context.Context) error {
	for {
		next, err := r.successor()
		if errors.Is(err, fs.ErrNotExist) && r.file != nil { // removed: what is open still tells its end
			if rest := r.rest(ctx, true); rest != nil {
				return rest
			}
		}
		if err != nil {
			return err
		}
		if r.file != nil {
			if err := r.rest(ctx, next != 0); err != nil {
				return err
			}
		}
		if next == 0 || ctx.Err() != nil {
			return nil //nolint:nilerr // the end that was asked for is no failure
		}
		if err := r.open(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
}

// successor is the number of the file after the open one, 0 if there is none to read.
func (r *reader) successor() (uint64, error) {
	seqs, err := list(r.dir)
	if err != nil {
		return 0, err
	}
	for _, seq := range seqs {
		if r.end != nil && seq > r.end.seq {
			return 0, nil
		}
		if seq > r.seq {
			return seq, nil
		}
	}
	return 0, nil
}

func (r *reader) open(seq uint64) error {
	r.close()
	r.seq = seq
	f, err := os.Open(filepath.Join(r.dir, fileName(seq)))
	if err != nil {
		return err
	}
	var content io.ReaderAt = f
	if r.end != nil && seq == r.end.seq {
		content = io.NewSectionReader(f, 0, r.end.size)
	}
	r.file, r.scan = f, newScanner(content, 0)
	return nil
}

// rest passes on the records that are left in the open file.
func (r *reader) rest(ctx context.Context, last bool) error {
	for ctx.Err() == nil {
		rec, err := r.scan.next(last)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		if r.skip > 0 {
			if !rec.Partial {
				r.skip--
			}
			continue
		}
		if rec.Time.Before(r.since) {
			continue
		}
		if err := r.fn(rec); err != nil {
			return err
		}
	}
	return nil
}

// seekTail opens the file that holds the first of the last lines.
func (r *reader) seekTail(ctx context.Context, lines int64) error {
	seqs, err := list(r.dir)
	if err != nil {
		return err
	}
	counts := make([]int64, len(seqs))
	open := false // the last line has no newline yet
	for i, seq := range seqs {
		if counts[i], open, err = countLines(ctx, filepath.Join(r.dir, fileName(seq)), open); err != nil {
			return err
		}
	}
	if open {
		lines--
	}
	if lines < 0 { // Tail 0: only what comes later
		lines = 0
	}
	for i := len(seqs) - 1; i >= 0; i-- {
		if lines <= counts[i] {
			r.skip = counts[i] - lines
			return r.open(seqs[i])
		}
		lines -= counts[i]
	}
	return nil
}

// countLines in a file; open says whether the line before goes on in it.
func countLines(ctx context.Context, path string, open bool) (int64, bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) { // rotated away
		return 0, open, nil
	}
	if err != nil {
		return 0, open, err
	}
	defer f.Close()
	var lines int64
	for s := newScanner(f, 0); ctx.Err() == nil; {
		rec, err := s.next(true)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, open, err
		}
		if open = rec.Partial; !open {
			lines++
		}
	}
	return lines, open, ctx.Err()
}
