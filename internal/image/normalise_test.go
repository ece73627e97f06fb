package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"capsule/internal/imagetest"
)

// plenty is a disk that is never full.
func plenty() (int64, error) { return 1 << 40, nil }

// listed writes each entry of a tar as one line.
func listed(t *testing.T, data []byte) (lines []string) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return lines
		}
		if err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("%c %s %o %d", h.Typeflag, h.Name, h.Mode, h.Size)
		if h.Linkname != "" {
			line += " -> " + h.Linkname
		}
		for key := range h.PAXRecords {
			if strings.HasPrefix(key, "SCHILY") {
				line += " " + key
			}
		}
		lines = append(lines, line)
	}
}

func TestNormaliser(t *testing.T) {
	tests := []struct {
		name  string
		layer *imagetest.Layer
		want  []string
	}{
		{"folders left out", imagetest.NewLayer().File("a/b/f", 0o644, "x"),
			[]string{"5 a/ 755 0", "5 a/b/ 755 0", "0 a/b/f 644 1"}},
		{"paths that climb", imagetest.NewLayer().File("../../f", 0o644, "x").File("./a/../g", 0o644, "x"),
			[]string{"0 f 644 1", "0 g 644 1"}},
		{"below a link", imagetest.NewLayer().Dir("usr", 0o755).Dir("usr/lib", 0o755).Symlink("lib", "usr/lib").File("lib/x", 0o644, "x").Link("y", "lib/x"),
			[]string{"5 usr/ 755 0", "5 usr/lib/ 755 0", "2 lib 777 0 -> usr/lib", "0 usr/lib/x 644 1", "1 y 644 0 -> usr/lib/x"}},
		{"a link out of the root", imagetest.NewLayer().Symlink("l", "../../etc").File("l/f", 0o644, "x"),
			[]string{"2 l 777 0 -> ../../etc", "5 etc/ 755 0", "0 etc/f 644 1"}},
		{"a link to the root", imagetest.NewLayer().Symlink("l", "/").File("l/f", 0o644, "x"),
			[]string{"2 l 777 0 -> /", "0 f 644 1"}},
		{"the root itself", imagetest.NewLayer().Dir(".", 0o700), []string{"5 ./ 700 0"}},
		{"attributes", imagetest.NewLayer().Xattr("trusted.overlay.redirect", "/x").Dir("a", 0o755).Xattr("user.k", "v").File("f", 0o4755, "x"),
			[]string{"5 a/ 755 0", "0 f 4755 1 SCHILY.xattr.user.k"}},
		{"sparse", imagetest.NewLayer().Sparse("s", 1000, "x"), []string{"0 s 644 1000"}},
		{"whiteouts", imagetest.NewLayer().Dir("d", 0o755).Whiteout("d/x").Opaque("d").File(".wh..wh.plnk/1", 0o600, "").File(".wh..wh.aufs", 0o600, ""),
			[]string{"5 d/ 755 0", "0 d/.wh.x 600 0", "0 d/.wh..wh..opq 600 0"}},
		{"devices", imagetest.NewLayer().Entry(tar.Header{Typeflag: tar.TypeFifo, Name: "p", Mode: 0o600}, nil),
			[]string{"6 p 600 0"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := newNormaliser(&out, plenty, nil).copy(tar.NewReader(bytes.NewReader(test.layer.Tar()))); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, listed(t, out.Bytes())); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestNormaliserRefuses(t *testing.T) {
	full := func() (int64, error) { return spaceReserve + 10, nil }
	tests := []struct {
		name  string
		layer *imagetest.Layer
		free  func() (int64, error)
		class func(error) bool
		want  string
	}{
		{"hides nothing", imagetest.NewLayer().File("d/.wh.", 0o600, ""), plenty, errdefs.IsInvalidArgument, "hides no name"},
		{"hides its folder", imagetest.NewLayer().File("d/.wh..", 0o600, ""), plenty, errdefs.IsInvalidArgument, "hides no name"},
		{"link to nothing", imagetest.NewLayer().Link("a", "b"), plenty, errdefs.IsInvalidArgument, `"b"`},
		{"loop", imagetest.NewLayer().Symlink("a", "b").Symlink("b", "a").File("a/f", 0o644, ""), plenty, errdefs.IsInvalidArgument, "too many links"},
		{"root as a file", imagetest.NewLayer().File(".", 0o644, "x"), plenty, errdefs.IsInvalidArgument, "no folder"},
		{"full disk", imagetest.NewLayer().File("f", 0o644, "0123456789"), full, errdefs.IsResourceExhausted, "10 B"},
		{"large", imagetest.NewLayer().Sparse("f", 64<<30, "x"), plenty, errdefs.IsInvalidArgument, "64 GiB"},
		{"large in sum", imagetest.NewLayer().File("e", 0o600, "x").Sparse("f", 32<<30, "x"), plenty, errdefs.IsInvalidArgument, "32 GiB"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := newNormaliser(io.Discard, test.free, nil).copy(tar.NewReader(bytes.NewReader(test.layer.Tar())))
			if err == nil || !test.class(err) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v", err)
			}
		})
	}
}
