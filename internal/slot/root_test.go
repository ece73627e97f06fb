package slot

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

// uki is a PE file of one section.
func uki(t *testing.T, section, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	dos := make([]byte, 64)
	copy(dos, "MZ")
	dos[0x3c] = 64
	b.Write(dos)
	b.WriteString("PE\x00\x00")
	head := pe.SectionHeader32{VirtualSize: uint32(len(content)), SizeOfRawData: 512, PointerToRawData: 512}
	copy(head.Name[:], section)
	for _, part := range []any{pe.FileHeader{Machine: pe.IMAGE_FILE_MACHINE_AMD64, NumberOfSections: 1}, head} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	b.Write(make([]byte, 512-b.Len()))
	b.WriteString(content)
	b.Write(make([]byte, 512-len(content)))
	return b.Bytes()
}

func TestRootOf(t *testing.T) {
	const line = "quiet capsule.verity=ab12 capsule.verity_offset=4096 panic=10"
	for name, tc := range map[string]struct {
		uki   []byte
		class func(error) bool
	}{
		"ours":      {uki(t, ".cmdline", line), nil},
		"no root":   {uki(t, ".cmdline", "quiet"), errdefs.IsNotFound},
		"no line":   {uki(t, ".linux", line), errdefs.IsDataLoss},
		"no PE":     {[]byte("MZ"), errdefs.IsDataLoss},
		"cut":       {uki(t, ".cmdline", line)[:600], errdefs.IsDataLoss},
		"not there": {nil, errdefs.IsNotFound},
	} {
		dir := t.TempDir()
		if tc.uki != nil {
			if err := os.WriteFile(filepath.Join(dir, "K.EFI"), tc.uki, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, err := RootOf(dir, Entry{UKI: "/k.efi"})
		if tc.class == nil && (err != nil || got != Root{Hash: "ab12", DataBytes: 4096}) || tc.class != nil && !tc.class(err) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}
