//go:build linux

package filecopy

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// The published table (IO-12). The destination holds folder "/d" with file
// "f" and folder "sub", file "/file" and folder "/d/name.".
func TestTarget(t *testing.T) {
	there := map[string]Kind{"/": Dir, "/d": Dir, "/d/f": File, "/d/sub": Dir, "/file": File, "/d/name.": Dir}
	kind := func(name string) Kind { return there[path.Clean(name)] }
	for _, tc := range []struct {
		source string
		kind   Kind
		dest   string
		want   string // "" is refused
	}{
		{"f", File, "/new", "/new"},
		{"f", File, "/file", "/file"},
		{"f", File, "/d", "/d/f"},
		{"f", File, "/d/", "/d/f"},
		{"f", File, "/d/.", "/d/./f"},
		{"a/g", File, "/d", "/d/g"},
		{"g", File, "/", "/g"},
		{"name.", File, "/new.", "/new."},
		{"name.", File, "/d", ""}, // a folder of that name is in the way
		{"x.", File, "/d", "/d/x."},
		{"..name", File, "/d", "/d/..name"},
		{"f", File, "/no/", ""},
		{"f", File, "/no/dir/", ""},
		{"f", File, "/no/x", ""},
		{"f", File, "/file/", ""},
		{"f", File, "/file/x", ""},
		{"f", File, "/new/.", ""},
		{"f/", File, "/new", ""},
		{"f/.", File, "/new", ""},
		{"f", File, "", ""},
		{"sub", File, "/d", ""},

		{"e", Dir, "/new", "/new"},
		{"e", Dir, "/new/", "/new"},
		{"e", Dir, "/d", "/d/e"},
		{"e/", Dir, "/d", "/d/e"},
		{"e/.", Dir, "/d", "/d"},
		{"e/.", Dir, "/new", "/new"},
		{".", Dir, "/d", "/d"},
		{"..", Dir, "/d", "/d"},
		{"/", Dir, "/d", "/d"},
		{"e", Dir, "/new/.", ""},
		{"sub", Dir, "/d", "/d/sub"},
		{"f", Dir, "/d", ""},
		{"e", Dir, "/file", ""},
		{"e/.", Dir, "/file", ""},
		{"e", Dir, "/no/x", ""},
		{"e", Dir, "/no/x/", ""},
		{"no", Missing, "/d", ""},
	} {
		got, err := Target(tc.source, tc.kind, tc.dest, kind)
		if got != tc.want || (err != nil) != (tc.want == "") {
			t.Errorf("Target(%q, %d, %q) = %q, %v; want %q", tc.source, tc.kind, tc.dest, got, err, tc.want)
		}
	}
}

func TestBase(t *testing.T) {
	for source, want := range map[string]string{
		"a": "a", "a/b": "b", "a/b/": "b", "a/.": ".", "a/..": ".", "/": ".", "": ".", ".": ".",
		"name.": "name.", "...": "...", "a/.b": ".b", "a//": "a",
	} {
		if got := Base(source); got != want {
			t.Errorf("Base(%q) = %q, want %q", source, got, want)
		}
	}
}

func openRoot(t *testing.T, dir string) *Root {
	t.Helper()
	root, err := OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			err = os.Symlink(target, name)
		} else {
			err = os.WriteFile(name, []byte(text), 0o640)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// tree is what lies below a folder, files with their text.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(dir, name)
		if d.Type()&os.ModeSymlink != 0 {
			target, err := os.Readlink(name)
			files[rel] = "-> " + target
			return err
		}
		b, err := os.ReadFile(name)
		files[rel] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func copyTree(t *testing.T, from *Root, source string, to *Root, dest string) error {
	t.Helper()
	r, w := io.Pipe()
	go func() { w.CloseWithError(Pack(from, source, w)) }()
	_, _, err := Unpack(to, dest, source, r)
	r.CloseWithError(err)
	return err
}

func TestCopy(t *testing.T) {
	for _, tc := range []struct {
		name, source, dest string
		want               map[string]string
	}{
		{"folder into folder", "/d", "/out", map[string]string{"out/d/f": "F", "out/d/sub/g": "G", "out/d/ln": "-> /d/f", "out/old": "O"}},
		{"folder to new name", "/d", "/new", map[string]string{"new/f": "F", "new/sub/g": "G", "new/ln": "-> /d/f", "out/old": "O"}},
		{"contents", "/d/.", "/out", map[string]string{"out/f": "F", "out/sub/g": "G", "out/ln": "-> /d/f", "out/old": "O"}},
		{"file over file", "/d/f", "/out/old", map[string]string{"out/old": "F"}},
		{"link as link", "/d/ln", "/out/", map[string]string{"out/ln": "-> /d/f", "out/old": "O"}},
		{"dot at the end", "/name.", "/x", map[string]string{"x": "N", "out/old": "O"}},
		{"missing folder", "/d/f", "/no/dir/", nil},
		{"file as folder", "/d/f", "/out/old/", nil},
		{"source is no folder", "/d/f/", "/out", nil},
		{"source missing", "/none", "/out", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			from, to := t.TempDir(), t.TempDir()
			write(t, from, map[string]string{"d/f": "F", "d/sub/g": "G", "d/ln": "-> /d/f", "name.": "N"})
			write(t, to, map[string]string{"out/old": "O"})
			err := copyTree(t, openRoot(t, from), tc.source, openRoot(t, to), tc.dest)
			want := tc.want
			if want == nil {
				want = map[string]string{"out/old": "O"}
				if err == nil {
					t.Error("not refused")
				}
			} else if err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(want, tree(t, to)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestMetadata(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, needs root to set owners")
	}
	from, to := t.TempDir(), t.TempDir()
	write(t, from, map[string]string{"d/f": "F", "d/sub/g": "G", "d/ln": "-> f"})
	if err := os.Link(from+"/d/f", from+"/d/hard"); err != nil {
		t.Fatal(err)
	}
	when := unix.Timespec{Sec: 1_000_000_000, Nsec: 123_456_789}
	for i, name := range []string{"d/f", "d/sub/g", "d/ln", "d/sub", "d"} {
		name = filepath.Join(from, name)
		if err := os.Lchown(name, 1000+i, 2000+i); err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(name, "ln") {
			if err := unix.Chmod(name, uint32(0o4750+i)); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{when, when}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatal(err)
		}
	}
	if err := copyTree(t, openRoot(t, from), "/d", openRoot(t, to), "/"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"d", "d/f", "d/hard", "d/sub", "d/sub/g", "d/ln"} {
		var a, b unix.Stat_t
		if err := errors.Join(unix.Lstat(filepath.Join(from, name), &a), unix.Lstat(filepath.Join(to, name), &b)); err != nil {
			t.Fatal(err)
		}
		if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Mtim != b.Mtim || a.Mode&unix.S_IFMT == unix.S_IFREG && a.Nlink != b.Nlink {
			t.Errorf("%s differs:\n%+v\n%+v", name, a, b)
		}
	}
}

func stream(t *testing.T, entries ...*tar.Header) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		if h.Typeflag == tar.TypeReg {
			h.Size = 4
		}
		if h.Typeflag != tar.TypeXGlobalHeader {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte("evil")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// Nothing in a stream or a tree leads out of the root.
func TestHostile(t *testing.T) {
	dir := func(name string) *tar.Header { return &tar.Header{Typeflag: tar.TypeDir, Name: name} }
	file := func(name string) *tar.Header { return &tar.Header{Typeflag: tar.TypeReg, Name: name} }
	link := func(kind byte, name, target string) *tar.Header {
		return &tar.Header{Typeflag: kind, Name: name, Linkname: target}
	}
	for name, tc := range map[string]struct {
		entries []*tar.Header
		refused bool
	}{
		"dots":              {[]*tar.Header{dir("d/"), file("d/../../secret")}, true},
		"absolute":          {[]*tar.Header{dir("d/"), file("/secret")}, true},
		"dots in contents":  {[]*tar.Header{dir("./"), file("../secret")}, true},
		"through own link":  {[]*tar.Header{dir("d/"), link(tar.TypeSymlink, "d/ln", "../.."), file("d/ln/secret")}, false},
		"over own link":     {[]*tar.Header{dir("d/"), link(tar.TypeSymlink, "d/ln", "../../secret"), file("d/ln")}, false},
		"through old link":  {[]*tar.Header{dir("d/"), file("d/up/secret")}, false},
		"hard link":         {[]*tar.Header{dir("d/"), link(tar.TypeLink, "d/h", "d/../../secret"), file("d/h")}, true},
		"hard link by link": {[]*tar.Header{dir("d/"), link(tar.TypeLink, "d/h", "d/up/secret")}, true},
		"device":            {[]*tar.Header{dir("d/"), link(tar.TypeBlock, "d/sda", "")}, true},
		"empty":             {nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			outside := t.TempDir()
			write(t, outside, map[string]string{"secret": "S", "root/d/up": "-> ../..", "root/d/abs": "-> " + outside})
			_, _, err := Unpack(openRoot(t, outside+"/root"), "/", "d", stream(t, tc.entries...))
			if name == "dots in contents" {
				_, _, err = Unpack(openRoot(t, outside+"/root"), "/", ".", stream(t, tc.entries...))
			}
			if (err != nil) != tc.refused {
				t.Errorf("error %v, want refused %v", err, tc.refused)
			}
			b, _ := os.ReadFile(outside + "/secret")
			var names []string
			entries, _ := os.ReadDir(outside)
			for _, e := range entries {
				names = append(names, e.Name())
			}
			sort.Strings(names)
			if string(b) != "S" || !cmp.Equal(names, []string{"root", "secret"}) {
				t.Errorf("outside of the root: %q, secret %q", names, b)
			}
		})
	}
}

func TestPackStaysInside(t *testing.T) {
	outside := t.TempDir()
	write(t, outside, map[string]string{"secret": "S", "root/up": "-> ../secret", "root/dir": "-> .."})
	root := openRoot(t, outside+"/root")
	var b bytes.Buffer
	if err := Pack(root, "/dir/../../secret", &b); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("got %v, want not found", err)
	}
	b.Reset()
	if err := Pack(root, "/dir/.", &b); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b.Bytes(), []byte("secret\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00S")) {
		t.Error("the stream holds what is outside")
	}
}

func FuzzUnpack(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o755})
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "d/f", Mode: 0o644, Size: 2})
	_, _ = w.Write([]byte("hi"))
	_ = w.Close()
	f.Add(b.Bytes(), "d", "/")
	f.Fuzz(func(t *testing.T, data []byte, source, dest string) {
		outside := t.TempDir()
		if err := os.Mkdir(outside+"/root", 0o755); err != nil {
			t.Fatal(err)
		}
		root, err := OpenRoot(outside + "/root")
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		_, _, _ = Unpack(root, dest, source, bytes.NewReader(data))
		if entries, _ := os.ReadDir(outside); len(entries) != 1 {
			t.Fatal("something was made outside of the root")
		}
	})
}
