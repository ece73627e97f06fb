// Package bundle owns the file that an update comes in, and the keys that sign it.
// It reads, checks and writes; it never installs anything.
//
// A bundle is one file, and every byte of it is proven by one signature. Numbers are
// unsigned and little-endian.
//
//	at              bytes  what
//	0               8      magic: 89 43 41 50 53 55 4c 45 ("\x89CAPSULE")
//	8               4      format: 1
//	12              4      M, length of the manifest: 1 to 16384
//	16              M      manifest, JSON
//	16+M            8      id of the key that signed; zeros when unsigned
//	24+M            64     ed25519 signature of bytes 0 to 16+M; zeros when unsigned
//	88+M            uki    kernel image, of the manifest's uki.size
//	88+M+uki        root   root, of the manifest's root.size; the file ends with it
//
// All before the kernel image is the header. The signature begins at the magic, so
// that it can't be taken for one of anything else, and leaves out the id of its key,
// which only says what key to try.
//
// The manifest is one object:
//
//	{
//	  "product": "capsule",
//	  "version": "v1.2.0",          letters, digits and ._+~-: it names files
//	  "architecture": "amd64",      as Go calls it
//	  "builtUnix": 1764403200,      of the commit, seconds since 1970
//	  "follows": "v1.0.0",          oldest version that it can follow; absent: any
//	  "uki":  {"size": …, "sha256": "64 hexadecimal digits",
//	           "pieces": "32 digits for each 128 KiB"},   the first of their SHA-256; absent: none
//	  "root": {"size": …, "dataBytes": …, "verityHash": "64 hexadecimal digits"}
//	}
//
// Names that a reader doesn't know are passed over: a later release may add a fact
// that older capsules can do without. What they must heed changes the format number.
//
// The root is dataBytes of a file system, then the superblock and the hash tree of
// dm-verity over them (see [HashTree]), whose root hash is verityHash. So any block
// can be proven alone once the tree is there, and nothing else needs a checksum.
//
// Keys are ed25519, in PEM as OpenSSL writes them: PKCS #8 in NAME.key, PKIX in
// NAME.pub. A key's id is the first 8 bytes of the SHA-256 of the 32 bytes of the
// public key, in hexadecimal:
//
//	openssl pkey -pubin -in NAME.pub -outform DER | tail -c 32 | sha256sum | head -c 16
package bundle

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
)

// Product is what all bundles of this project say that they are for.
const Product = "capsule"

// KeysDir holds the public keys whose bundles a capsule takes, baked into its root.
const KeysDir = "/usr/share/capsule/release-keys"

// Bounds of a bundle.
const (
	// ManifestMax is the longest manifest in bytes.
	ManifestMax = 16 << 10
	// HeaderMax is the longest header in bytes.
	HeaderMax = prefixLen + ManifestMax + signatureLen
	// PartMax is the largest kernel image and the largest root in bytes: far over
	// any slot, far under what sums overflow at.
	PartMax = 64 << 30

	wordMax = 100             // letters of a version or another name: it's part of a file's name on the ESP
	timeMax = 253_402_300_799 // the last second of the year 9999
)

// Part is a piece of the bundle that is proven by its digest.
type Part struct {
	Size   int64  `json:"size"`   // bytes
	SHA256 string `json:"sha256"` // hexadecimal
	// Pieces names each [PieceSize] of it, so that those which are elsewhere already
	// need not be sent; "" for none. See [Piece].
	Pieces string `json:"pieces,omitempty"`
}

// Root is the root with its hash tree, which proves it.
type Root struct {
	Size       int64  `json:"size"`       // bytes, with the tree
	DataBytes  int64  `json:"dataBytes"`  // of the file system: where the tree's superblock is
	VerityHash string `json:"verityHash"` // hexadecimal
}

// Manifest says what a bundle holds; it is what the signature covers.
type Manifest struct {
	Product      string `json:"product"`
	Version      string `json:"version"`
	Architecture string `json:"architecture"`      // as runtime.GOARCH has it
	BuiltUnix    int64  `json:"builtUnix"`         // seconds since 1970
	Follows      string `json:"follows,omitempty"` // oldest version that it can follow, "" for any
	UKI          Part   `json:"uki"`
	Root         Root   `json:"root"`
}

// parseManifest reads a manifest; any error is InvalidArgument.
func parseManifest(raw []byte) (Manifest, error) {
	var m Manifest
	d := json.NewDecoder(strings.NewReader(string(raw)))
	err := d.Decode(&m)
	if err == nil {
		if _, after := d.Token(); !errors.Is(after, io.EOF) {
			err = errors.New("more follows its end")
		}
	}
	if err != nil {
		return Manifest{}, malformed("manifest is not one JSON object: %v", err)
	}
	return m, m.check()
}

// check finds what no reader could use.
func (m Manifest) check() error {
	for _, word := range []struct{ name, value string }{
		{"product", m.Product}, {"version", m.Version}, {"architecture", m.Architecture},
	} {
		if !isWord(word.value) {
			return malformed("manifest has %s %q: want at most %d letters, digits and ._+~-, the first a letter or digit", word.name, word.value, wordMax)
		}
	}
	switch {
	case m.Follows != "" && !isWord(m.Follows):
		return malformed("manifest follows %q, which is no version", m.Follows)
	case m.BuiltUnix < 0 || m.BuiltUnix > timeMax:
		return malformed("manifest has build time %d", m.BuiltUnix)
	case m.UKI.Size <= 0 || m.UKI.Size > PartMax:
		return malformed("manifest has a kernel image of %d bytes", m.UKI.Size)
	case !isDigest(m.UKI.SHA256):
		return malformed("manifest has SHA-256 %q", m.UKI.SHA256)
	}
	return errors.Join(m.UKI.checkPieces(), m.Root.check())
}

func (r Root) check() error {
	switch {
	case r.Size <= 0 || r.Size > PartMax || r.DataBytes <= 0 || r.DataBytes > PartMax:
		return malformed("manifest has a root of %d bytes, %d without its hash tree", r.Size, r.DataBytes)
	// The kernel has no tree over a single block.
	case r.DataBytes%BlockSize != 0 || r.DataBytes < 2*BlockSize:
		return malformed("manifest has a root of %d bytes of data: want two blocks of %d or more", r.DataBytes, BlockSize)
	case r.Size != r.DataBytes+TreeSize(r.DataBytes):
		return malformed("manifest has a root of %d bytes: %d of data and their hash tree are %d",
			r.Size, r.DataBytes, r.DataBytes+TreeSize(r.DataBytes))
	case !isDigest(r.VerityHash):
		return malformed("manifest has root hash %q", r.VerityHash)
	}
	return nil
}

// isWord tells what can stand in a file's name and on a line of text on any system.
func isWord(s string) bool {
	if s == "" || len(s) > wordMax || strings.ContainsRune("._+~-", rune(s[0])) {
		return false
	}
	for _, c := range s {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("._+~-", c) {
			return false
		}
	}
	return true
}

// isDigest tells a SHA-256 in lower-case hexadecimal.
func isDigest(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32 && strings.ToLower(s) == s
}

// malformed is an error of a file that isn't what it says it is.
func malformed(format string, args ...any) error {
	return fmt.Errorf("bundle is corrupt: "+format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
