package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	guestv1 "capsule/api/capsule/guest/v1"
	"capsule/internal/process"
)

func TestFiles(t *testing.T) {
	image, dir := t.TempDir(), filepath.Join(t.TempDir(), "files")
	passwd := fmt.Sprintf("me:x:%d:%d::/:/bin/sh\n", os.Getuid(), os.Getgid())
	if err := os.MkdirAll(filepath.Join(image, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(image, "etc/passwd"), []byte(passwd), 0o644); err != nil {
		t.Fatal(err)
	}
	fs, err := process.OpenFS(image)
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
	program := process.Account{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	got, err := addFiles(dir, fs, program, []*guestv1.File{
		{Path: "/etc/key", Content: []byte("secret"), Mode: 0o400}, {Path: "/etc/conf", Mode: 0o644, Owner: "me"},
	})
	if err != nil {
		t.Fatal(err)
	}
	key, conf := filepath.Join(dir, "0"), filepath.Join(dir, "1")
	want := []showing{{Source: key, Path: "/etc/key", ReadOnly: true}, {Source: conf, Path: "/etc/conf", ReadOnly: true}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for path, mode := range map[string]os.FileMode{key: 0o400, conf: 0o644} {
		if info, err := os.Stat(path); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	for text, f := range map[string]*guestv1.File{
		`"ghost"`: {Path: "/f", Owner: "ghost"}, `"f"`: {Path: "f"}, `"/"`: {Path: "/"}, "mode 4755": {Path: "/f", Mode: 0o4755},
	} {
		if _, err := addFiles(dir, fs, program, []*guestv1.File{f}); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v: %v, want %s", f, err, text)
		}
	}
}
