package bundle

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestPieces(t *testing.T) {
	content := []byte(strings.Repeat("0123456789abcdef", PieceSize/16*2+1)) // two and a bit
	p := NewPart(content)
	if err := p.checkPieces(); err != nil {
		t.Fatal(err)
	}
	for at := int64(0); at < p.Size; at += PieceSize {
		if got, want := p.PieceAt(at), Piece(content[at:min(at+PieceSize, p.Size)]); got != want {
			t.Errorf("piece at %d is %q, want %q", at, got, want)
		}
	}
	if got := (Part{Size: 10}).PieceAt(0); got != "" {
		t.Errorf("a part without pieces names %q", got)
	}
	for name, bad := range map[string]string{
		"one less":  p.Pieces[pieceDigits:],
		"one more":  p.Pieces + p.Pieces[:pieceDigits],
		"no digits": strings.Repeat("x", len(p.Pieces)),
		"capitals":  strings.Repeat("A", len(p.Pieces)),
	} {
		p := p
		p.Pieces = bad
		if err := p.checkPieces(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
