package token

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"capsule/internal/store"
)

func TestBook(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s, err := store.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(s.Bucket("tokens"))
	if err != nil || b.Any() {
		t.Fatal(err)
	}
	_, secret, err := b.Create("prometheus", "anna")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Create("prometheus", "anna"); !errdefs.IsAlreadyExists(err) {
		t.Error(err)
	}
	for _, name := range []string{"", "A", "a b", "-a", "a-", strings.Repeat("a", 41), "ü"} {
		if _, _, err := b.Create(name, "anna"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", name, err)
		}
	}
	// The next daemon knows it, and the disk does not.
	if b, err = Open(s.Bucket("tokens")); err != nil {
		t.Fatal(err)
	}
	for header, want := range map[string]bool{
		"Bearer " + secret: true, "bearer  " + secret + " ": true, secret: false, "Bearer " + secret + "x": false, "Basic " + secret: false,
		"Bearer capsule_" + strings.Repeat("A", 43): false, "": false, "Bearer": false, "Bearer ": false,
	} {
		if name, ok := b.Admit(header); ok != want || ok && name != "prometheus" {
			t.Errorf("%q: %q, %v", header, name, ok)
		}
	}
	if l := b.List(); len(l) != 1 || l[0].CreatedBy != "anna" || l[0].LastUsed.IsZero() {
		t.Errorf("%+v", l)
	}
	if err := b.Revoke("prometheus"); err != nil {
		t.Fatal(err)
	}
	if err := b.Revoke("prometheus"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if _, ok := b.Admit("Bearer " + secret); ok || b.Any() {
		t.Error("it is still let in")
	}
	for i := range Max {
		if _, _, err := b.Create(fmt.Sprint("t", i), "anna"); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := b.Create("more", "anna"); !errdefs.IsResourceExhausted(err) {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{path, path + store.CopySuffix} {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(data), strings.TrimPrefix(secret, prefix)) {
			t.Errorf("the secret is in %s", file)
		}
	}
}

func FuzzBearer(f *testing.F) {
	f.Add("Bearer capsule_" + strings.Repeat("A", 43))
	f.Add("bearer \x00")
	f.Add(" Bearer")
	f.Fuzz(func(t *testing.T, header string) {
		secret, ok := bearer(header)
		if ok != (secret != "") || ok && (len(secret) != len(prefix)+43 || !strings.Contains(header, secret)) {
			t.Errorf("%q: %q, %v", header, secret, ok)
		}
	})
}
