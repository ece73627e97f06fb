package slot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func TestOrder(t *testing.T) {
	for _, tc := range []struct{ entry, hint, want string }{
		{"", "", "slot_a slot_b"},
		{"capsule-slot_b.conf", "slot_a", "slot_b slot_a"},
		{"Capsule-Slot_B+2-1.conf", "", "slot_b slot_a"},
		{"capsule-slot_b-7.conf", "slot_a", "slot_b slot_a"},
		{"", "slot_b", "slot_b slot_a"},
		{"other.conf", "/dev/sda", "slot_a slot_b"},
	} {
		if got := strings.Join(Order(tc.entry, tc.hint), " "); got != tc.want {
			t.Errorf("Order(%q, %q) = %q, want %q", tc.entry, tc.hint, got, tc.want)
		}
	}
}

func TestBlessedName(t *testing.T) {
	for name, want := range map[string]string{
		"capsule-slot_a+3-0.conf": "capsule-slot_a.conf",
		"capsule-slot_a+2.conf":   "capsule-slot_a.conf",
		"capsule-slot_a+0-12.efi": "capsule-slot_a.efi",
		"capsule-slot_a.conf":     "capsule-slot_a.conf",
		"a+b.conf":                "a+b.conf",
	} {
		if got := blessedName(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if got := blessedName(EntryName("slot_b", 3)); got != "capsule-slot_b.conf" {
		t.Error(got)
	}
}

func TestCountPath(t *testing.T) {
	if got, err := countPath(`\loader\entries\capsule-slot_a+2-1.conf`); err != nil || got != "loader/entries/capsule-slot_a+2-1.conf" {
		t.Error(got, err)
	}
	for _, bad := range []string{``, `\..\x`, `\loader\..\..\x`} {
		if _, err := countPath(bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// slotImage is a slot with two blocks of data, and its root hash.
func slotImage() ([]byte, string) {
	salt := []byte("salt")
	b := make([]byte, 4*blockSize)
	copy(b, "data")
	super := b[2*blockSize:]
	le := binary.LittleEndian
	copy(super, superMagic)
	le.PutUint32(super[8:], 1)
	le.PutUint32(super[12:], 1)
	copy(super[32:], "sha256")
	le.PutUint32(super[64:], blockSize)
	le.PutUint32(super[68:], blockSize)
	le.PutUint64(super[72:], 2)
	le.PutUint16(super[80:], uint16(len(salt)))
	copy(super[88:], salt)
	top := b[3*blockSize:]
	for i := range 2 {
		h := sha256.Sum256(append(bytes.Clone(salt), b[i*blockSize:(i+1)*blockSize]...))
		copy(top[i*sha256.Size:], h[:])
	}
	root := sha256.Sum256(append(bytes.Clone(salt), top...))
	return b, hex.EncodeToString(root[:])
}

func TestReadVerity(t *testing.T) {
	image, root := slotImage()
	v, err := ReadVerity(bytes.NewReader(image), 2*blockSize, root)
	if err != nil {
		t.Fatal(err)
	}
	want := "1 253:2 253:2 4096 4096 2 3 sha256 " + root + " 73616c74 1 panic_on_corruption"
	if diff := cmp.Diff(want, v.table("253:2")); diff != "" {
		t.Error(diff)
	}
	for name, tc := range map[string]struct {
		hurt   func(b []byte)
		offset int64
		root   string
		class  func(error) bool
	}{
		"other system":     {func([]byte) {}, 2 * blockSize, strings.Repeat("00", 32), errdefs.IsNotFound},
		"empty slot":       {func(b []byte) { clear(b) }, 2 * blockSize, root, errdefs.IsNotFound},
		"changed tree":     {func(b []byte) { b[3*blockSize]++ }, 2 * blockSize, root, errdefs.IsNotFound},
		"other kind":       {func(b []byte) { b[2*blockSize+8]++ }, 2 * blockSize, root, errdefs.IsDataLoss},
		"tree in the data": {func(b []byte) { b[2*blockSize+72] = 9 }, 2 * blockSize, root, errdefs.IsDataLoss},
		"odd offset":       {func([]byte) {}, 100, root, errdefs.IsInvalidArgument},
		"no hash":          {func([]byte) {}, 2 * blockSize, "xyz", errdefs.IsInvalidArgument},
	} {
		b := bytes.Clone(image)
		tc.hurt(b)
		if _, err := ReadVerity(bytes.NewReader(b), tc.offset, tc.root); !tc.class(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzReadVerity(f *testing.F) {
	image, root := slotImage()
	f.Add(image[2*blockSize : 2*blockSize+superLen])
	f.Fuzz(func(t *testing.T, super []byte) {
		b := bytes.Clone(image)
		copy(b[2*blockSize:], super)
		if v, err := ReadVerity(bytes.NewReader(b), 2*blockSize, root); err == nil {
			_ = v.table("1:1")
		}
	})
}
