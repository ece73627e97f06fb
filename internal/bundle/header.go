package bundle

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
)

const (
	magic  = "\x89CAPSULE"
	format = 1

	prefixLen    = len(magic) + 4 + 4
	idLen        = 8
	signatureLen = idLen + ed25519.SignatureSize
)

// What is wrong with a signature; all are PermissionDenied.
var (
	// ErrUnsigned is of a bundle that nobody signed.
	ErrUnsigned = fmt.Errorf("unsigned: %w", errdefs.ErrPermissionDenied)
	// ErrForeignKey is of a bundle signed by a key that isn't trusted.
	ErrForeignKey = fmt.Errorf("foreign key: %w", errdefs.ErrPermissionDenied)
	// ErrBadSignature is of a header that isn't what its key signed.
	ErrBadSignature = fmt.Errorf("bad signature: %w", errdefs.ErrPermissionDenied)
)

// Header is all of a bundle before the kernel image.
type Header struct {
	Manifest Manifest
	KeyID    string // of the key that is said to have signed, "" when unsigned
	UKIAt    int64  // where the kernel image starts in the bundle, bytes; also the header's size
	RootAt   int64  // where the root starts
	Size     int64  // of the whole bundle, bytes

	raw       []byte // the manifest as it stands in the bundle
	signature [signatureLen]byte
}

// NewHeader is the header of a bundle with this content; a nil key leaves it
// unsigned.
func NewHeader(m Manifest, key *PrivateKey) (*Header, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	h := newHeader(m, raw)
	if key == nil {
		return h, nil
	}
	return h.Sign(key), nil
}

func newHeader(m Manifest, raw []byte) *Header {
	h := &Header{Manifest: m, raw: raw, UKIAt: int64(prefixLen + len(raw) + signatureLen)}
	h.RootAt = h.UKIAt + m.UKI.Size
	h.Size = h.RootAt + m.Root.Size
	return h
}

// ReadHeader reads a header and nothing behind it. It checks what the header says
// of itself, and not who signed it: see [Header.Verify]. What isn't a header is
// InvalidArgument; an error of r is given as it is.
func ReadHeader(r io.Reader) (*Header, error) {
	prefix := make([]byte, prefixLen)
	if err := fill(r, prefix); err != nil {
		return nil, err
	}
	if string(prefix[:len(magic)]) != magic {
		return nil, fmt.Errorf("not a bundle: it doesn't start as one: %w", errdefs.ErrInvalidArgument)
	}
	if f := binary.LittleEndian.Uint32(prefix[len(magic):]); f != format {
		return nil, fmt.Errorf("bundle is of format %d, and only %d is known here: a newer version may know it: %w", f, format, errdefs.ErrInvalidArgument)
	}
	length := binary.LittleEndian.Uint32(prefix[len(magic)+4:])
	if length == 0 || length > ManifestMax {
		return nil, malformed("manifest of %d bytes", length)
	}
	rest := make([]byte, int(length)+signatureLen)
	if err := fill(r, rest); err != nil {
		return nil, err
	}
	m, err := parseManifest(rest[:length])
	if err != nil {
		return nil, err
	}
	h := newHeader(m, rest[:length])
	copy(h.signature[:], rest[length:])
	h.setKeyID()
	return h, nil
}

// fill reads all of b.
func fill(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return malformed("it ends within its header")
	}
	if err != nil {
		return fmt.Errorf("read the bundle's header: %w", err)
	}
	return nil
}

// ParseHeader reads b, which must be a header and nothing else.
func ParseHeader(b []byte) (*Header, error) {
	r := bytes.NewReader(b)
	h, err := ReadHeader(r)
	if err == nil && r.Len() > 0 {
		return nil, malformed("%d bytes follow its header", r.Len())
	}
	return h, err
}

// Bytes is the header as it stands in a bundle.
func (h *Header) Bytes() []byte { return append(h.signed(), h.signature[:]...) }

// signed is what the signature covers.
func (h *Header) signed() []byte {
	b := append(make([]byte, 0, h.UKIAt), magic...)
	b = binary.LittleEndian.AppendUint32(b, format)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(h.raw)))
	return append(b, h.raw...)
}

// setKeyID takes the id out of the signature.
func (h *Header) setKeyID() {
	h.KeyID = ""
	if h.signature != [signatureLen]byte{} {
		h.KeyID = hex.EncodeToString(h.signature[:idLen])
	}
}

// Sign gives a copy of the header with the signature of this key and no other.
func (h *Header) Sign(key *PrivateKey) *Header {
	signed := *h
	id := key.Public().rawID()
	copy(signed.signature[:], id[:])
	copy(signed.signature[idLen:], ed25519.Sign(key.key, h.signed()))
	signed.setKeyID()
	return &signed
}

// Verify checks that one of the keys signed the header. Its errors are
// [ErrUnsigned], [ErrForeignKey] and [ErrBadSignature].
func (h *Header) Verify(keys []PublicKey) error {
	if h.KeyID == "" {
		return fmt.Errorf("bundle is not signed; %s: %w", trusted(keys), ErrUnsigned)
	}
	known := false
	for _, key := range keys {
		if key.ID() != h.KeyID {
			continue
		}
		if known = true; ed25519.Verify(key.key, h.signed(), h.signature[idLen:]) {
			return nil
		}
	}
	if known {
		return fmt.Errorf("bundle was changed after key %s signed it, or never signed by it: %w", h.KeyID, ErrBadSignature)
	}
	return fmt.Errorf("bundle is signed by key %s; %s: %w", h.KeyID, trusted(keys), ErrForeignKey)
}

// trusted says whose bundles are taken.
func trusted(keys []PublicKey) string {
	if len(keys) == 0 {
		return "no key is trusted here"
	}
	var ids []string
	for _, key := range keys {
		ids = append(ids, key.String())
	}
	return "trusted here: " + strings.Join(ids, ", ")
}
