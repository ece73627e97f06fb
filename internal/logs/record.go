package logs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"time"
)

// Stream tells where a record came from. The numbers are those of
// capsule.v1.Stream.
type Stream uint8

// Event records are written by the capsule: starts, ends, losses.
const (
	Stdout Stream = 1
	Stderr Stream = 2
	Event  Stream = 3
)

// Record is one line, or a piece of one, as it was printed.
type Record struct {
	Time    time.Time
	Stream  Stream
	Partial bool   // the line goes on in the next record of the stream
	Data    []byte // with its newline, if there was one
}

// On disk a record is a header and its data, all numbers little endian:
//
//	0  2 magic
//	2  1 stream
//	3  1 flags
//	4  4 length of the data
//	8  8 time, nanoseconds since 1970
//	16 4 CRC-32C of the 16 bytes before and of the data
//	20   data
const (
	headerBytes = 20
	// DataMax is the largest data of one record, in bytes. Longer lines are
	// split into partial records.
	DataMax = 32 << 10

	magic0, magic1 = 0xca, 0x95
	flagPartial    = 1
)

var (
	errShort = errors.New("record goes on beyond the end")
	errBad   = errors.New("no record")

	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// appendRecord appends the record to b. Data is at most DataMax long.
func appendRecord(b []byte, nanos int64, stream Stream, partial bool, data []byte) []byte {
	var h [headerBytes]byte
	h[0], h[1], h[2] = magic0, magic1, byte(stream)
	if partial {
		h[3] = flagPartial
	}
	binary.LittleEndian.PutUint32(h[4:], uint32(len(data)))
	binary.LittleEndian.PutUint64(h[8:], uint64(nanos))
	sum := crc32.Update(crc32.Update(0, castagnoli, h[:16]), castagnoli, data)
	binary.LittleEndian.PutUint32(h[16:], sum)
	return append(append(b, h[:]...), data...)
}

// parse reads the record at the start of b and tells its length. The data
// points into b. errShort: more bytes are needed to tell.
func parse(b []byte) (r Record, n int, err error) {
	if len(b) < headerBytes {
		return r, 0, errShort
	}
	length := binary.LittleEndian.Uint32(b[4:])
	if b[0] != magic0 || b[1] != magic1 || b[3]&^flagPartial != 0 || length > DataMax {
		return r, 0, errBad
	}
	n = headerBytes + int(length)
	if len(b) < n {
		return r, 0, errShort
	}
	sum := crc32.Update(crc32.Update(0, castagnoli, b[:16]), castagnoli, b[headerBytes:n])
	if sum != binary.LittleEndian.Uint32(b[16:]) {
		return r, 0, errBad
	}
	r = Record{
		Time:    time.Unix(0, int64(binary.LittleEndian.Uint64(b[8:]))),
		Stream:  Stream(b[2]),
		Partial: b[3]&flagPartial != 0,
		Data:    b[headerBytes:n],
	}
	return r, n, nil
}

// scanner reads the records of one file, skipping over what is damaged.
type scanner struct {
	file io.ReaderAt
	off  int64  // of the next record
	buf  []byte // bytes from off on
	mem  []byte
}

func newScanner(file io.ReaderAt, off int64) *scanner {
	return &scanner{file: file, off: off, mem: make([]byte, 2*(headerBytes+DataMax))}
}

// next returns the next whole record, valid until the next call. io.EOF says
// that the file holds none at present; it may grow. With last set, the file
// will not grow: a torn record is skipped and what follows is found.
func (s *scanner) next(last bool) (Record, error) {
	for {
		r, n, err := parse(s.buf)
		switch {
		case err == nil:
			s.skip(n)
			return r, nil
		case errors.Is(err, errBad):
			s.resync()
		case errors.Is(err, errShort):
			more, err := s.fill()
			if err != nil {
				return Record{}, err
			}
			if more {
				continue
			}
			if !last || len(s.buf) == 0 {
				return Record{}, io.EOF
			}
			s.resync()
		}
	}
}

func (s *scanner) skip(n int) {
	s.off += int64(n)
	s.buf = s.buf[n:]
}

// resync moves to the next byte that may begin a record.
func (s *scanner) resync() {
	n := bytes.IndexByte(s.buf[1:], magic0)
	if n < 0 {
		n = len(s.buf) - 1
	}
	s.skip(n + 1)
}

// fill reads more bytes after those in buf.
func (s *scanner) fill() (more bool, err error) {
	have := copy(s.mem, s.buf)
	n, err := s.file.ReadAt(s.mem[have:], s.off+int64(have))
	s.buf = s.mem[:have+n]
	if err == io.EOF {
		err = nil
	}
	return n > 0, err
}
