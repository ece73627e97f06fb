package faults

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"capsule/internal/bundle"
)

// writeBundle makes a small good one.
func writeBundle(t *testing.T, key *bundle.PrivateKey) string {
	t.Helper()
	uki, data := bytes.Repeat([]byte("k"), 3000), bytes.Repeat([]byte("root"), 4*bundle.BlockSize)
	tree, hash, err := bundle.HashTree(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(uki)
	var file bytes.Buffer
	err = bundle.Write(&file, bundle.Manifest{
		Product: bundle.Product, Version: "v9.0.0", Architecture: "amd64", BuiltUnix: 1_764_403_200,
		UKI:  bundle.Part{Size: int64(len(uki)), SHA256: hex.EncodeToString(sum[:])},
		Root: bundle.Root{Size: int64(len(data) + len(tree)), DataBytes: int64(len(data)), VerityHash: hash},
	}, key, bytes.NewReader(uki), bytes.NewReader(append(data, tree...)))
	path := filepath.Join(t.TempDir(), "good.bundle")
	if err := errors.Join(err, os.WriteFile(path, file.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
	return path
}

// check reads a whole bundle as those do that install or sign one.
func check(t *testing.T, path string, key *bundle.PrivateKey) (m bundle.Manifest, err error) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h, err := bundle.ReadHeader(f)
	if err != nil {
		return m, err
	}
	if err := h.Verify([]bundle.PublicKey{key.Public()}); err != nil || h.Size > slotSize {
		return h.Manifest, err
	}
	return h.Manifest, h.CopyContent(io.Discard, f)
}

func TestRewritings(t *testing.T) {
	key, err := bundle.Generate()
	if err != nil {
		t.Fatal(err)
	}
	good := writeBundle(t, key)
	was, err := check(t, good, key)
	if err != nil {
		t.Fatal(err)
	}
	tested := []string{}
	for _, c := range []struct {
		fault string
		fails string // "" when only the manifest tells
		tells func(m bundle.Manifest) bool
	}{
		{fault: "unsigned", fails: "unsigned"},
		{fault: "foreign-key", fails: "foreign key"},
		{fault: "forged", fails: "bad signature"},
		{fault: "garbled", fails: "not one JSON object"},
		{fault: "not-a-bundle", fails: "not a bundle"},
		{fault: "short", fails: "ends within its root"},
		{fault: "long", fails: "more follows"},
		{fault: "flipped-kernel", fails: "kernel image is not the one"},
		{fault: "flipped-root", fails: "root is not the one"},
		{fault: "flipped-hashes", fails: "hash tree of its root"},
		{fault: "other-root-hash", fails: "root is not the one"},
		{"too-large", "", func(m bundle.Manifest) bool {
			return m.Root.Size > slotSize && m.Root.Size < slotSize+4*bundle.BlockSize
		}},
		{"other-product", "", func(m bundle.Manifest) bool { return m.Product != was.Product }},
		{"other-arch", "", func(m bundle.Manifest) bool { return m.Architecture != was.Architecture }},
		{"older", "", func(m bundle.Manifest) bool { return m.BuiltUnix < was.BuiltUnix && m.Version == was.Version }},
		{"cannot-follow", "", func(m bundle.Manifest) bool { return m.Follows == was.Version }},
	} {
		tested = append(tested, c.fault)
		t.Run(c.fault, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "bundle")
			if err := Rewrite(path, good, c.fault, key); err != nil {
				t.Fatal(err)
			}
			m, err := check(t, path, key)
			if (err != nil) != (c.fails != "") || (err != nil && !strings.Contains(err.Error(), c.fails)) {
				t.Errorf("got %v, want %q", err, c.fails)
			}
			if c.tells != nil && !c.tells(m) {
				t.Errorf("manifest is %+v", m)
			}
		})
	}
	if slices.Sort(tested); !slices.Equal(tested, Rewritings()) {
		t.Errorf("tested %q of %q", tested, Rewritings())
	}
	if err := Rewrite(filepath.Join(t.TempDir(), "x"), good, "none", key); err == nil {
		t.Error("a fault that isn't known was made")
	}
	if _, err := check(t, good, key); err != nil {
		t.Errorf("the good bundle was changed: %v", err)
	}
}
