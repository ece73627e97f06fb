package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"capsule/internal/bundle"
)

// testBuilder builds from a source tree with the given key files in image/keys.
func testBuilder(t *testing.T, keys map[string]*bundle.PrivateKey) *builder {
	t.Helper()
	b := &builder{repo: t.TempDir(), out: t.TempDir(), cache: t.TempDir(), version: "v1", buildUnix: 7}
	dir := filepath.Join(b.repo, "image", "keys")
	for _, dir := range []string{dir, filepath.Join(b.cache, "steps")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, key := range keys {
		if err := key.Public().Save(filepath.Join(dir, name+bundle.PublicSuffix)); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func newTestKey(t *testing.T) *bundle.PrivateKey {
	t.Helper()
	key, err := bundle.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestKeysOfTheRoot(t *testing.T) {
	b := testBuilder(t, map[string]*bundle.PrivateKey{"home": newTestKey(t)})
	names := func() (names []string) {
		t.Helper()
		tree := t.TempDir()
		if err := b.rootKeys(tree); err != nil {
			t.Fatal(err)
		}
		keys, err := bundle.LoadPublicKeys(filepath.Join(tree, bundle.KeysDir))
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range keys {
			names = append(names, key.Name)
		}
		return names
	}
	if diff := cmp.Diff([]string{"development", "home"}, names()); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	info, err := os.Stat(filepath.Join(b.out, "development.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("development key: %v, %v", info, err)
	}
	b.release = true
	if diff := cmp.Diff([]string{"home"}, names()); diff != "" {
		t.Errorf("keys of a release (-want +got):\n%s", diff)
	}
}

func TestDevelopmentKeyStays(t *testing.T) {
	b := testBuilder(t, nil)
	sum := func() string {
		t.Helper()
		keys, err := b.trustedKeys()
		if err != nil {
			t.Fatal(err)
		}
		sum, err := newKey(keyTexts(keys)).sum()
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	first := sum()
	if sum() != first {
		t.Error("the second build has another key: it would build the root again")
	}
	if err := os.Remove(filepath.Join(b.out, "development.key")); err != nil {
		t.Fatal(err)
	}
	if sum() == first {
		t.Error("a new key does not build the root again")
	}
	b.release = true
	if _, err := b.trustedKeys(); err == nil || !strings.Contains(err.Error(), "image/keys") {
		t.Errorf("a release without keys: %v", err)
	}
}

func TestWhoSigns(t *testing.T) {
	home, foreign := newTestKey(t), newTestKey(t)
	b := testBuilder(t, map[string]*bundle.PrivateKey{"home": home})
	own, err := b.developmentKey()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, key := range map[string]*bundle.PrivateKey{"home.key": home, "foreign.key": foreign} {
		if err := key.Save(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, key string
		release   bool
		want      string // id, "" for unsigned
		fails     string
	}{
		{"at home", "", false, own.Public().ID(), ""},
		{"at home with a release key", "home.key", false, home.Public().ID(), ""},
		{"release", "home.key", true, home.Public().ID(), ""},
		{"release without a key", "", true, "", ""},
		{"with a key that the root does not trust", "foreign.key", false, "", "image/keys"},
		{"release with the development key", filepath.Join(b.out, "development.key"), true, "", "image/keys"},
		{"with no file", "absent.key", false, "", "absent.key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.release, b.signWith = c.release, c.key
			if c.key != "" && !filepath.IsAbs(c.key) {
				b.signWith = filepath.Join(dir, c.key)
			}
			key, err := b.signer()
			if (err != nil) != (c.fails != "") || (err != nil && !strings.Contains(err.Error(), c.fails)) {
				t.Fatalf("got %v, want %q", err, c.fails)
			}
			got := ""
			if key != nil {
				got = key.Public().ID()
			}
			if got != c.want {
				t.Errorf("signed by %q, want %q", got, c.want)
			}
		})
	}
}

func TestBuildBundle(t *testing.T) {
	b := testBuilder(t, nil)
	root := rootImage{Path: filepath.Join(b.out, "root")}
	uki := filepath.Join(b.out, "uki")
	for path, size := range map[string]int{root.Path: 200*bundle.BlockSize + 5, uki: 1000} {
		if err := os.WriteFile(path, bytes.Repeat([]byte{1}, size), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if root.Offset, root.Hash, err = appendVerity(root.Path); err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(b.out, "capsule-v0-amd64.bundle")
	if err := os.WriteFile(old, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := b.buildBundle(root, uki); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(b.out, "capsule-v1-amd64.bundle"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h, err := bundle.ReadHeader(f)
	if err != nil {
		t.Fatal(err)
	}
	want := bundle.Manifest{
		Product: "capsule", Version: "v1", Architecture: "amd64", BuiltUnix: 7,
		UKI:  bundle.NewPart(bytes.Repeat([]byte{1}, 1000)),
		Root: bundle.Root{Size: 205 * bundle.BlockSize, DataBytes: 201 * bundle.BlockSize, VerityHash: root.Hash},
	}
	if diff := cmp.Diff(want, h.Manifest); diff != "" {
		t.Errorf("manifest (-want +got):\n%s", diff)
	}
	if err := h.CopyContent(io.Discard, f); err != nil {
		t.Error(err)
	}
	trusted, err := b.trustedKeys()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Verify(trusted); err != nil {
		t.Error(err)
	}
	for _, gone := range []string{old, f.Name() + ".new"} {
		if _, err := os.Stat(gone); err == nil {
			t.Errorf("%s is left", gone)
		}
	}
}
