package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/google/uuid"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"capsule/internal/run"
)

// decompress reads what r holds, told by its first bytes: media types and file
// names lie.
func decompress(r io.Reader) (io.ReadCloser, error) {
	buffered := bufio.NewReaderSize(r, 64<<10)
	magic, err := buffered.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return gzip.NewReader(buffered)
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}),
		len(magic) >= 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:4], []byte{0x2a, 0x4d, 0x18}):
		d, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(zstdWindowMax))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ")):
		return nil, fmt.Errorf("compressed with xz, which is not supported: %w", errdefs.ErrInvalidArgument)
	case bytes.HasPrefix(magic, []byte("BZh")):
		return nil, fmt.Errorf("compressed with bzip2, which is not supported: %w", errdefs.ErrInvalidArgument)
	}
	return io.NopCloser(buffered), nil
}

// layerWriter turns one layer into the file that containers and microVMs mount.
type layerWriter struct {
	blob   digest.Digest // for errors
	diffID digest.Digest
	dir    string // folder of the snapshot
	free   func() (int64, error)
	lower  lower // layers below
}

// write makes the layer's file from its blob. The snapshot may be committed
// only after it returned without an error: then all is on disk and the content
// is what the image's configuration says.
func (w layerWriter) write(ctx context.Context, blob io.Reader) error {
	ctx, cancel := context.WithTimeout(ctx, mkfsLimit)
	defer cancel()
	reader, writer := io.Pipe()
	feed := make(chan error, 1)
	go func() {
		err := w.feed(blob, writer)
		writer.CloseWithError(err)
		feed <- err
	}()
	target := filepath.Join(w.dir, "layer.erofs")
	id := uuid.NewSHA1(uuid.NameSpaceURL, []byte("erofs:blobs/"+w.diffID))
	// Scratch files are as large as the layer: they belong beside it, not in memory.
	err := run.Feed(ctx, reader, []string{"TMPDIR=" + w.dir}, "mkfs.erofs",
		"--tar=f", "--aufs", "--quiet", "-Enoinline_data", "-b4096",
		"-T0", "--mkfs-time", "--sort=none", "-U", id.String(), target)
	reader.CloseWithError(errMkfsEnded)
	fed := <-feed
	switch {
	case fed != nil && !errors.Is(fed, errMkfsEnded):
		return fmt.Errorf("layer %s: %w", w.blob, fed)
	case err != nil:
		return fmt.Errorf("layer %s: %w", w.blob, mkfsError(err))
	case fed != nil:
		return fmt.Errorf("layer %s: %w", w.blob, fed)
	}
	return syncFile(target)
}

// mkfsError gives a refusal of mkfs.erofs a class: trying again is of use only
// when there is room.
func mkfsError(err error) error {
	var exit *exec.ExitError
	switch {
	case strings.Contains(err.Error(), "No space left"):
		return fmt.Errorf("the image store is full: %w: %w", err, errdefs.ErrResourceExhausted)
	case errors.As(err, &exit) && exit.ExitCode() == 1:
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return err
}

// errMkfsEnded is what the feeding side sees when mkfs.erofs ended early.
var errMkfsEnded = errors.New("mkfs.erofs ended early")

// feed writes the layer's normalised tar and checks its content's digest.
func (w layerWriter) feed(blob io.Reader, out io.Writer) error {
	plain, err := decompress(blob)
	if err != nil {
		return badStream(err)
	}
	defer plain.Close()
	digester := w.diffID.Algorithm().Digester()
	raw := io.TeeReader(io.LimitReader(plain, expandedMax+entriesMax*tarOverheadMax), digester.Hash())
	n := newNormaliser(out, w.free, w.lower)
	if err := n.copy(tar.NewReader(raw)); err != nil {
		return badStream(err)
	}
	if _, err := io.Copy(io.Discard, raw); err != nil {
		return badStream(err)
	}
	if got := digester.Digest(); got != w.diffID {
		return fmt.Errorf("holds %s, the image says %s: %w", got, w.diffID, errdefs.ErrInvalidArgument)
	}
	return nil
}

// badStream gives errors of decompressors and of the tar reader a class.
func badStream(err error) error {
	var sys unix.Errno
	if errors.Is(err, errMkfsEnded) || errors.As(err, &sys) || errdefs.IsInvalidArgument(err) || errdefs.IsResourceExhausted(err) {
		return err
	}
	return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
}

// syncFile makes a file and its name durable.
func syncFile(name string) error {
	for _, p := range []string{name, filepath.Dir(name)} {
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		err = f.Sync()
		f.Close()
		if err != nil {
			return fmt.Errorf("sync %s: %w", p, err)
		}
	}
	return nil
}

// freeBytes of the file system of a folder.
func freeBytes(dir string) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}

// size is a number of bytes for people.
func size(n int64) string {
	for _, unit := range []struct {
		name  string
		bytes int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= unit.bytes {
			return fmt.Sprintf("%.4g %s", float64(n)/float64(unit.bytes), unit.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}
