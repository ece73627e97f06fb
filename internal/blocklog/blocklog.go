// Package blocklog reads what QEMU's blklogwrites recorded of a disk (the
// format of the kernel's dm-log-writes, version 1) and replays it up to any
// moment: the disk as a power cut there would have left it.
//
//	sector 0   magic, version, number of entries: u64; bytes of a sector: u32
//	sector 1…  entry: sector, sectors, flags, length: u64, padded to a sector;
//	           then its data, none for a flush or a discard
//
// All numbers are little endian, and sectors are of the log's own size. QEMU
// logs a request when the disk has done it and before the guest hears of that.
// It writes the number of entries only with a flush, so reading goes on behind
// them until something isn't an entry.
package blocklog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"

	"github.com/containerd/errdefs"
)

const (
	magic     = 0x6a736677736872
	version   = 1
	headLen   = 28
	entryLen  = 32
	sectorMin = 512
	sectorMax = 64 << 10

	// sectorsMax of one entry: more than any request, even a discard, has.
	sectorsMax = 1 << 40
	// entriesMax bounds what a log can make us keep: two weeks of a busy disk.
	entriesMax = 64 << 20
)

// Flags of an entry (drivers/md/dm-log-writes.c).
type Flags uint64

// The flags that there are.
const (
	Flush    Flags = 1 << iota // all that was logged before is on the disk
	FUA                        // this write itself is
	Discard                    // the content is of no use any more
	Mark                       // a note; QEMU makes none
	Metadata                   // of a file system; QEMU makes none
	allFlags = Flush | FUA | Discard | Mark | Metadata
)

// An Entry is one request.
type Entry struct {
	At, Len int64 // bytes on the disk
	Flags   Flags
	begin   int64 // of the entry in the log
	data    int64 // of its data in the log
	end     int64
}

// HasData tells whether the entry is a write.
func (e Entry) HasData() bool { return e.Len > 0 && e.Flags&(Discard|Mark) == 0 }

// A Log is a whole recording.
type Log struct {
	Entries []Entry
	// Counted is the number that the head of the log says, at the last flush.
	Counted int

	r      io.ReaderAt
	sector int64
}

// Read reads the head of all entries of a log of so many bytes.
func Read(r io.ReaderAt, size int64) (*Log, error) {
	head := make([]byte, headLen)
	if _, err := r.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("read log of writes: %w", err)
	}
	le := binary.LittleEndian
	if le.Uint64(head) != magic || le.Uint64(head[8:]) != version {
		return nil, fmt.Errorf("read log of writes: magic %#x, version %d: %w", le.Uint64(head), le.Uint64(head[8:]), errdefs.ErrDataLoss)
	}
	l := &Log{r: r, sector: int64(le.Uint32(head[24:]))}
	if l.sector < sectorMin || l.sector > sectorMax || l.sector&(l.sector-1) != 0 {
		return nil, fmt.Errorf("read log of writes: sectors of %d bytes: %w", l.sector, errdefs.ErrDataLoss)
	}
	for at := l.sector; len(l.Entries) < entriesMax; {
		e, ok, err := l.entry(at, size)
		if err != nil {
			return nil, fmt.Errorf("read log of writes at byte %d: %w", at, err)
		}
		if !ok {
			break
		}
		l.Entries = append(l.Entries, e)
		at = e.end
	}
	counted := le.Uint64(head[16:])
	if counted > uint64(len(l.Entries)) {
		return nil, fmt.Errorf("read log of writes: %d entries are counted, %d can be read: %w", counted, len(l.Entries), errdefs.ErrDataLoss)
	}
	l.Counted = int(counted) //nolint:gosec // at most the entries
	return l, nil
}

// entry reads the head of one; not ok is the log's end.
func (l *Log) entry(at, size int64) (e Entry, ok bool, err error) {
	if at > size-l.sector {
		return e, false, nil
	}
	b := make([]byte, l.sector)
	if _, err := l.r.ReadAt(b, at); err != nil && !errors.Is(err, io.EOF) {
		return e, false, err
	}
	le := binary.LittleEndian
	sector, sectors, flags := le.Uint64(b), le.Uint64(b[8:]), Flags(le.Uint64(b[16:]))
	padding := b[entryLen:]
	if flags&^allFlags != 0 || sector > sectorsMax || sectors > sectorsMax || sectors == 0 && flags&(Flush|Mark) == 0 ||
		flags&Mark == 0 && slices.ContainsFunc(padding, func(c byte) bool { return c != 0 }) {
		return e, false, nil
	}
	e = Entry{At: int64(sector) * l.sector, Len: int64(sectors) * l.sector, Flags: flags, begin: at, data: at + l.sector, end: at + l.sector}
	if e.HasData() {
		if e.Len > size-e.data {
			return e, false, nil
		}
		e.end += e.Len
	}
	return e, true, nil
}

// Data reads what a write wrote, len(b) bytes from its byte at.
func (l *Log) Data(e Entry, at int64, b []byte) error {
	if !e.HasData() || at < 0 || at > e.Len-int64(len(b)) {
		return fmt.Errorf("data of a log entry, %d bytes at %d: %w", len(b), at, errdefs.ErrInvalidArgument)
	}
	_, err := l.r.ReadAt(b, e.data+at)
	if errors.Is(err, io.EOF) {
		err = nil // the last entry of the file
	}
	return err
}

// Begun is how many entries had been begun when the log's file had so many
// bytes. What the guest was told to be done by then is among them.
func (l *Log) Begun(size int64) int {
	return sort.Search(len(l.Entries), func(i int) bool { return l.Entries[i].begin >= size })
}

// Flushes gives all n for which the n-th entry is a flush.
func (l *Log) Flushes() []int {
	var all []int
	for i, e := range l.Entries {
		if e.Flags&Flush != 0 {
			all = append(all, i+1)
		}
	}
	return all
}

// Flushed is the largest count up to n that ends with a flush, or zero.
func (l *Log) Flushed(n int) int {
	for n > 0 && l.Entries[n-1].Flags&Flush == 0 {
		n--
	}
	return n
}
