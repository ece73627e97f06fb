package bundle

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

// testKey is the same in every run.
func testKey(seed byte) *PrivateKey {
	return &PrivateKey{key: ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))}
}

// testContent is a kernel image, a root with its tree over 130 blocks, and their
// manifest.
func testContent(t testing.TB) (m Manifest, uki, root []byte) {
	t.Helper()
	uki = []byte("MZ, a kernel")
	data := make([]byte, 130*BlockSize)
	for i := range data {
		data[i] = byte(i / BlockSize)
	}
	tree, hash, err := HashTree(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(uki)
	return Manifest{
		Product: Product, Version: "v1.2.0-3-gabcdef0", Architecture: "amd64", BuiltUnix: 1764403200, Follows: "v1.0.0",
		UKI:  Part{Size: int64(len(uki)), SHA256: hex.EncodeToString(sum[:])},
		Root: Root{Size: int64(len(data) + len(tree)), DataBytes: int64(len(data)), VerityHash: hash},
	}, uki, append(data, tree...)
}

func testBundle(t testing.TB, key *PrivateKey) []byte {
	t.Helper()
	m, uki, root := testContent(t)
	var out bytes.Buffer
	if err := Write(&out, m, key, bytes.NewReader(uki), bytes.NewReader(root)); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestBundle(t *testing.T) {
	m, uki, root := testContent(t)
	key := testKey(1)
	file := testBundle(t, key)
	r := bytes.NewReader(file)
	h, err := ReadHeader(iotest.OneByteReader(r))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m, h.Manifest); diff != "" {
		t.Errorf("manifest (-want +got):\n%s", diff)
	}
	if at := int64(len(file) - r.Len()); at != h.UKIAt {
		t.Errorf("read %d bytes of a header of %d", at, h.UKIAt)
	}
	if h.Size != int64(len(file)) || !bytes.Equal(file[h.UKIAt:h.RootAt], uki) || !bytes.Equal(file[h.RootAt:], root) {
		t.Errorf("parts at %d and %d of %d are not those written", h.UKIAt, h.RootAt, h.Size)
	}
	if h.KeyID != key.Public().ID() {
		t.Errorf("key %q, want %q", h.KeyID, key.Public().ID())
	}
	if !bytes.Equal(h.Bytes(), file[:h.UKIAt]) {
		t.Error("the header is not the bytes that it was read from")
	}
	if err := h.Verify([]PublicKey{testKey(2).Public(), key.Public()}); err != nil {
		t.Error(err)
	}
	if err := h.CopyContent(io.Discard, iotest.HalfReader(r)); err != nil {
		t.Error(err)
	}
}

// What is written today must be read for ever: a change here needs a new format.
func TestFormatStaysAsItIs(t *testing.T) {
	m, _, _ := testContent(t)
	m.Root.VerityHash = strings.Repeat("ab", 32)
	h, err := NewHeader(m, testKey(1))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(h.Bytes())
	if got, want := hex.EncodeToString(sum[:]), "56d5bd413046cf328d412a730c2386f3fe6c99869014fc954b2c6031d4cd4eea"; got != want {
		t.Errorf("header has SHA-256 %s, want %s:\n%q", got, want, h.Bytes())
	}
	const id = "34750f98bd59fcfc"
	if got := testKey(1).Public().ID(); got != id {
		t.Errorf("key id %s, want %s", got, id)
	}
}

func TestSignReplacesTheSignatureOnly(t *testing.T) {
	first, second := testKey(1), testKey(2)
	h, err := ReadHeader(bytes.NewReader(testBundle(t, first)))
	if err != nil {
		t.Fatal(err)
	}
	again := h.Sign(second)
	if err := again.Verify([]PublicKey{second.Public()}); err != nil {
		t.Error(err)
	}
	if err := h.Verify([]PublicKey{first.Public()}); err != nil {
		t.Errorf("signing changed the header that it was given: %v", err)
	}
	if len(again.Bytes()) != len(h.Bytes()) || !bytes.Equal(again.signed(), h.signed()) {
		t.Error("more than the signature changed")
	}
}

// A later release may add to the manifest: that stays, and stays signed.
func TestUnknownNamesAreKept(t *testing.T) {
	h, err := NewHeader(manifestOf(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	raw := append([]byte(`{"later":{"fact":[1]},`), h.raw[1:]...)
	h, err = ParseHeader(header(raw, nil))
	if err != nil {
		t.Fatal(err)
	}
	key := testKey(1)
	signed := h.Sign(key).Bytes()
	if !bytes.Contains(signed, []byte(`"later"`)) {
		t.Error("the new fact is gone")
	}
	again, err := ParseHeader(signed)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Verify([]PublicKey{key.Public()}); err != nil {
		t.Error(err)
	}
}

func manifestOf(t testing.TB) Manifest {
	m, _, _ := testContent(t)
	return m
}

// header puts one together from parts that need not be right.
func header(manifest, signature []byte) []byte {
	b := append([]byte(magic), 1, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(manifest)))
	b = append(b, manifest...)
	return append(b, append(signature, make([]byte, signatureLen-len(signature))...)...)
}

func TestRefusedHeaders(t *testing.T) {
	whole := testBundle(t, testKey(1))
	h, err := ReadHeader(bytes.NewReader(whole))
	if err != nil {
		t.Fatal(err)
	}
	good := h.Bytes()
	change := func(at int, with ...byte) []byte {
		return slices.Replace(slices.Clone(good), at, at+len(with), with...)
	}
	manifest := func(old, new string) []byte {
		if !bytes.Contains(h.raw, []byte(old)) {
			t.Fatalf("manifest %s has no %s", h.raw, old)
		}
		return header(bytes.Replace(h.raw, []byte(old), []byte(new), 1), nil)
	}
	for _, c := range []struct {
		name  string
		bytes []byte
		says  string
	}{
		{"nothing", nil, "ends within its header"},
		{"another file", []byte("PK\x03\x04, a long archive of something else"), "not a bundle"},
		{"sent as text", []byte("\xc2\x89CAPSULE\x01\x00\x00\x00\x00\x01\x00\x00{"), "not a bundle"},
		{"later format", change(8, 2), "format 2"},
		{"no manifest", change(12, 0, 0, 0, 0), "manifest of 0 bytes"},
		{"endless manifest", change(12, 0xff, 0xff, 0xff, 0xff), "manifest of 4294967295 bytes"},
		{"manifest over its bound", header(bytes.Repeat([]byte{' '}, ManifestMax+1), nil), "manifest of 16385 bytes"},
		{"cut in the prefix", good[:15], "ends within its header"},
		{"cut in the manifest", good[:100], "ends within its header"},
		{"cut in the signature", good[:len(good)-1], "ends within its header"},
		{"more behind it", append(slices.Clone(good), 0), "1 bytes follow its header"},
		{"manifest is no JSON", change(16, '['), "not one JSON object"},
		{"two manifests", header(append(slices.Clone(h.raw), "{}"...), nil), "not one JSON object"},
		{"size is a text", manifest(`"size":12`, `"size":"12"`), "not one JSON object"},
		{"no version", manifest("v1.2.0-3-gabcdef0", ""), "version"},
		{"version is a path", manifest("v1.2.0-3-gabcdef0", "../../boot"), "version"},
		{"version with a line of its own", manifest("v1.2.0-3-gabcdef0", `v1\nefi /evil`), "version"},
		{"endless version", manifest("v1.2.0-3-gabcdef0", strings.Repeat("1", 129)), "version"},
		{"no product", manifest(`"product":"capsule",`, ""), "product"},
		{"architecture with a space", manifest("amd64", "amd 64"), "architecture"},
		{"follows no version", manifest("v1.0.0", "v1/0"), "follows"},
		{"built before 1970", manifest("1764403200", "-1"), "build time"},
		{"built in another age", manifest("1764403200", "253402300800"), "build time"},
		{"empty kernel image", manifest(`"size":12`, `"size":0`), "kernel image of 0 bytes"},
		{"negative kernel image", manifest(`"size":12`, `"size":-12`), "kernel image of -12 bytes"},
		{"kernel image that sums overflow at", manifest(`"size":12`, `"size":9223372036854775807`), "kernel image of"},
		{"number over 64 bits", manifest(`"size":12`, `"size":92233720368547758070`), "not one JSON object"},
		{"short digest", manifest(h.Manifest.UKI.SHA256, "00"), "SHA-256"},
		{"digest in capitals", manifest(h.Manifest.UKI.SHA256, strings.Repeat("AB", 32)), "SHA-256"},
		{"no root hash", manifest(h.Manifest.Root.VerityHash, ""), "root hash"},
		{"root with half a block", manifest(`"dataBytes":532480`, `"dataBytes":532481`), "532481 bytes of data"},
		{"root of one block", manifest(`"dataBytes":532480`, `"dataBytes":4096`), "4096 bytes of data"},
		{"root without its tree", manifest(`"size":548864`, `"size":532480`), "hash tree are 548864"},
		{"root over its bound", manifest(`"dataBytes":532480`, `"dataBytes":9223372036854771712`), "9223372036854771712"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseHeader(c.bytes)
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want one that says %q", err, c.says)
			}
		})
	}
}

func TestReadHeaderGivesTheErrorOfReading(t *testing.T) {
	broken := errors.New("connection reset")
	_, err := ReadHeader(iotest.ErrReader(broken))
	if !errors.Is(err, broken) || errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
}

func TestVerifyRefuses(t *testing.T) {
	key, other := testKey(1), testKey(2).Public()
	other.Name = "other"
	signed, err := ReadHeader(bytes.NewReader(testBundle(t, key)))
	if err != nil {
		t.Fatal(err)
	}
	good := signed.Bytes()
	flip := func(at int) []byte {
		b := slices.Clone(good)
		b[at] ^= 1
		return b
	}
	idAt, signatureAt := len(good)-signatureLen, len(good)-ed25519.SignatureSize
	for _, c := range []struct {
		name  string
		bytes []byte
		keys  []PublicKey
		class error
		says  []string
	}{
		{"unsigned", header(signed.raw, nil), []PublicKey{other}, ErrUnsigned, []string{"not signed", other.ID() + " (other)"}},
		{"foreign key", good, []PublicKey{other}, ErrForeignKey, []string{key.Public().ID(), other.ID() + " (other)"}},
		{"no key is trusted", good, nil, ErrForeignKey, []string{key.Public().ID(), "no key"}},
		{"a bit of the signature", flip(len(good) - 1), []PublicKey{other, key.Public()}, ErrBadSignature, []string{key.Public().ID()}},
		{"a digit of the manifest", flip(bytes.Index(good, []byte("v1.2.0")) + 1), []PublicKey{key.Public()}, ErrBadSignature, nil},
		{"a bit of the id", flip(idAt), []PublicKey{key.Public()}, ErrForeignKey, nil},
		{"id without a signature", append(slices.Clone(good[:signatureAt]), make([]byte, ed25519.SignatureSize)...), []PublicKey{key.Public()}, ErrBadSignature, nil},
		{"signature without an id", slices.Replace(slices.Clone(good), idAt, signatureAt, make([]byte, idLen)...), []PublicKey{key.Public()}, ErrForeignKey, nil},
		{"another's signature under a trusted id", append(slices.Clone(good[:signatureAt]), signed.Sign(testKey(2)).Bytes()[signatureAt:]...), []PublicKey{key.Public(), other}, ErrBadSignature, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, err := ParseHeader(c.bytes)
			if err != nil {
				t.Fatal(err)
			}
			err = h.Verify(c.keys)
			if !errors.Is(err, c.class) || !errdefs.IsPermissionDenied(err) {
				t.Errorf("got %v, want %v", err, c.class)
			}
			for _, word := range c.says {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%v does not say %q", err, word)
				}
			}
		})
	}
}

// Two keys with one id can't be made on purpose; the right one of them counts.
func TestVerifyTriesAllKeysOfAnID(t *testing.T) {
	key := testKey(1)
	h, err := NewHeader(manifestOf(t), key)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Verify([]PublicKey{key.Public(), key.Public()}); err != nil {
		t.Error(err)
	}
}

func TestWriteRefusesOtherContent(t *testing.T) {
	m, uki, root := testContent(t)
	flip := func(b []byte, at int) []byte {
		b = slices.Clone(b)
		b[at] ^= 1
		return b
	}
	for _, c := range []struct {
		name      string
		uki, root []byte
		says      string
	}{
		{"other kernel image", flip(uki, 3), root, "kernel image is not the one"},
		{"short kernel image", uki[1:], root, "at 11 of 12 bytes"},
		{"long kernel image", append(slices.Clone(uki), 0), root, "more follows the end of its kernel image"},
		{"a bit in the root", uki, flip(root, 77*BlockSize+5), "root is not the one"},
		{"a bit in the superblock", uki, flip(root, int(m.Root.DataBytes)+100), "hash tree"},
		{"a bit in the padding of the tree", uki, flip(root, len(root)-1), "hash tree"},
		{"a byte short", uki, root[:len(root)-1], "at 548863 of 548864 bytes"},
		{"a block short", uki, root[:m.Root.DataBytes-BlockSize], "at 528384 of 548864 bytes"},
		{"half a block short", uki, root[:m.Root.DataBytes-100], "at 532380 of 548864 bytes"},
		{"no tree", uki, root[:m.Root.DataBytes], "at 532480 of 548864 bytes"},
		{"a byte more", uki, append(slices.Clone(root), 0), "more follows the end of its root"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := Write(io.Discard, m, nil, bytes.NewReader(c.uki), bytes.NewReader(c.root))
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want one that says %q", err, c.says)
			}
		})
	}
	if err := Write(io.Discard, Manifest{}, nil, nil, nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an empty manifest: %v", err)
	}
	broken := errors.New("no space left")
	if err := Write(failingWriter{broken}, m, nil, bytes.NewReader(uki), bytes.NewReader(root)); !errors.Is(err, broken) {
		t.Errorf("got %v, want the error of writing", err)
	}
}

type failingWriter struct{ err error }

func (f failingWriter) Write([]byte) (int, error) { return 0, f.err }

func FuzzParseHeader(f *testing.F) {
	for _, key := range []*PrivateKey{nil, testKey(1)} {
		h, err := NewHeader(manifestOf(f), key)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(h.Bytes())
		f.Add(h.Bytes()[:40])
	}
	f.Add(header([]byte(`{"version":"1","version":"2","uki":null,"root":{}}`), nil))
	key := testKey(1)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHeader(b)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("error without its class: %v", err)
			}
			return
		}
		if !bytes.Equal(h.Bytes(), b) {
			t.Fatalf("read %q, gives %q", b, h.Bytes())
		}
		if h.UKIAt != int64(len(b)) || h.RootAt <= h.UKIAt || h.Size <= h.RootAt {
			t.Fatalf("parts at %d, %d, end %d of a header of %d", h.UKIAt, h.RootAt, h.Size, len(b))
		}
		if err := h.Manifest.check(); err != nil {
			t.Fatalf("accepted %v", err)
		}
		again, err := ParseHeader(h.Sign(key).Bytes())
		if err != nil || again.Verify([]PublicKey{key.Public()}) != nil || again.Manifest != h.Manifest {
			t.Fatalf("signed anew: %v, %v", again, err)
		}
	})
}
