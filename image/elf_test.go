package main

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// writeTree makes files (content) and links ("-> target") below a new folder.
func writeTree(t *testing.T, files map[string]string) string {
	t.Helper()
	tree := t.TempDir()
	for path, content := range files {
		full := filepath.Join(tree, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(target, full)
		} else {
			err = os.WriteFile(full, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return tree
}

// TestClosure follows a real program of this machine into its libraries: the tree
// is made of the machine's own files.
func TestClosure(t *testing.T) {
	const program = "/usr/bin/gcc" // the builder needs it anyway
	path, err := filepath.EvalSymlinks(program)
	if err != nil {
		t.Skipf("no %s here: %v", program, err)
	}
	needs, err := elfNeeds(path)
	if err != nil {
		t.Fatal(err)
	}
	tree := writeTree(t, map[string]string{
		"usr/bin/thing":                   "-> real",
		"usr/share/text":                  "no ELF file",
		"usr/lib64/ld-linux-x86-64.so.2":  "-> ../lib/x86_64-linux-gnu/loader",
		"usr/lib/x86_64-linux-gnu/loader": "loader",
	})
	want := []string{"usr/bin/real", "usr/bin/thing"}
	if err := copyFile(path, filepath.Join(tree, "usr/bin/real"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, need := range needs {
		if filepath.IsAbs(need) {
			continue
		}
		library := "usr/lib/x86_64-linux-gnu/" + need
		if err := os.WriteFile(filepath.Join(tree, library), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		want = append(want, library)
	}
	want = append(want, "usr/lib/x86_64-linux-gnu/loader", "usr/lib64/ld-linux-x86-64.so.2", "usr/share/text")

	closure := &fileClosure{tree: tree, paths: map[string]bool{}}
	for _, path := range []string{"/bin/thing", "usr/share/text"} {
		if err := closure.add(path); err != nil {
			t.Fatal(err)
		}
	}
	sorted := map[string]bool{}
	for _, path := range want {
		sorted[path] = true
	}
	if diff := cmp.Diff(sorted, closure.paths); diff != "" {
		t.Errorf("closure (-want +got):\n%s", diff)
	}
}

func TestClosureMissing(t *testing.T) {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip(err)
	}
	tree := writeTree(t, map[string]string{"usr/bin/dangling": "-> nowhere"})
	if err := copyFile(gcc, filepath.Join(tree, "usr/bin/alone"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"usr/bin/alone", "usr/bin/dangling", "usr/bin/absent"} {
		closure := &fileClosure{tree: tree, paths: map[string]bool{}}
		if err := closure.add(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("add(%q) = %v, want an error that something is absent", path, err)
		}
	}
}

func TestMergedPath(t *testing.T) {
	for path, want := range map[string]string{
		"bin/sh": "usr/bin/sh", "lib64/x": "usr/lib64/x", "usr/bin/y": "usr/bin/y", "etc/z": "etc/z", "library/a": "library/a",
	} {
		if got := mergedPath(path); got != want {
			t.Errorf("mergedPath(%q) = %q, want %q", path, got, want)
		}
	}
}
