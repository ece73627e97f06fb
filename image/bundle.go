package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"capsule/internal/bundle"
)

const (
	architecture = "amd64"

	// follows is the oldest version whose state and slots this one can take over,
	// "" for any.
	follows = ""

	// developmentKey signs what is built here and never leaves this folder. Each
	// source tree has its own, so nobody can sign for the machines of another.
	developmentKey = "development"
)

// trustedKeys are the public keys of the root: those of the source tree, and the
// development key unless this is a release.
func (b *builder) trustedKeys() ([]bundle.PublicKey, error) {
	keys, err := bundle.LoadPublicKeys(filepath.Join(b.repo, "image", "keys"))
	if err != nil {
		return nil, err
	}
	if b.release && len(keys) == 0 {
		return nil, errors.New("a release would take no update: put a public key into image/keys (see image/keys/README.md)")
	}
	if b.release {
		return keys, nil
	}
	own, err := b.developmentKey()
	if err != nil {
		return nil, err
	}
	public := own.Public()
	public.Name = developmentKey
	return append(keys, public), nil
}

// developmentKey makes the key when there is none yet.
func (b *builder) developmentKey() (*bundle.PrivateKey, error) {
	path := filepath.Join(b.out, developmentKey+bundle.PrivateSuffix)
	key, err := bundle.LoadPrivateKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if key, err = bundle.Generate(); err != nil {
		return nil, err
	}
	return key, key.Save(path)
}

// rootKeys puts the public keys into the root.
func (b *builder) rootKeys(tree string) error {
	keys, err := b.trustedKeys()
	if err != nil {
		return err
	}
	dir := filepath.Join(tree, bundle.KeysDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, key := range keys {
		if err := key.Save(filepath.Join(dir, key.Name+bundle.PublicSuffix)); err != nil {
			return err
		}
	}
	return nil
}

// keyTexts are the names and contents of keys, for a step's key.
func keyTexts(keys []bundle.PublicKey) (texts []string) {
	for _, key := range keys {
		texts = append(texts, key.Name, string(key.PEM()))
	}
	return texts
}

// signer is the key for the bundle; nil leaves a release to be signed elsewhere. A
// bundle that its own root would refuse is one that nothing can follow.
func (b *builder) signer() (*bundle.PrivateKey, error) {
	if b.signWith == "" && b.release {
		return nil, nil
	}
	if b.signWith == "" {
		return b.developmentKey()
	}
	key, err := bundle.LoadPrivateKey(b.signWith)
	if err != nil {
		return nil, err
	}
	trusted, err := b.trustedKeys()
	if err != nil {
		return nil, err
	}
	for _, t := range trusted {
		if t.ID() == key.Public().ID() {
			return key, nil
		}
	}
	return nil, fmt.Errorf("sign with %s: the root does not trust its key %s: put its public half into image/keys", b.signWith, key.Public().ID())
}

// buildBundle joins kernel image and root into the file that updates a capsule.
func (b *builder) buildBundle(root rootImage, uki string) error {
	key, err := b.signer()
	if err != nil {
		return err
	}
	m, err := b.bundleManifest(root, uki)
	if err != nil {
		return err
	}
	header, err := bundle.NewHeader(m, key)
	if err != nil {
		return err
	}
	name := "capsule-" + b.version + "-" + architecture + ".bundle"
	path := filepath.Join(b.out, name)
	k := newKey("bundle 1", header.Bytes(), root.Digest)
	err = b.step("bundle", k, []string{path}, func() error { return writeBundle(path, m, key, uki, root.Path) })
	if err != nil {
		return err
	}
	fmt.Printf("  %s: %d bytes, %s\n", path, header.Size, signedBy(header, path))
	return removeOthers(b.out, []string{"capsule-*.bundle"}, map[string]string{name: path})
}

func signedBy(header *bundle.Header, path string) string {
	if header.KeyID == "" {
		return "unsigned: capsulectl release sign " + path + " --key FILE"
	}
	return "signed by key " + header.KeyID
}

func (b *builder) bundleManifest(root rootImage, uki string) (bundle.Manifest, error) {
	info, err := os.Stat(root.Path)
	if err != nil {
		return bundle.Manifest{}, err
	}
	kernel, err := os.ReadFile(uki)
	if err != nil {
		return bundle.Manifest{}, err
	}
	return bundle.Manifest{
		Product: bundle.Product, Version: b.version, Architecture: architecture, BuiltUnix: b.buildUnix, Follows: follows,
		UKI:  bundle.NewPart(kernel),
		Root: bundle.Root{Size: info.Size(), DataBytes: root.Offset, VerityHash: root.Hash},
	}, nil
}

// writeBundle gives the file its name once it is whole.
func writeBundle(path string, m bundle.Manifest, key *bundle.PrivateKey, uki, root string) (err error) {
	var parts [2]io.Reader
	for i, from := range []string{uki, root} {
		f, err := os.Open(from)
		if err != nil {
			return err
		}
		defer f.Close()
		parts[i] = f
	}
	next := path + ".new"
	out, err := os.Create(next)
	if err != nil {
		return err
	}
	if err := errors.Join(bundle.Write(out, m, key, parts[0], parts[1]), out.Close()); err != nil {
		return errors.Join(err, os.Remove(next))
	}
	return os.Rename(next, path)
}
