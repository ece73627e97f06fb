package claim

import (
	"bytes"
	"encoding/hex"
	"regexp"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestNewCode(t *testing.T) {
	form := regexp.MustCompile(`^([0-9A-HJKMNP-TV-Z]{5}-){3}[0-9A-HJKMNP-TV-Z]{5}$`)
	seen := map[Code]bool{}
	for range 100 {
		code := NewCode()
		if !form.MatchString(string(code)) || seen[code] {
			t.Fatalf("got %q", code)
		}
		seen[code] = true
		again, err := ParseCode(string(code))
		if err != nil || again != code {
			t.Errorf("parsed %q: %q, %v", code, again, err)
		}
	}
}

func TestParseCode(t *testing.T) {
	const want = "01234-56789-ABCDE-FGHJK"
	for _, text := range []string{want, "0123456789abcdefghjk", " oi234 56789 ABCDE fghjk\n", "0L23-4567-89AB-CDEF-GHJK", "O1234--56789ABCDEFGHJK"} {
		if got, err := ParseCode(text); err != nil || got != want {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "01234", want + "0", "U1234-56789-ABCDE-FGHJK", "0123456789ABCDEFGHJ!", strings.Repeat("0", 1<<20)} {
		if got, err := ParseCode(text); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%.40q: got %q, %v", text, got, err)
		}
	}
}

// What is proved must not change under an operator's feet: an older capsulectl
// claims a newer capsule.
func TestProofsStay(t *testing.T) {
	key, err := Code("01234-56789-ABCDE-FGHJK").Key()
	if err != nil {
		t.Fatal(err)
	}
	export := bytes.Repeat([]byte{7}, 32)
	for _, c := range []struct {
		name string
		got  []byte
		want string
	}{
		{"key", key, "a3be187de74dfd34b59a2a0e161103d4e6b1fdb9922d00256b6e771219d3a4c1"},
		{"client", key.ClientProof(export, []byte("csr")), "db1e6eeb7094f6eaf9ff4f604a83f17e1bfe15dc8375fa9eeb3fd1a7a1028eda"},
		{"server", key.ServerProof(export, []byte("ca"), []byte("cert")), "6c10b6b15d932bdedddd5236d4051b7b10865d145bedb14a4384d93c9331a5d1"},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

func TestProofsDiffer(t *testing.T) {
	key := func(code Code) Key {
		k, err := code.Key()
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	k, other := key("01234-56789-ABCDE-FGHJK"), key("11234-56789-ABCDE-FGHJK")
	e, e2 := []byte("export one"), []byte("export two")
	proofs := [][]byte{
		k.ClientProof(e, []byte("a")), k.ClientProof(e, []byte("b")), k.ClientProof(e2, []byte("a")), other.ClientProof(e, []byte("a")),
		k.ServerProof(e, []byte("a"), []byte("b")), k.ServerProof(e, []byte("b"), []byte("a")), k.ServerProof(e2, []byte("a"), []byte("b")),
	}
	for i, a := range proofs {
		if len(a) != ProofSize {
			t.Errorf("proof %d has %d bytes", i, len(a))
		}
		for j, b := range proofs {
			if Equal(a, b) != (i == j) {
				t.Errorf("proofs %d and %d", i, j)
			}
		}
	}
}

func FuzzParseCode(f *testing.F) {
	f.Add("01234-56789-ABCDE-FGHJK")
	f.Fuzz(func(t *testing.T, text string) {
		code, err := ParseCode(text)
		if err != nil {
			return
		}
		if again, err := ParseCode(string(code)); err != nil || again != code {
			t.Errorf("%q: %q, %v", code, again, err)
		}
	})
}
