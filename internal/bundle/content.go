package bundle

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
)

// copyBuffer is what is read of a bundle at once, in bytes.
const copyBuffer = 1 << 20

// Write writes a bundle of these parts, which must be what the manifest says they
// are; a nil key leaves it unsigned. After an error w holds no bundle.
func Write(w io.Writer, m Manifest, key *PrivateKey, uki, root io.Reader) error {
	h, err := NewHeader(m, key)
	if err != nil {
		return err
	}
	if _, err := w.Write(h.Bytes()); err != nil {
		return err
	}
	if err := m.copyUKI(w, uki); err != nil {
		return err
	}
	if err := ended(uki, "its kernel image"); err != nil {
		return err
	}
	return m.copyRoot(w, root)
}

// CopyContent copies from r all that stands behind the header in a bundle, and
// checks it against the manifest on the way. What isn't the manifest's content is
// InvalidArgument; by then some of it is written.
func (h *Header) CopyContent(w io.Writer, r io.Reader) error {
	if err := h.Manifest.copyUKI(w, r); err != nil {
		return err
	}
	return h.Manifest.copyRoot(w, r)
}

// copyUKI takes as much from r as the kernel image is long.
func (m Manifest) copyUKI(w io.Writer, r io.Reader) error {
	sum := sha256.New()
	n, err := io.Copy(w, io.TeeReader(io.LimitReader(r, m.UKI.Size), sum))
	switch {
	case err != nil:
		return err
	case n < m.UKI.Size:
		return malformed("it ends within its kernel image, at %d of %d bytes", n, m.UKI.Size)
	case hex.EncodeToString(sum.Sum(nil)) != m.UKI.SHA256:
		return malformed("its kernel image is not the one of its manifest")
	}
	return nil
}

// copyRoot takes all of r, which must be the root.
func (m Manifest) copyRoot(w io.Writer, r io.Reader) error {
	data := &io.LimitedReader{R: r, N: m.Root.DataBytes}
	want, hash, err := HashTree(bufio.NewReaderSize(io.TeeReader(data, w), copyBuffer))
	if data.N > 0 && (err == nil || errors.Is(err, io.ErrUnexpectedEOF)) {
		return malformed("it ends within its root, at %d of %d bytes", m.Root.DataBytes-data.N, m.Root.Size)
	}
	if err != nil {
		return err
	}
	if hash != m.Root.VerityHash {
		return malformed("its root is not the one of its manifest")
	}
	tree := make([]byte, m.Root.Size-m.Root.DataBytes)
	n, err := io.ReadFull(r, tree)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return malformed("it ends within its root, at %d of %d bytes", m.Root.DataBytes+int64(n), m.Root.Size)
	}
	if err != nil {
		return err
	}
	if !bytes.Equal(tree, want) {
		return malformed("the hash tree of its root is not the one of its data")
	}
	if _, err := w.Write(tree); err != nil {
		return err
	}
	return ended(r, "its root")
}

// ended refuses what goes on behind its end.
func ended(r io.Reader, what string) error {
	var more [1]byte
	_, err := io.ReadFull(r, more[:])
	switch {
	case err == nil:
		return malformed("more follows the end of %s", what)
	case errors.Is(err, io.EOF):
		return nil
	}
	return err
}
