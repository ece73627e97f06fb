package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"

	capsulev1 "capsule/api/capsule/v1"
)

// archiveMeter is told the bytes of an archive of a volume (tar in zstd) as they
// pass. It counts them, takes their checksum and unpacks them to nowhere: so it
// knows how much of the volume is through, and whether the archive is whole.
type archiveMeter struct {
	bytes    int64
	sum      hash.Hash
	unpacked atomic.Int64
	pipe     *io.PipeWriter
	done     chan error
}

// windowMax bounds the memory that an archive can ask for.
const windowMax = 64 << 20

func newArchiveMeter() *archiveMeter {
	r, w := io.Pipe()
	m := &archiveMeter{sum: sha256.New(), pipe: w, done: make(chan error, 1)}
	go func() {
		err := m.unpack(r)
		r.CloseWithError(err) // what follows has no reader
		m.done <- err
	}()
	return m
}

func (m *archiveMeter) unpack(r io.Reader) error {
	decoder, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(windowMax))
	if err != nil {
		return err
	}
	defer decoder.Close()
	_, err = io.Copy(counter{&m.unpacked}, decoder)
	return archiveError(err)
}

// archiveError says what the operator can do about an archive that can't be read.
func archiveError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("incomplete: its end is missing")
	case errors.Is(err, zstd.ErrMagicMismatch):
		return errors.New("no archive of a volume")
	}
	return fmt.Errorf("damaged: %w", err)
}

// Write fails once the archive is seen to be none.
func (m *archiveMeter) Write(p []byte) (int, error) {
	m.bytes += int64(len(p))
	m.sum.Write(p)
	return m.pipe.Write(p)
}

// end tells whether what came was a whole archive. It may be called once.
func (m *archiveMeter) end() error {
	m.pipe.Close()
	err := <-m.done
	if err == nil && m.bytes == 0 {
		return errors.New("empty")
	}
	return err
}

// check tells whether what came is what the capsule sent, and whole.
func (m *archiveMeter) check(sent *capsulev1.ArchiveEnd) error {
	if sum := m.sum.Sum(nil); m.bytes != sent.GetBytes() || !bytes.Equal(sum, sent.GetSha256()) {
		return &failure{exitFailed, fmt.Errorf("what came is not what the capsule sent: %d bytes with SHA-256 %x, not %d with %x",
			m.bytes, sum, sent.GetBytes(), sent.GetSha256()), "nothing of it is kept; run it again"}
	}
	if err := m.end(); err != nil {
		return fmt.Errorf("the archive that the capsule sent is %w", err)
	}
	return nil
}

// counter counts what is written to it.
type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}
