// Package claim is how an operator and a capsule that never met show each other
// that both know the code on the capsule's console. It is pure: it holds no
// state, counts no tries and knows no connection but by its exporter.
//
// Both proofs are bound to the TLS connection that they travel on, by keying
// material that is exported from it (RFC 8446, 7.5; the use as a channel binding
// is RFC 9266's). Somebody in the middle has two connections, with two different
// exports, so a relayed proof is a wrong one:
//
//	K      = HKDF-SHA256(code, salt "capsule claim v1")
//	E      = TLS exporter "EXPORTER-capsule-claim-v1", 32 bytes
//	client = HMAC-SHA256(K, "client" || E || SHA256(CSR))
//	server = HMAC-SHA256(K, "server" || E || SHA256(CA) || SHA256(certificate))
//
// The code has 100 random bits, so a proof that somebody kept can't be searched
// for its code. docs/decisions/0018-claim.md weighs this against a PAKE.
package claim

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// ExporterLabel names what is exported from a connection for the proofs.
const ExporterLabel = "EXPORTER-capsule-claim-v1"

// Sizes: of proofs, keys and exports in bytes, of a code in characters.
const (
	ProofSize  = sha256.Size
	codeLength = 20 // of 5 bits
	groupSize  = 5
)

const (
	salt = "capsule claim v1"
	// alphabet is Crockford's: no I, L, O or U.
	alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
)

// A Code is what the console shows, in its one written form.
type Code string

// A Key is made from a code and can't be turned back into it. Whoever has it can
// make proofs.
type Key []byte

// NewCode makes a code of 100 random bits.
func NewCode() Code {
	random := make([]byte, codeLength)
	_, _ = rand.Read(random) // never fails
	var b strings.Builder
	for i, c := range random {
		if i > 0 && i%groupSize == 0 {
			b.WriteByte('-')
		}
		b.WriteByte(alphabet[int(c)%len(alphabet)]) // 256 is a multiple of 32
	}
	return Code(b.String())
}

// ParseCode reads a code as people type it: any case, with dashes and spaces
// anywhere, I or L for 1 and O for 0.
func ParseCode(text string) (Code, error) {
	var b strings.Builder
	n := 0
	for _, r := range strings.ToUpper(text) {
		switch r {
		case '-', ' ', '\t', '\r', '\n':
			continue
		case 'I', 'L':
			r = '1'
		case 'O':
			r = '0'
		}
		if !strings.ContainsRune(alphabet, r) {
			return "", fmt.Errorf("code: %q is in none: %w", r, errdefs.ErrInvalidArgument)
		}
		if n == codeLength {
			return "", fmt.Errorf("code: it has more than %d characters: %w", codeLength, errdefs.ErrInvalidArgument)
		}
		if n > 0 && n%groupSize == 0 {
			b.WriteByte('-')
		}
		b.WriteRune(r)
		n++
	}
	if n != codeLength {
		return "", fmt.Errorf("code: it has %d characters of %d: %w", n, codeLength, errdefs.ErrInvalidArgument)
	}
	return Code(b.String()), nil
}

// Key is what proofs of this code are made with.
func (c Code) Key() (Key, error) {
	return hkdf.Key(sha256.New, []byte(c), []byte(salt), "", sha256.Size)
}

// Export gives what binds a proof to this connection; both ends get the same.
func Export(state tls.ConnectionState) ([]byte, error) {
	if state.Version < tls.VersionTLS13 {
		return nil, fmt.Errorf("claim over TLS before 1.3: %w", errdefs.ErrFailedPrecondition)
	}
	return state.ExportKeyingMaterial(ExporterLabel, nil, sha256.Size)
}

// ClientProof shows that whoever made this request (PKCS #10, DER) knows the code.
func (k Key) ClientProof(export, csr []byte) []byte {
	return k.proof("client", export, csr)
}

// ServerProof shows that the capsule with this CA, which signed this certificate
// (both DER), knows the code.
func (k Key) ServerProof(export, ca, certificate []byte) []byte {
	return k.proof("server", export, ca, certificate)
}

// Equal compares proofs in a time that tells nothing about them.
func Equal(a, b []byte) bool { return hmac.Equal(a, b) }

func (k Key) proof(side string, export []byte, texts ...[]byte) []byte {
	mac := hmac.New(sha256.New, k)
	mac.Write([]byte(side))
	mac.Write(export)
	for _, text := range texts {
		sum := sha256.Sum256(text)
		mac.Write(sum[:])
	}
	return mac.Sum(nil)
}
