package logs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// batchBytes of encoded records are gathered before a write.
const batchBytes = 64 << 10

// Writer appends records to a log folder. Several writers, in any processes,
// may share a folder. A Writer is for one goroutine.
//
// Trouble with the disk is never an error: records are dropped, and a mark in
// the log tells how many bytes are missing as soon as there is room again.
type Writer struct {
	dir    string
	limits Limits
	source string // file that limits are read from; "" for none
	lock   int    // folder, opened for its lock
	file   int    // -1 when none is open
	seq    uint64
	buf    []byte
	held   int64 // bytes of data in buf
	lost   int64 // bytes of data dropped since the last write that went well
}

// NewWriter opens the folder for appending, making it when there is none. A
// record that a power cut left incomplete is cut off.
func NewWriter(dir string, limits Limits) (*Writer, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	lock, err := syscall.Open(dir, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open log %q: %w", dir, err)
	}
	w := &Writer{dir: dir, limits: limits, lock: lock, file: -1}
	w.locked(func() { _ = w.open() })
	return w, nil
}

// Write queues data of the stream as records, one for each line. Call Flush
// when no more is at hand.
func (w *Writer) Write(stream Stream, data []byte) {
	nanos := time.Now().UnixNano()
	for len(data) > 0 {
		piece, partial := firstLine(data)
		w.buf = appendRecord(w.buf, nanos, stream, partial, piece)
		w.held += int64(len(piece))
		data = data[len(piece):]
		if len(w.buf) >= batchBytes {
			w.Flush()
		}
	}
}

// firstLine of data, at most DataMax long.
func firstLine(data []byte) (piece []byte, partial bool) {
	if len(data) > DataMax {
		data = data[:DataMax]
	}
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return data[:i+1], false
	}
	return data, true
}

// Flush writes what is queued.
func (w *Writer) Flush() {
	if len(w.buf) == 0 {
		return
	}
	w.locked(func() {
		if err := w.append(); err != nil {
			w.lost += w.held
		}
	})
	w.buf, w.held = w.buf[:0], 0
}

// Close flushes, and puts the records on the disk.
func (w *Writer) Close() {
	w.Flush()
	if w.file >= 0 {
		_ = syscall.Fdatasync(w.file)
		_ = syscall.Close(w.file)
		w.file = -1
	}
	_ = syscall.Close(w.lock)
}

// Mark appends an event record, such as the start of an instance.
func Mark(dir, text string) error {
	w, err := NewWriter(dir, DefaultLimits)
	if err != nil {
		return err
	}
	w.Follow(LimitsFile)
	w.Write(Event, []byte(text+"\n"))
	w.Close()
	return nil
}

func (w *Writer) locked(fn func()) {
	for syscall.Flock(w.lock, syscall.LOCK_EX) == syscall.EINTR {
	}
	fn()
	_ = syscall.Flock(w.lock, syscall.LOCK_UN)
}

// append writes buf to the newest file. The lock is held.
func (w *Writer) append() error {
	size, err := w.newest()
	if err != nil {
		return err
	}
	if size > 0 && size+int64(len(w.buf)) > w.limits.FileBytes {
		if err := w.rotate(); err != nil {
			return err
		}
		size = 0
	}
	if w.lost > 0 {
		if err := w.write(w.lossMark(), size); err != nil {
			return err
		}
		w.lost = 0
		return w.append()
	}
	err = w.write(w.buf, size)
	if errors.Is(err, syscall.ENOSPC) && w.dropOldest() {
		err = w.write(w.buf, size)
	}
	return err
}

func (w *Writer) lossMark() []byte {
	text := fmt.Sprintf("%d bytes were lost: the disk did not take them\n", w.lost)
	return appendRecord(nil, time.Now().UnixNano(), Event, false, []byte(text))
}

// write appends b to the open file of the given size: all of it or nothing.
func (w *Writer) write(b []byte, size int64) error {
	for done := 0; done < len(b); {
		n, err := syscall.Write(w.file, b[done:])
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			_ = syscall.Ftruncate(w.file, size)
			return err
		}
		done += n
	}
	return nil
}

// newest makes sure that the open file is the newest one and tells its size:
// another writer may have begun the next, or the folder may have been emptied.
func (w *Writer) newest() (size int64, err error) {
	var st syscall.Stat_t
	if w.file < 0 {
		if err := w.open(); err != nil {
			return 0, err
		}
	} else if err := syscall.Stat(w.path(w.seq+1), &st); err == nil {
		if err := w.open(); err != nil {
			return 0, err
		}
	}
	if err := syscall.Fstat(w.file, &st); err != nil {
		return 0, err
	}
	return st.Size, nil
}

// open opens the newest file, or the first, and cuts off a torn end.
func (w *Writer) open() error {
	seqs, err := list(w.dir)
	if err != nil {
		return err
	}
	if len(seqs) == 0 {
		return w.openSeq(1)
	}
	newest := seqs[len(seqs)-1]
	if err := w.openSeq(newest); err != nil {
		return err
	}
	return cutTorn(w.path(newest))
}

func (w *Writer) openSeq(seq uint64) error {
	fd, err := syscall.Open(w.path(seq), syscall.O_WRONLY|syscall.O_CREAT|syscall.O_APPEND|syscall.O_CLOEXEC, 0o640)
	if err != nil {
		return err
	}
	if w.file >= 0 {
		_ = syscall.Close(w.file)
	}
	w.file, w.seq = fd, seq
	return nil
}

// rotate begins the next file and removes what is over the limit.
func (w *Writer) rotate() error {
	if err := w.openSeq(w.seq + 1); err != nil {
		return err
	}
	if w.source != "" {
		w.limits = ReadLimits(w.source)
	}
	seqs, err := list(w.dir)
	if err != nil {
		return nil //nolint:nilerr // the new file is open; the next rotation removes
	}
	for len(seqs) > max(w.limits.Files, 1) {
		_ = syscall.Unlink(w.path(seqs[0]))
		seqs = seqs[1:]
	}
	return nil
}

// dropOldest makes room by removing the oldest file, unless it is the open one.
func (w *Writer) dropOldest() bool {
	seqs, err := list(w.dir)
	if err != nil || len(seqs) == 0 || seqs[0] == w.seq {
		return false
	}
	return syscall.Unlink(w.path(seqs[0])) == nil
}

func (w *Writer) path(seq uint64) string { return filepath.Join(w.dir, fileName(seq)) }

// cutTorn removes bytes after the last whole record of the file.
func cutTorn(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	end := int64(0)
	s := newScanner(f, 0)
	for {
		if _, err := s.next(true); err != nil {
			break
		}
		end = s.off
	}
	st, err := f.Stat()
	if err != nil || st.Size() == end {
		return err
	}
	return f.Truncate(end)
}
