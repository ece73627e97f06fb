package contexts

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func TestStore(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resolve(""); !errors.Is(err, ErrNone) {
		t.Errorf("no current context: %v", err)
	}
	a := Context{Name: "a", Host: "10.0.0.1:50000", CA: "ca\n", Certificate: "cert\n", Key: "key\n"}
	b := Context{Name: "b", Host: "10.0.0.2:50000", Key: "other\n"}
	for _, c := range []Context{a, b} {
		if err := s.Put(c); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Use("a"); err != nil {
		t.Fatal(err)
	}
	elsewhere := a
	elsewhere.Host = "10.0.0.3:50000"
	for named, want := range map[string]Context{"": a, "b": b, "10.0.0.2:50000": b, "10.0.0.3": elsewhere} {
		got, err := s.Resolve(named)
		if err != nil {
			t.Errorf("resolve %q: %v", named, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("resolve %q: %s", named, diff)
		}
	}
	second := a
	second.Name, second.Host = "second", b.Host
	if err := errors.Join(s.Put(second), s.Use("second")); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Resolve(b.Host); err != nil || got.Name != "second" {
		t.Errorf("an address of two, of which one is current: %q, %v", got.Name, err)
	}
	if err := s.Use("a"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resolve("nosuch"); !errdefs.IsNotFound(err) {
		t.Errorf("resolve an unknown name: %v", err)
	}
	if err := s.Put(Context{Name: "../x", Host: "h"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a name that leaves the folder: %v", err)
	}
	info, err := os.Stat(filepath.Join(dir, "contexts", "a.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("mode of keys %v", got)
	}
	if err := s.Delete("a"); err != nil {
		t.Fatal(err)
	}
	if current, err := s.Current(); err != nil || current != "" {
		t.Errorf("current after its deletion: %q, %v", current, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("host: 10.0.0.1:50000\nca: x\n"))
	f.Add([]byte("- a"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := parse("x", data); err == nil && c.Host == "" {
			t.Error("a context without a host")
		}
	})
}
