package bundle

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// PieceSize is the unit in which a kernel image can be taken over from another one,
// in bytes. Two images of a system differ in a few pieces: the versions and the root
// hash stand in the first ones, and what is large rarely changes.
const PieceSize = 128 << 10

// pieceDigits is how many hexadecimal digits of a SHA-256 name a piece: enough to
// find it. What proves it is the digest of the whole.
const pieceDigits = 32

// Piece names a piece by its content.
func Piece(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])[:pieceDigits]
}

// NewPart describes a content that is here as a whole.
func NewPart(content []byte) Part {
	sum := sha256.Sum256(content)
	var pieces strings.Builder
	for at := 0; at < len(content); at += PieceSize {
		pieces.WriteString(Piece(content[at:min(at+PieceSize, len(content))]))
	}
	return Part{Size: int64(len(content)), SHA256: hex.EncodeToString(sum[:]), Pieces: pieces.String()}
}

// PieceAt is the name of the piece that begins at an offset, which is a multiple of
// PieceSize; "" when the bundle names none.
func (p Part) PieceAt(offset int64) string {
	if p.Pieces == "" {
		return ""
	}
	at := offset / PieceSize * pieceDigits
	return p.Pieces[at : at+pieceDigits]
}

// checkPieces of a manifest that names some.
func (p Part) checkPieces() error {
	if p.Pieces == "" {
		return nil
	}
	want := (p.Size + PieceSize - 1) / PieceSize * pieceDigits
	if _, err := hex.DecodeString(p.Pieces); err != nil || int64(len(p.Pieces)) != want || strings.ToLower(p.Pieces) != p.Pieces {
		return malformed("manifest has %d letters for the pieces of a kernel image of %d bytes: want %d hexadecimal digits", len(p.Pieces), p.Size, want)
	}
	return nil
}
