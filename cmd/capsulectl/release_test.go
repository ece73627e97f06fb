//go:build linux

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"capsule/internal/bundle"
)

// TestReleaseScripts needs no capsule: keys and bundles are files.
func TestReleaseScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/release",
		RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": code, "bundle": unsignedBundle, "signed": signedBundle, "mode": fileMode,
		},
	})
}

// unsignedBundle writes one, whole or spoiled: bundle FILE [cut|flip|longer]
func unsignedBundle(ts *testscript.TestScript, _ bool, args []string) {
	uki, data := []byte("MZ"), bytes.Repeat([]byte("root"), 2*bundle.BlockSize)
	tree, hash, err := bundle.HashTree(bytes.NewReader(data))
	ts.Check(err)
	sum := sha256.Sum256(uki)
	var file bytes.Buffer
	ts.Check(bundle.Write(&file, bundle.Manifest{
		Product: bundle.Product, Version: "v1.2.0", Architecture: "amd64",
		UKI:  bundle.Part{Size: int64(len(uki)), SHA256: hex.EncodeToString(sum[:])},
		Root: bundle.Root{Size: int64(len(data) + len(tree)), DataBytes: int64(len(data)), VerityHash: hash},
	}, nil, bytes.NewReader(uki), bytes.NewReader(append(data, tree...))))
	content := file.Bytes()
	if len(args) > 1 {
		switch args[1] {
		case "cut":
			content = content[:len(content)-1]
		case "flip":
			content[len(content)-len(tree)-1] ^= 1
		case "longer":
			content = append(content, 0)
		}
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), content, 0o644))
}

// signedBundle tells whether a key signed a bundle: signed BUNDLE NAME.pub
func signedBundle(ts *testscript.TestScript, neg bool, args []string) {
	f, err := os.Open(ts.MkAbs(args[0]))
	ts.Check(err)
	defer f.Close()
	header, err := bundle.ReadHeader(f)
	ts.Check(err)
	all, err := bundle.LoadPublicKeys(filepath.Dir(ts.MkAbs(args[1])))
	ts.Check(err)
	var keys []bundle.PublicKey
	for _, key := range all {
		if key.Name+bundle.PublicSuffix == args[1] {
			keys = append(keys, key)
		}
	}
	if err := header.Verify(keys); (err != nil) != neg {
		ts.Fatalf("%s by %s: %v", args[0], args[1], err)
	}
}

// fileMode checks a file's mode: mode FILE -rw-------
func fileMode(ts *testscript.TestScript, _ bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	if got := info.Mode().String(); got != args[1] {
		ts.Fatalf("%s has mode %s, want %s", args[0], got, args[1])
	}
}
