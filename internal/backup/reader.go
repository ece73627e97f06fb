package backup

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
)

// A Reader gives the records of one backup and checks their order and their bounds.
// It reads all of them in little memory.
type Reader struct {
	in     *bufio.Reader
	sum    hash.Hash
	header *v1.BackupHeader

	files  int
	left   uint64           // bytes of the file that are to come
	volume int              // of the header that comes next
	within *v1.BackupVolume // nil before the first
	next   uint64           // the least index that a chunk may have
	ended  bool
}

// NewReader reads the header.
func NewReader(r io.Reader) (*Reader, error) {
	b := &Reader{in: bufio.NewReaderSize(r, 64<<10), sum: sha256.New()}
	line := make([]byte, len(magic))
	if n, err := io.ReadFull(b.in, line); !bytes.Equal(line[:n], []byte(magic)[:n]) || n == 0 && ended(err) {
		return nil, ErrForeign
	} else if err != nil {
		return nil, cut(err)
	}
	b.sum.Write(line)
	rec, err := b.record()
	if err != nil {
		return nil, err
	}
	h := rec.GetHeader()
	if h.GetFormat() > Format {
		return nil, fmt.Errorf("capsule %s, format %d: %w", quoted(h.GetVersion()), h.GetFormat(), ErrNewer)
	}
	if why := headerFault(h); why != "" {
		return nil, damaged("header: %s", why)
	}
	b.header = h
	return b, nil
}

// Header of the backup.
func (b *Reader) Header() *v1.BackupHeader { return b.header }

// headerFault says what no capsule writes.
func headerFault(h *v1.BackupHeader) string {
	switch {
	case h.GetFormat() == 0:
		return "it has no format"
	case !IsID(h.GetId()):
		return "it has no id"
	case len(h.GetBase()) > 0 && (!IsID(h.GetBase()) || bytes.Equal(h.GetBase(), h.GetId())):
		return "it stands on no backup"
	case len(h.GetVolumes()) > VolumesMax || len(h.GetWithoutData()) > VolumesMax:
		return "it has too many volumes"
	case max(len(h.GetName()), len(h.GetVersion()), len(h.GetFingerprint()), len(h.GetMachineId())) > nameMax:
		return "a name is too long"
	}
	last := ""
	for _, v := range h.GetVolumes() {
		if v.GetName() <= last || len(v.GetName()) > nameMax {
			return "its volumes are not in order"
		}
		if v.GetSize() == 0 || v.GetSize() > VolumeMax || v.GetUsed() > VolumeMax {
			return "a volume has no size that one can have"
		}
		last = v.GetName()
	}
	return ""
}

// Next gives the record after the last; io.EOF comes after the end, once that was found
// to be right.
func (b *Reader) Next() (*v1.BackupRecord, error) {
	if b.ended {
		return nil, io.EOF
	}
	sum := b.sum.Sum(nil)
	rec, err := b.record()
	if err != nil {
		return nil, err
	}
	switch r := rec.GetRecord().(type) {
	case *v1.BackupRecord_File:
		err = b.file(r.File)
	case *v1.BackupRecord_Data:
		err = b.data()
	case *v1.BackupRecord_Volume:
		err = b.begin(r.Volume)
	case *v1.BackupRecord_Chunk:
		err = b.chunk(r.Chunk)
	case *v1.BackupRecord_End:
		err = b.end(r.End, sum)
	default:
		err = damaged("a record of a kind that has no place here")
	}
	if err != nil {
		return nil, err
	}
	return rec, nil
}

func (b *Reader) file(f *v1.BackupFile) error {
	b.files++
	switch {
	case b.left > 0:
		return damaged("a file is shorter than it says")
	case b.within != nil:
		return damaged("a file after a volume")
	case b.files > FilesMax:
		return damaged("more than %d files", FilesMax)
	case f.GetSize() > FileMax:
		return damaged("file %s has %d bytes, more than %d", quoted(f.GetPath()), f.GetSize(), FileMax)
	case len(f.GetPath()) > nameMax || !isLocal(f.GetPath()):
		return damaged("%s is no path of a file", quoted(f.GetPath()))
	}
	b.left = f.GetSize()
	return nil
}

// isLocal is filepath.IsLocal for paths as they are in a backup, on every system.
func isLocal(p string) bool {
	return p != "" && p == path.Clean(p) && p != "." && p != ".." && p[0] != '/' && !bytes.HasPrefix([]byte(p), []byte("../")) &&
		!bytes.ContainsAny([]byte(p), "\\:\x00")
}

// data counts what a record of data is of its file: all have ChunkBytes but the last.
func (b *Reader) data() error {
	if b.left == 0 {
		return damaged("data of no file")
	}
	b.left -= min(b.left, ChunkBytes)
	return nil
}

func (b *Reader) begin(v *v1.BackupVolume) error {
	all := b.header.GetVolumes()
	if b.left > 0 || b.volume == len(all) || all[b.volume].GetName() != v.GetName() || v.GetSize() == 0 || v.GetSize() > VolumeMax {
		return damaged("volume %s has no place here", quoted(v.GetName()))
	}
	b.volume, b.within, b.next = b.volume+1, v, 0
	return nil
}

func (b *Reader) chunk(c *v1.BackupChunk) error {
	switch {
	case b.within == nil:
		return damaged("a chunk of no volume")
	case c.GetIndex() < b.next || c.GetIndex() >= Chunks(b.within.GetSize()):
		return damaged("chunk %d of volume %s has no place here", c.GetIndex(), quoted(b.within.GetName()))
	case len(c.GetHash()) != sha256.Size:
		return damaged("chunk %d of volume %s has no hash", c.GetIndex(), quoted(b.within.GetName()))
	}
	b.next = c.GetIndex() + 1
	return nil
}

func (b *Reader) end(e *v1.BackupEnd, sum []byte) error {
	if b.left > 0 || !bytes.Equal(e.GetSha256(), sum) {
		return damaged("its checksum is wrong")
	}
	if _, err := b.in.ReadByte(); err == nil {
		return damaged("it goes on after its end")
	} else if !errors.Is(err, io.EOF) {
		return cut(err)
	}
	b.ended = true
	return nil
}

// record reads one, of any kind.
func (b *Reader) record() (*v1.BackupRecord, error) {
	n, err := binary.ReadUvarint(b.in)
	if err != nil {
		return nil, cut(err)
	}
	if n > recordMax {
		return nil, damaged("a record of %d bytes", n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(b.in, body); err != nil {
		return nil, cut(err)
	}
	b.sum.Write(binary.AppendUvarint(nil, n))
	b.sum.Write(body)
	rec := &v1.BackupRecord{}
	if err := proto.Unmarshal(body, rec); err != nil {
		return nil, damaged("a record that can't be read")
	}
	return rec, nil
}

func ended(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// cut tells of an end that came too early from all else that keeps one from reading.
func cut(err error) error {
	if ended(err) {
		return ErrCut
	}
	return err
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), ErrDamaged)
}

// quoted is a text of a backup that nobody has checked, in an error.
func quoted(s string) string { return fmt.Sprintf("%.60q", s) }

// An Unpacker opens the data of records. It's for one goroutine.
type Unpacker struct {
	dec *zstd.Decoder
	buf []byte
}

// NewUnpacker makes one.
func NewUnpacker() (*Unpacker, error) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(ChunkBytes))
	return &Unpacker{dec: dec}, err
}

// Unpack gives the want bytes that a record has as its data. They are good until the
// next call.
func (u *Unpacker) Unpack(data []byte, want int) ([]byte, error) {
	out, err := u.dec.DecodeAll(data, u.buf[:0])
	if err != nil {
		return nil, damaged("data that can't be unpacked: %v", err)
	}
	u.buf = out
	if len(out) != want {
		return nil, damaged("data of %d bytes, not %d", len(out), want)
	}
	return out, nil
}
