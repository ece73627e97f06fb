package drivertest

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"capsule/internal/filecopy"
	"capsule/internal/workload"
)

// copy checks IO-12 through a driver; package filecopy holds the whole table.
func (s *suite) copy(t *testing.T) {
	in := s.instance("mkdir", "/d/sub", "then", "write", "/d/name.", "dot", "then", "write", "/file", "old", "then", "print", "ready", "then", "sleep", "10h")
	open, _ := s.Volume(t, nil)
	shut, _ := s.Volume(t, nil)
	in.Mounts = []workload.Mount{at(open, "/mnt"), readOnly(at(shut, "/ro"))}
	s.start(t, in)
	s.printed(t, in, "ready")

	local := t.TempDir()
	root, err := filecopy.OpenRoot(local)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := os.MkdirAll(filepath.Join(local, "src/deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"f": "new", "src/a": "A", "src/deep/b": "B"} {
		if err := os.WriteFile(filepath.Join(local, name), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	to := func(source, dest string) error {
		r, w := io.Pipe()
		go func() { w.CloseWithError(filecopy.Pack(root, source, w)) }()
		_, _, err := s.driver.CopyTo(t.Context(), in.ID, dest, source, r)
		r.CloseWithError(err)
		return err
	}
	from := func(source, dest string) error {
		r, w := io.Pipe()
		go func() { w.CloseWithError(s.driver.CopyFrom(t.Context(), in.ID, source, w)) }()
		_, _, err := filecopy.Unpack(root, dest, source, r)
		r.CloseWithError(err)
		return err
	}
	for _, tc := range []struct {
		source, dest string
		refused      bool
		check        string // file in the instance
		text         string
	}{
		{"f", "/file", false, "/file", "new"},
		{"f", "/d", false, "/d/f", "new"},
		{"f", "/no/dir/", true, "", ""},
		{"f", "/file/", true, "", ""},
		{"src", "/d", false, "/d/src/deep/b", "B"},
		{"src/.", "/d", false, "/d/deep/b", "B"},
		{"f", "/mnt/f", false, "/mnt/f", "new"},
		{"f", "/ro/g", true, "", ""},
	} {
		if err := to(tc.source, tc.dest); (err != nil) != tc.refused {
			t.Errorf("cp %s w:%s: %v", tc.source, tc.dest, err)
		}
		if tc.check == "" {
			continue
		}
		if code, out, errs := s.command(t, in.ID, payload("cat", tc.check)); code != 0 || out != tc.text {
			t.Errorf("cp %s w:%s: %s is %q %q", tc.source, tc.dest, tc.check, out, errs)
		}
	}
	if _, out, _ := s.command(t, in.ID, payload("ls", "/")); strings.Contains(out, "no\n") {
		t.Errorf("a refused copy made something: %q", out)
	}
	if err := os.Mkdir(filepath.Join(local, "out"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ source, dest, check, text string }{
		{"/d/name.", "/x", "x", "dot\n"},
		{"/d/.", "/out/", "out/name.", "dot\n"},
		{"/d", "/out", "out/d/name.", "dot\n"},
		{"/d", "/fresh", "fresh/src/a", "A"},
		{"/mnt/f", "/fromMount", "fromMount", "new"},
	} {
		if err := from(tc.source, tc.dest); err != nil {
			t.Errorf("cp w:%s %s: %v", tc.source, tc.dest, err)
			continue
		}
		if b, err := os.ReadFile(filepath.Join(local, tc.check)); string(b) != tc.text {
			t.Errorf("cp w:%s %s: %s is %q, %v", tc.source, tc.dest, tc.check, b, err)
		}
	}
	if err := from("/nothing", "/x"); err == nil {
		t.Error("a missing source is copied")
	}
}
