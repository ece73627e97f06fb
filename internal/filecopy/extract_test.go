//go:build linux

package filecopy

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, needs root for owners and devices")
	}
}

func packAll(t *testing.T, dir string) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if _, err := PackAll(openRoot(t, dir), w, 1<<30); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// entry is what must be the same after an archive as before it.
type entry struct {
	Mode, UID, GID uint32
	Rdev, Nlink    uint64
	Mtime          unix.Timespec
	Size           int64
	Content        string
	Xattrs         map[string]string
}

func entries(t *testing.T, dir string) map[string]entry {
	t.Helper()
	all := map[string]entry{}
	err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return err
		}
		e := entry{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Rdev: st.Rdev, Mtime: st.Mtim, Xattrs: map[string]string{}}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			e.Content, e.Nlink, e.Size = string(bytes.TrimRight(b, "\x00")), uint64(st.Nlink), st.Size
		case unix.S_IFLNK:
			e.Content, _ = os.Readlink(name)
		}
		list, value := make([]byte, 4096), make([]byte, 4096)
		n, err := unix.Llistxattr(name, list)
		if err != nil {
			n = 0
		}
		for attr := range strings.SplitSeq(string(list[:n]), "\x00") {
			if m, err := unix.Lgetxattr(name, attr, value); err == nil && attr != "" {
				e.Xattrs[attr] = string(value[:m])
			}
		}
		rel, _ := filepath.Rel(dir, name)
		all[rel] = e
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// oddTree has one of everything that a volume may hold.
func oddTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, map[string]string{"d/f": "F", "d/sub/g": "G", "d/ln": "-> f", "gone": "-> /no/such", "bad\xffname": "B", "-rf": "R", "empty/x": ""})
	deep := dir
	for range 30 { // longer than a path may be
		deep = filepath.Join(deep, strings.Repeat("n", 100))
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(deep, 0o700))
	must(os.Link(dir+"/d/f", dir+"/hard"))
	must(os.Link(dir+"/d/f", dir+"/d/sub/hard"))
	must(unix.Mknod(dir+"/fifo", unix.S_IFIFO|0o620, 0))
	must(unix.Mknod(dir+"/char", unix.S_IFCHR|0o640, int(unix.Mkdev(1, 3))))
	must(unix.Mknod(dir+"/block", unix.S_IFBLK|0o600, int(unix.Mkdev(259, 70000))))
	for _, name := range []string{"d/f", "d/sub"} {
		if err := unix.Setxattr(filepath.Join(dir, name), "user.a=b%", []byte("x\x00y"), 0); !errors.Is(err, unix.ENOTSUP) {
			must(err)
		}
		if err := unix.Setxattr(filepath.Join(dir, name), "trusted.t", []byte("z"), 0); !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			must(err)
		}
	}
	hollow, err := os.Create(dir + "/hollow")
	must(err)
	_, err = hollow.WriteAt([]byte("middle"), 5<<20)
	must(errors.Join(err, hollow.Truncate(10<<20+3), hollow.Close()))
	for i, name := range []string{"d/f", "d/sub/g", "d/ln", "fifo", "char", "d/sub", "d", "empty", "."} {
		name = filepath.Join(dir, name)
		must(os.Lchown(name, 1000+i, 4_000_000_000+i))
		if !strings.HasSuffix(name, "ln") {
			must(unix.Chmod(name, uint32(0o2500+i)))
		}
		when := []unix.Timespec{{Sec: int64(1_000_000_000 * (i - 1)), Nsec: 123_456_789}}
		must(unix.UtimesNanoAt(unix.AT_FDCWD, name, append(when, when...), unix.AT_SYMLINK_NOFOLLOW))
	}
	return dir
}

func TestArchiveKeepsAll(t *testing.T) {
	needRoot(t)
	from, to := oddTree(t), t.TempDir()
	tally, err := Extract(openRoot(t, to), nil, tar.NewReader(packAll(t, from)), 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(entries(t, from), entries(t, to)); diff != "" {
		t.Error(diff)
	}
	if tally.Files != 13 || tally.Bytes != 10<<20+3+1+1+1+1 {
		t.Errorf("tally %+v", tally)
	}
	var st unix.Stat_t
	if err := unix.Stat(to+"/hollow", &st); err != nil || st.Blocks*512 > 1<<20 {
		t.Errorf("the holes are filled: %d bytes, %v", st.Blocks*512, err)
	}
}

// A folder deeper than a path may be long.
func TestArchiveDeep(t *testing.T) {
	needRoot(t)
	from, to := t.TempDir(), t.TempDir()
	fd, err := unix.Open(from, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	name := strings.Repeat("n", 200)
	for i := 0; err == nil && i < 40; i++ {
		if err = unix.Mkdirat(fd, name, 0o755); err == nil {
			old := fd
			fd, err = unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
			unix.Close(old)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	if _, err := Extract(openRoot(t, to), nil, tar.NewReader(packAll(t, from)), 1<<30); err != nil {
		t.Fatal(err)
	}
	if a, b := packAll(t, from).Len(), packAll(t, to).Len(); a != b {
		t.Errorf("%d bytes became %d", a, b)
	}
}

func TestArchiveLimit(t *testing.T) {
	from := t.TempDir()
	write(t, from, map[string]string{"a": "1234", "b": "5678"})
	w := tar.NewWriter(io.Discard)
	if _, err := PackAll(openRoot(t, from), w, 7); !errdefs.IsResourceExhausted(err) {
		t.Errorf("packed more than the limit: %v", err)
	}
	if _, err := Extract(openRoot(t, t.TempDir()), nil, tar.NewReader(packAll(t, from)), 7); !errdefs.IsResourceExhausted(err) {
		t.Errorf("extracted more than the limit: %v", err)
	}
}

// No archive leads out of the folder, or over what it has made.
func TestExtractHostile(t *testing.T) {
	needRoot(t)
	dir := func(name string) *tar.Header { return &tar.Header{Typeflag: tar.TypeDir, Name: name} }
	file := func(name string) *tar.Header { return &tar.Header{Typeflag: tar.TypeReg, Name: name} }
	link := func(kind byte, name, target string) *tar.Header {
		return &tar.Header{Typeflag: kind, Name: name, Linkname: target}
	}
	for name, entries := range map[string][]*tar.Header{
		"dots":                {dir("d/"), file("d/../../secret")},
		"dots inside":         {dir("d/"), file("d/../secret")},
		"absolute":            {file("/secret")},
		"folder of dots":      {dir("../x/")},
		"through a link":      {link(tar.TypeSymlink, "ln", ".."), file("ln/secret")},
		"through a link in":   {dir("d/"), link(tar.TypeSymlink, "ln", "d"), file("ln/secret")},
		"folder over a link":  {link(tar.TypeSymlink, "ln", ".."), dir("ln/"), file("ln/secret")},
		"over a link":         {link(tar.TypeSymlink, "ln", "../secret"), file("ln")},
		"over a file":         {file("f"), file("f")},
		"link over a file":    {file("f"), link(tar.TypeSymlink, "f", "x")},
		"file over a folder":  {dir("d/"), file("d")},
		"folder over a file":  {file("f"), dir("f/")},
		"below a file":        {file("f"), file("f/g")},
		"hard link out":       {link(tar.TypeLink, "h", "../secret")},
		"hard link absolute":  {link(tar.TypeLink, "h", "/etc/passwd")},
		"hard link by link":   {link(tar.TypeSymlink, "ln", ".."), link(tar.TypeLink, "h", "ln/secret")},
		"hard link to none":   {link(tar.TypeLink, "h", "later"), file("later")},
		"hard link to itself": {link(tar.TypeLink, "h", "h")},
		"hard link to folder": {dir("d/"), link(tar.TypeLink, "h", "d")},
		"no name":             {file(".")},
		"deep":                {dir(strings.Repeat("d/", depthMax+1))},
		"owner":               {{Typeflag: tar.TypeDir, Name: "d/", Uid: 1<<32 - 1, Format: tar.FormatPAX}},
		"unknown kind":        {{Typeflag: '7', Name: "c"}},
	} {
		t.Run(name, func(t *testing.T) {
			outside := t.TempDir()
			write(t, outside, map[string]string{"secret": "S", "root/in": ""})
			if err := os.Remove(outside + "/root/in"); err != nil {
				t.Fatal(err)
			}
			_, err := Extract(openRoot(t, outside+"/root"), nil, tar.NewReader(stream(t, entries...)), 1<<20)
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("error %v", err)
			}
			for file, text := range tree(t, outside) {
				if file == "secret" && text != "S" || file != "secret" && !strings.HasPrefix(file, "root/") {
					t.Errorf("outside of the root: %s %q", file, text)
				}
			}
		})
	}
}

// Other tars leave folders out, write "./" in front, and put the folder's own
// entry anywhere.
func TestExtractForeign(t *testing.T) {
	needRoot(t)
	to := t.TempDir()
	when := time.Unix(1_000_000_000, 0)
	_, err := Extract(openRoot(t, to), &tar.Header{Typeflag: tar.TypeReg, Name: "./first"}, tar.NewReader(stream(t,
		&tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}},
		&tar.Header{Typeflag: tar.TypeReg, Name: "./a/b/c"},
		&tar.Header{Typeflag: tar.TypeDir, Name: "a", ModTime: when},
		&tar.Header{Typeflag: tar.TypeReg, Name: "z"},
		&tar.Header{Typeflag: tar.TypeLink, Name: "./hard", Linkname: "./a/b/c"},
	)), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"first": "", "a/b/c": "evil", "z": "evil", "hard": "evil"}
	if diff := cmp.Diff(want, tree(t, to)); diff != "" {
		t.Error(diff)
	}
	if st, err := os.Stat(to + "/a"); err != nil || !st.ModTime().Equal(when) {
		t.Errorf("time of a folder that is named after its content: %v %v", st.ModTime(), err)
	}
}

// FuzzExtract: whatever the stream, nothing appears outside, and no panic.
func FuzzExtract(f *testing.F) {
	if os.Geteuid() != 0 {
		f.Skip("SKIPPED, needs root for owners and devices")
	}
	outside := f.TempDir()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []*tar.Header{
		{Typeflag: tar.TypeDir, Name: "./"}, {Typeflag: tar.TypeReg, Name: "f", Size: 4},
		{Typeflag: tar.TypeSymlink, Name: "ln", Linkname: "../.."}, {Typeflag: tar.TypeLink, Name: "h", Linkname: "f"},
		{Typeflag: tar.TypeDir, Name: "d/", PAXRecords: map[string]string{xattrs + "user.x": "y"}},
	} {
		if err := w.WriteHeader(h); err != nil {
			f.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, "text"); err != nil {
				f.Fatal(err)
			}
		}
	}
	w.Close()
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := filepath.Join(outside, "root")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		root, err := OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		if _, err := Extract(root, nil, tar.NewReader(bytes.NewReader(data)), 1<<20); err != nil && err.Error() == "" {
			t.Error("an error without words")
		}
		names, err := os.ReadDir(outside)
		if err != nil || len(names) != 1 {
			t.Errorf("outside of the root: %v %v", names, err)
		}
	})
}
