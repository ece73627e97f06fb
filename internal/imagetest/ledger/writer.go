package ledger

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Writer appends to a ledger. After an error it does nothing more: what is on the disk
// then is known only to who reads it anew.
type Writer struct {
	// Found is what the ledger held when it was opened.
	Found State

	start string
	mu    sync.Mutex
	file  *os.File
	last  Entry
	err   error
}

// Open reads a ledger from its disk, cuts off what is torn, and goes on behind it. One
// that does not exist is made.
func Open(path string) (*Writer, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	w := &Writer{file: f}
	if err := w.begin(filepath.Dir(path)); err != nil {
		return nil, errors.Join(fmt.Errorf("open ledger %q: %w", path, err), f.Close())
	}
	return w, nil
}

func (w *Writer) begin(dir string) (err error) {
	id := make([]byte, startDigits/2)
	_, _ = rand.Read(id) // never fails
	w.start = hex.EncodeToString(id)
	if w.Found, err = w.read(0); err != nil {
		return err
	}
	w.last = w.Found.Last
	if err := w.file.Truncate(w.bytes()); err != nil {
		return err
	}
	return errors.Join(w.file.Sync(), syncDir(dir))
}

// bytes of all whole records.
func (w *Writer) bytes() int64 { return int64(w.last.Number) * RecordBytes }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// read reads the file from its disk: what memory has of it may be what a failed sync
// left.
func (w *Writer) read(at uint64) (State, error) {
	if err := w.file.Sync(); err != nil {
		return State{}, err
	}
	if err := unix.Fadvise(int(w.file.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return State{}, fmt.Errorf("forget what memory has of it: %w", err)
	}
	return Read(&atStart{file: w.file}, at)
}

// atStart reads a file from its start, wherever else it is written.
type atStart struct {
	file *os.File
	at   int64
}

func (r *atStart) Read(p []byte) (int, error) {
	n, err := r.file.ReadAt(p, r.at)
	r.at += int64(n)
	return n, err
}

// Append writes the next record. It is on the disk when it is returned.
func (w *Writer) Append() (Entry, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return Entry{}, w.err
	}
	next := w.last.next(w.start)
	_, err := w.file.WriteAt(next.line(), w.bytes())
	if err == nil {
		err = w.file.Sync()
	}
	if err != nil {
		w.err = fmt.Errorf("write record %d: %w", next.Number, err)
		return Entry{}, w.err
	}
	w.last = next
	return next, nil
}

// Check reads all of it from the disk. at is the number of a record to give, or 0.
func (w *Writer) Check(at uint64) (State, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return State{}, w.err
	}
	s, err := w.read(at)
	if err == nil && s.Last != w.last {
		err = fmt.Errorf("the last record on the disk is %d, %d was written: %w", s.Last.Number, w.last.Number, ErrDamaged)
	}
	if err != nil {
		w.err = err
	}
	return s, err
}

// Close lets go of the file.
func (w *Writer) Close() error { return w.file.Close() }
