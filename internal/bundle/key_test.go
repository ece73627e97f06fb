package bundle

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// opensslKey was made by "openssl genpkey -algorithm ed25519", opensslPublic by
// "openssl pkey -pubout", and the id by the command of the package's description.
const (
	opensslKey = `-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIFE/0wCZ5OkqC0/J28u+5D0mfeDWcADU8bgcFr+3rjby
-----END PRIVATE KEY-----
`
	opensslPublic = `-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEA8UsIjPNJXNQ8+e4RKxWUpFCCUp6ryDvlul4GAoJ339U=
-----END PUBLIC KEY-----
`
	opensslID = "e8dd8c53213955ad"
)

func TestKeysOfOpenSSL(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "home.key"), opensslKey, 0o600)
	write(t, filepath.Join(dir, "home.pub"), opensslPublic, 0o644)
	key, err := LoadPrivateKey(filepath.Join(dir, "home.key"))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := LoadPublicKeys(dir)
	if err != nil || len(keys) != 1 {
		t.Fatalf("keys %v, %v", keys, err)
	}
	if key.Public().ID() != opensslID || keys[0].String() != opensslID+" (home)" {
		t.Errorf("ids %s and %s, want %s", key.Public(), keys[0], opensslID)
	}
	if got := string(keys[0].PEM()); got != opensslPublic {
		t.Errorf("written as %q", got)
	}
}

func TestKeysAreSavedAndLoaded(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a.key")
	key, err := Generate()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(key.Save(file), key.Public().Save(filepath.Join(dir, "a.pub"))); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || (runtime.GOOS != "windows" && info.Mode().Perm() != 0o600) {
		t.Errorf("private key: %v, %v", info.Mode(), err)
	}
	again, err := LoadPrivateKey(file)
	if err != nil || again.Public().ID() != key.Public().ID() {
		t.Errorf("loaded %v, %v", again, err)
	}
	if err := key.Save(file); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a key was overwritten: %v", err)
	}
	keys, err := LoadPublicKeys(dir)
	if err != nil || len(keys) != 1 || keys[0].ID() != key.Public().ID() || keys[0].Name != "a" {
		t.Errorf("loaded %v, %v", keys, err)
	}
	if keys, err := LoadPublicKeys(filepath.Join(dir, "absent")); err != nil || keys != nil {
		t.Errorf("absent folder: %v, %v", keys, err)
	}
}

func TestRefusedKeys(t *testing.T) {
	dir := t.TempDir()
	load := func(text string) error {
		path := filepath.Join(dir, "x.key")
		write(t, path, text, 0o600)
		_, err := LoadPrivateKey(path)
		return err
	}
	for name, text := range map[string]string{
		"empty":            "",
		"public key":       opensslPublic,
		"two keys":         opensslKey + opensslKey,
		"endless":          opensslKey + strings.Repeat("\n", keyMax),
		"cut":              opensslKey[:80],
		"cut inside":       strings.Replace(opensslKey, "MC4CAQAw", "", 1),
		"not of ed25519":   x25519Key,
		"text in the file": "secret",
	} {
		if err := load(text); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	path := filepath.Join(dir, "open.key")
	write(t, path, opensslKey, 0o640)
	if _, err := LoadPrivateKey(path); runtime.GOOS != "windows" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "0640")) {
		t.Errorf("a key that others can read: %v", err)
	}
	if _, err := LoadPrivateKey(filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an absent key: %v", err)
	}
	write(t, filepath.Join(dir, "a.pub"), opensslPublic, 0o644)
	write(t, filepath.Join(dir, "b.pub"), opensslKey, 0o644)
	if _, err := LoadPublicKeys(dir); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "b.pub") {
		t.Errorf("a folder with a key of the wrong half: %v", err)
	}
}

const x25519Key = `-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VuBCIEIBiQDesuGveqQ1Cg3lFjwrJfeZ3yGKGjAjs4/MyVkXlw
-----END PRIVATE KEY-----
`

func write(t *testing.T, path, text string, mode fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}
