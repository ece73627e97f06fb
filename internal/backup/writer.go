package backup

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
)

// A Writer writes one backup, in the order of its records.
type Writer struct {
	w   io.Writer
	sum hash.Hash
	enc *zstd.Encoder
	buf []byte
}

// NewWriter writes the header.
func NewWriter(w io.Writer, h *v1.BackupHeader) (*Writer, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, err
	}
	b := &Writer{w: w, sum: sha256.New(), enc: enc}
	if err := b.write([]byte(magic)); err != nil {
		return nil, err
	}
	return b, b.Put(&v1.BackupRecord{Record: &v1.BackupRecord_Header{Header: h}})
}

// File writes a file of that size.
func (b *Writer) File(path string, size int64, content io.Reader) error {
	if size < 0 || size > FileMax {
		return fmt.Errorf("file %q has %d bytes, and a backup takes %d: %w", path, size, FileMax, errTooLarge)
	}
	if err := b.Put(&v1.BackupRecord{Record: &v1.BackupRecord_File{File: &v1.BackupFile{Path: path, Size: uint64(size)}}}); err != nil {
		return err
	}
	chunk := make([]byte, ChunkBytes)
	for left := size; left > 0; {
		part := chunk[:min(left, ChunkBytes)]
		if _, err := io.ReadFull(content, part); err != nil {
			return fmt.Errorf("read file %q: %w", path, err)
		}
		if err := b.Put(&v1.BackupRecord{Record: &v1.BackupRecord_Data{Data: b.enc.EncodeAll(part, nil)}}); err != nil {
			return err
		}
		left -= int64(len(part))
	}
	return nil
}

// Volume begins a volume of the header.
func (b *Writer) Volume(v *v1.BackupVolume) error {
	return b.Put(&v1.BackupRecord{Record: &v1.BackupRecord_Volume{Volume: v}})
}

// Chunk writes a chunk of the volume; nil data is that of an earlier backup.
func (b *Writer) Chunk(index uint64, hash, data []byte) error {
	c := &v1.BackupChunk{Index: index, Hash: hash}
	if data != nil {
		c.Data = b.enc.EncodeAll(data, nil)
	}
	return b.Put(&v1.BackupRecord{Record: &v1.BackupRecord_Chunk{Chunk: c}})
}

// End writes the last record and gives the sum in it. The caller flushes what it gave.
func (b *Writer) End() ([]byte, error) {
	sum := b.sum.Sum(nil)
	return sum, b.Put(&v1.BackupRecord{Record: &v1.BackupRecord_End{End: &v1.BackupEnd{Sha256: sum}}})
}

var errTooLarge = errors.New("too large")

// Put writes a record as it is.
func (b *Writer) Put(r *v1.BackupRecord) error {
	body, err := proto.Marshal(r)
	if err != nil {
		return err
	}
	if len(body) > recordMax {
		return fmt.Errorf("a record of %d bytes: %w", len(body), errTooLarge)
	}
	b.buf = append(binary.AppendUvarint(b.buf[:0], uint64(len(body))), body...)
	return b.write(b.buf)
}

func (b *Writer) write(p []byte) error {
	b.sum.Write(p)
	_, err := b.w.Write(p)
	return err
}
