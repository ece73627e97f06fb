package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
)

// filled makes a closed store of some size with its copy.
func filled(t testing.TB) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.db")
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	var objs []*v1.Object
	for i := range 40 {
		objs = append(objs, container(fmt.Sprint("w", i), fmt.Sprintf("registry.lan/%0500d", i)))
	}
	objs[7].GetWorkload().Spec.Env["LONG"] = string(make([]byte, 20000)) // pages of overflow
	if _, err := s.Apply(t.Context(), objs, false, nil); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Bucket("b").Put("k", []byte("v")), s.Close()); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func write(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.db")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTruncated(t *testing.T) {
	data := filled(t)
	for _, size := range []int{0, 1, 100, 4095, 4096, 8192, 3 * 4096, len(data) / 2, len(data) / 3} {
		if _, err := Open(write(t, data[:size])); !errors.Is(err, ErrUnreadable) {
			t.Errorf("%d bytes of %d: %v", size, len(data), err)
		}
	}
}

// Any page zeroed or torn: all is still there, or the store is unreadable; it
// is never an empty or a smaller machine, a hang or a crash.
func TestDamagedPages(t *testing.T) {
	data := filled(t)
	for page := range len(data) / 4096 {
		for name, damage := range map[string]func([]byte){
			"zeroed": func(p []byte) { clear(p) },
			"torn":   func(p []byte) { clear(p[512:]) },
			"ones": func(p []byte) {
				for i := range p {
					p[i] = 0xFF
				}
			},
		} {
			bad := append([]byte(nil), data...)
			damage(bad[page*4096:][:4096])
			s, err := Open(write(t, bad))
			if errors.Is(err, ErrUnreadable) {
				continue
			}
			if err != nil {
				t.Errorf("page %d %s: %v", page, name, err)
				continue
			}
			if all, err := s.List(""); err != nil || len(all) != 40 {
				t.Errorf("page %d %s: %d objects, %v", page, name, len(all), err)
			}
			_ = s.Close()
		}
	}
}

// A torn write of one meta page loses at most the last transaction.
func TestOneMetaPageIsEnough(t *testing.T) {
	data := filled(t)
	for page := range 2 {
		bad := append([]byte(nil), data...)
		clear(bad[page*4096:][:4096])
		if err := verify(write(t, bad)); err != nil {
			t.Errorf("without meta page %d: %v", page, err)
		}
	}
}

func TestCopy(t *testing.T) {
	s, path := openTemp(t)
	apply(t, s, container("a", "web:1"))
	if err := s.Close(); err != nil { // makes the copy
		t.Fatal(err)
	}
	copied, err := OpenCopy(path)
	if err != nil {
		t.Fatal(err)
	}
	if obj, err := copied.Get("", "a"); err != nil || obj.GetWorkload().Spec.Image != "web:1" {
		t.Error(obj, err)
	}
	_, applyErr := copied.Apply(t.Context(), []*v1.Object{container("b", "x")}, true, nil)
	for _, err := range []error{applyErr, copied.Delete("", "a"), copied.Bucket("b").Put("k", nil), copied.PutStatus("u", nil)} {
		if !errdefs.IsFailedPrecondition(err) {
			t.Errorf("a copy was written to: %v", err)
		}
	}
	if err := copied.Close(); err != nil {
		t.Error(err)
	}

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, ErrUnreadable) {
		t.Errorf("a lost store is not a new machine: %v", err)
	}
	if _, err := OpenCopy(filepath.Join(t.TempDir(), "none")); !errors.Is(err, ErrUnreadable) {
		t.Error(err)
	}
}

func TestCopyKeepsTheGoodOne(t *testing.T) {
	s, path := openTemp(t)
	apply(t, s, container("a", "web:1"))
	if err := s.Copy(); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path+CopySuffix+".new", 0o700); err != nil { // can't be written
		t.Fatal(err)
	}
	if err := s.Copy(); err == nil {
		t.Error("no error")
	}
	copied, err := OpenCopy(path)
	if err != nil {
		t.Fatal(err)
	}
	_ = copied.Close()
}

func FuzzVerify(f *testing.F) {
	data := filled(f)
	f.Add(0, []byte{0}, len(data))
	f.Add(4096*3+10, []byte{1, 0, 0xFF}, len(data))
	f.Fuzz(func(t *testing.T, at int, patch []byte, size int) {
		bad := append([]byte(nil), data...)
		if at >= 0 && at < len(bad) {
			copy(bad[at:], patch)
		}
		if size >= 0 && size < len(bad) {
			bad = bad[:size]
		}
		s, err := Open(write(t, bad))
		if err == nil {
			_ = s.Close()
		} else if !errors.Is(err, ErrUnreadable) {
			t.Error(err)
		}
	})
}
