package volume

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	v1 "capsule/api/capsule/v1"
)

// photos is a folder with some content, also such that can't be compressed.
func photos(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	noise := make([]byte, 300_000)
	x := uint32(1)
	for i := range noise {
		x = x*1664525 + 1013904223
		noise[i] = byte(x >> 24)
	}
	for name, b := range map[string][]byte{"a.txt": []byte("hello"), "sub/noise": noise, "sub/zeros": make([]byte, 1<<20)} {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o750), os.WriteFile(name, b, 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func exportOf(t testing.TB, dir string) ([]byte, *v1.ArchiveEnd) {
	t.Helper()
	var b bytes.Buffer
	end, err := writeArchive(dir, 64<<20, &b)
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), end
}

// read is what import does to a stream; into an empty folder.
func read(t testing.TB, dir string, r io.Reader, end *v1.ArchiveEnd) (files uint64, size int64, err error) {
	t.Helper()
	a, err := openArchive(r)
	if err != nil {
		return 0, 0, err
	}
	defer a.close()
	files, err = a.extract(dir, 64<<20)
	if err == nil && end != nil {
		err = a.matches(end)
	}
	return files, a.size, err
}

func content(t testing.TB, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		rel, _ := filepath.Rel(dir, name)
		files[rel] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, needs root to set owners")
	}
}

func TestArchive(t *testing.T) {
	needRoot(t)
	from, to := photos(t), t.TempDir()
	b, end := exportOf(t, from)
	if end.Bytes != int64(len(b)) || end.Files != 3 {
		t.Errorf("end %v of %d bytes", end, len(b))
	}
	files, size, err := read(t, to, iotest.HalfReader(bytes.NewReader(b)), end)
	if err != nil || files != 3 || size != 64<<20 {
		t.Fatalf("files %d, size %d, %v", files, size, err)
	}
	if diff := cmp.Diff(content(t, from), content(t, to)); diff != "" {
		t.Error(diff)
	}
}

// Whatever is cut off or changed is seen, without the checksum that the sender
// adds: it may be sending what it has only a part of.
func TestArchiveDamaged(t *testing.T) {
	needRoot(t)
	b, end := exportOf(t, photos(t))
	step := len(b)/40 + 1
	if testing.Short() {
		step = len(b)/8 + 1
	}
	for n := 0; n < len(b); n += step {
		if _, _, err := read(t, t.TempDir(), bytes.NewReader(b[:n]), nil); !errdefs.IsInvalidArgument(err) {
			t.Errorf("cut at %d of %d: %v", n, len(b), err)
		}
		flipped := bytes.Clone(b)
		flipped[n] ^= 1 << (n % 8)
		if _, _, err := read(t, t.TempDir(), bytes.NewReader(flipped), end); err == nil {
			t.Errorf("a bit changed at %d was not seen", n)
		}
	}
	for name, bad := range map[string][]byte{
		"last byte missing": b[:len(b)-1], "more after it": append(bytes.Clone(b), "more"...),
		"twice": append(bytes.Clone(b), b...), "no archive": []byte("PK\x03\x04 hello, this is something else"), "nothing": nil,
	} {
		if _, _, err := read(t, t.TempDir(), bytes.NewReader(bad), nil); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	other := &v1.ArchiveEnd{Bytes: end.Bytes, Sha256: make([]byte, 32)}
	if _, _, err := read(t, t.TempDir(), bytes.NewReader(b), other); !errdefs.IsDataLoss(err) {
		t.Errorf("wrong checksum: %v", err)
	}
	if _, _, err := read(t, t.TempDir(), bytes.NewReader(b), &v1.ArchiveEnd{Bytes: end.Bytes + 1, Sha256: end.Sha256}); !errdefs.IsDataLoss(err) {
		t.Errorf("wrong length: %v", err)
	}
}

// A connection that breaks is told from an archive that is broken.
func TestArchiveInterrupted(t *testing.T) {
	needRoot(t)
	b, _ := exportOf(t, photos(t))
	gone := errors.New("the other end hung up")
	for _, n := range []int{0, 10, len(b) / 2, len(b)} {
		r := io.MultiReader(bytes.NewReader(b[:n]), iotest.ErrReader(gone))
		if _, _, err := read(t, t.TempDir(), r, nil); !errors.Is(err, gone) || errdefs.IsInvalidArgument(err) {
			t.Errorf("broken off after %d of %d: %v", n, len(b), err)
		}
	}
	w := &cutWriter{left: 1000}
	if _, err := writeArchive(photos(t), 64<<20, w); !errors.Is(err, errNoReader) {
		t.Errorf("export to a closed end: %v", err)
	}
}

var errNoReader = errors.New("no reader")

type cutWriter struct{ left int }

func (w *cutWriter) Write(b []byte) (int, error) {
	if w.left -= len(b); w.left < 0 {
		return 0, errNoReader
	}
	return len(b), nil
}

// packed is a tar in zstd as others make it.
func packed(t testing.TB, end bool, head map[string]string, entries ...*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	if head != nil {
		entries = append([]*tar.Header{{Typeflag: tar.TypeXGlobalHeader, PAXRecords: head}}, entries...)
	}
	for _, h := range entries {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(w, zeroReader{}, h.Size); err != nil {
			t.Fatal(err)
		}
	}
	if end {
		err = w.Close()
	} else {
		err = w.Flush()
	}
	if err := errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type zeroReader struct{}

func (zeroReader) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestArchiveHead(t *testing.T) {
	needRoot(t)
	file := &tar.Header{Typeflag: tar.TypeReg, Name: "f", Size: 2048, Mode: 0o644}
	for _, tc := range []struct {
		name string
		in   []byte
		size int64
		want string // part of the error; "" is none
	}{
		{"ours", packed(t, true, map[string]string{keyFormat: "1", keySize: "1000"}, file), 1000, ""},
		{"of another tar", packed(t, true, nil, file), 0, ""},
		{"of another tar with a comment", packed(t, true, map[string]string{"comment": "x"}, file), 0, ""},
		{"newer", packed(t, true, map[string]string{keyFormat: "2", keySize: "1000"}, file), 0, "update the capsule"},
		{"no size", packed(t, true, map[string]string{keyFormat: "1"}, file), 0, "names the size"},
		{"negative size", packed(t, true, map[string]string{keyFormat: "1", keySize: "-4"}, file), 0, "names the size"},
		{"huge size", packed(t, true, map[string]string{keyFormat: "1", keySize: strings.Repeat("9", 90)}, file), 0, "names the size"},
		{"whole frame without the end", packed(t, false, map[string]string{keyFormat: "1", keySize: "1000"}, file), 1000, "end is missing"},
		{"escape", packed(t, true, nil, &tar.Header{Typeflag: tar.TypeReg, Name: "../f"}), 0, "leads out"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, size, err := read(t, t.TempDir(), bytes.NewReader(tc.in), nil)
			if size != tc.size && err == nil {
				t.Errorf("size %d, want %d", size, tc.size)
			}
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}

// A few bytes that stand for many are refused before they are written.
func TestArchiveBomb(t *testing.T) {
	needRoot(t)
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "f", Size: hollowMin + 1, Format: tar.FormatPAX}); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := read(t, t.TempDir(), &b, nil); !errdefs.IsResourceExhausted(err) {
		t.Errorf("error %v", err)
	}
}

// Other programs may ask for more memory than we give.
func TestArchiveWindow(t *testing.T) {
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, zstd.WithWindowSize(2*windowMax), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(z, zeroReader{}, 3*windowMax); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := read(t, t.TempDir(), &b, nil); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "without --long") {
		t.Errorf("error %v", err)
	}
}

// FuzzArchive: no stream makes anything outside of its folder, and only a whole
// archive is without error.
func FuzzArchive(f *testing.F) {
	needRoot(f)
	b, _ := exportOf(f, f.TempDir())
	f.Add(b)
	f.Add(packed(f, true, nil, &tar.Header{Typeflag: tar.TypeSymlink, Name: "ln", Linkname: ".."}, &tar.Header{Typeflag: tar.TypeReg, Name: "ln/f"}))
	f.Add(packed(f, false, map[string]string{keyFormat: "1", keySize: "4194304"}, &tar.Header{Typeflag: tar.TypeReg, Name: "f", Size: 10}))
	outside := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := filepath.Join(outside, "data")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		_, size, err := read(t, dir, bytes.NewReader(data), nil)
		if err == nil && size < 0 || err != nil && err.Error() == "" {
			t.Errorf("size %d, error %v", size, err)
		}
		names, err := os.ReadDir(outside)
		if err != nil || len(names) != 1 {
			t.Errorf("outside of the folder: %v %v", names, err)
		}
	})
}

// packedNoise is a foreign archive of one file that can't be compressed.
func packedNoise(t testing.TB, size int) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "f", Size: int64(size), Mode: 0o600}); err != nil {
		t.Fatal(err)
	}
	part := noise(1 << 20)
	for left := size; left > 0; left -= len(part) {
		part = part[:min(left, len(part))]
		binary.LittleEndian.PutUint64(part[:8], uint64(left)) // none is like another
		if _, err := w.Write(part); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
