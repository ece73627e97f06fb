package volume

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/filecopy"
)

// An archive is a tar (PAX) of the folder data, compressed as one zstd frame with
// its checksum, which any tar with zstd reads. Two records of a global header in
// front say what it's an archive of; a tar without them is taken too, when the
// size of the volume is given.
const (
	archiveFormat = "1"
	keyFormat     = "CAPSULE.volume.format"
	keySize       = "CAPSULE.volume.size" // bytes
)

const (
	// windowMax bounds what an archive makes us keep in memory.
	windowMax = 32 << 20

	// Files with holes may be larger than their volume, but not without limit:
	// a few bytes of an archive would keep the machine busy for ever.
	hollowTimes = 64
	hollowMin   = 64 << 30

	// paddingMax is how much of nothing other tars write after the end.
	paddingMax = 1 << 20
)

// hollowMax is the most that files of a volume's archive may have together,
// holes counted, in bytes.
func hollowMax(size int64) int64 { return max(hollowTimes*size, hollowMin) }

// writeArchive writes the folder dir of a volume of that size.
func writeArchive(dir string, size int64, w io.Writer) (*v1.ArchiveEnd, error) {
	root, err := filecopy.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	sum := &summed{w: w, hash: sha256.New()}
	z, err := zstd.NewWriter(sum, zstd.WithEncoderConcurrency(2), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, err
	}
	tally, err := writeTar(root, size, z)
	if err != nil {
		z.Reset(nil) // or it would write an end
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return &v1.ArchiveEnd{Sha256: sum.hash.Sum(nil), Bytes: sum.n, Files: tally.Files}, nil
}

func writeTar(root *filecopy.Root, size int64, w io.Writer) (filecopy.Tally, error) {
	t := tar.NewWriter(w)
	err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "capsule-volume", PAXRecords: map[string]string{
		keyFormat: archiveFormat, keySize: strconv.FormatInt(size, 10),
	}})
	if err != nil {
		return filecopy.Tally{}, err
	}
	tally, err := filecopy.PackAll(root, t, hollowMax(size))
	if err != nil {
		return tally, err
	}
	return tally, t.Close()
}

// summed counts and sums up what goes through it.
type summed struct {
	w    io.Writer
	r    io.Reader
	hash hash.Hash
	n    int64
}

func (s *summed) Write(b []byte) (int, error) {
	n, err := s.w.Write(b)
	s.take(b[:n])
	return n, err
}

func (s *summed) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	s.take(b[:n])
	return n, err
}

func (s *summed) take(b []byte) {
	s.hash.Write(b) // never fails
	s.n += int64(len(b))
}

// archive is one that is being read.
type archive struct {
	size  int64 // bytes of the volume that it's of; 0 when it doesn't say
	sum   summed
	in    *source
	plain *decoded
	zstd  *zstd.Decoder
	tar   *tar.Reader
	first *tar.Header // read already, if any
}

// openArchive reads what an archive is of.
func openArchive(r io.Reader) (*archive, error) {
	a := &archive{in: &source{r: r}}
	a.sum = summed{r: a.in, hash: sha256.New()}
	z, err := zstd.NewReader(&a.sum, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(windowMax))
	if err != nil {
		return nil, err
	}
	a.zstd, a.plain = z, &decoded{r: z, in: a.in}
	a.tar = tar.NewReader(a.plain)
	if err := a.open(); err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

func (a *archive) close() { a.zstd.Close() }

func (a *archive) open() error {
	h, err := a.tar.Next()
	if errors.Is(err, io.EOF) {
		return damaged(errors.New("it is empty"))
	}
	if err != nil {
		return a.fault(err)
	}
	if h.Typeflag != tar.TypeXGlobalHeader || h.PAXRecords[keyFormat] == "" {
		a.first = h
		return nil
	}
	if format := h.PAXRecords[keyFormat]; format != archiveFormat {
		return fmt.Errorf("the archive has format %q, of which this capsule knows none but %q: update the capsule first: %w",
			clip(format), archiveFormat, errdefs.ErrInvalidArgument)
	}
	a.size, err = strconv.ParseInt(h.PAXRecords[keySize], 10, 64)
	if err != nil || a.size <= 0 {
		return damaged(fmt.Errorf("it names the size %q", clip(h.PAXRecords[keySize])))
	}
	return nil
}

// clip makes what a stranger wrote fit into a sentence.
func clip(s string) string {
	const most = 40
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// extract makes in the empty folder dir, of a volume of that size, what the
// archive holds, and reads it to its end: nothing of it counts before.
func (a *archive) extract(dir string, size int64) (files uint64, err error) {
	root, err := filecopy.OpenRoot(dir)
	if err != nil {
		return 0, err
	}
	defer root.Close()
	tally, err := filecopy.Extract(root, a.first, a.tar, hollowMax(size))
	if err != nil {
		return 0, a.fault(err)
	}
	return tally.Files, a.finish()
}

// finish makes sure that the archive is whole: its end is there, nothing but
// padding follows, and the checksum over all of it is right.
func (a *archive) finish() error {
	if a.plain.ended {
		return damaged(errors.New("its end is missing"))
	}
	rest, err := io.ReadAll(io.LimitReader(a.plain, paddingMax+1))
	if err != nil {
		return a.fault(err)
	}
	if len(rest) > paddingMax || len(bytes.TrimRight(rest, "\x00")) > 0 {
		return damaged(errors.New("something follows its end"))
	}
	return nil
}

// matches compares what was read with what the sender says that it sent.
func (a *archive) matches(end *v1.ArchiveEnd) error {
	if end.GetBytes() != a.sum.n {
		return fmt.Errorf("the archive arrived with %d bytes of %d: send it again: %w", a.sum.n, end.GetBytes(), errdefs.ErrDataLoss)
	}
	if !bytes.Equal(end.GetSha256(), a.sum.hash.Sum(nil)) {
		return fmt.Errorf("the archive arrived with another checksum than it was sent with: send it again: %w", errdefs.ErrDataLoss)
	}
	return nil
}

// fault tells what came in broken from a connection that broke.
func (a *archive) fault(err error) error {
	if a.in.err != nil {
		return fmt.Errorf("the archive did not arrive whole: %w", a.in.err)
	}
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		return fmt.Errorf("the archive needs more than %s of memory to be decompressed: compress it anew without --long and --ultra: %w",
			amount(windowMax), errdefs.ErrInvalidArgument)
	}
	if errors.Is(err, errDecode) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrHeader) {
		return damaged(err)
	}
	return err
}

func damaged(err error) error {
	return fmt.Errorf("the archive is damaged or cut short: %w: %w", err, errdefs.ErrInvalidArgument)
}

// source remembers why reading from the sender failed.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// errDecode marks errors of what is no zstd.
var errDecode = errors.New("decompress")

// decoded is the tar inside; it remembers that its end was met.
type decoded struct {
	r     io.Reader
	in    *source
	ended bool

	often   int64 // bytes between two calls of look; 0 is none
	read    int64 // bytes since the last one
	look    func() error
	stopped error // what look said
}

// every has look called each time after so many bytes; its error ends reading.
func (d *decoded) every(often int64, look func() error) { d.often, d.look = often, look }

func (d *decoded) Read(b []byte) (int, error) {
	if d.often > 0 && d.read >= d.often && d.stopped == nil {
		d.read, d.stopped = 0, d.look()
	}
	if d.stopped != nil {
		return 0, d.stopped
	}
	n, err := d.r.Read(b)
	d.read += int64(n)
	switch {
	case n > 0:
		return n, nil // the error comes again
	case errors.Is(err, io.EOF):
		d.ended = true
		return 0, io.EOF
	case err != nil && d.in.err == nil:
		return 0, fmt.Errorf("%w: %w", errDecode, err)
	}
	return 0, err
}
