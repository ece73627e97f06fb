package bundle

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/containerd/errdefs"
)

// File names of keys.
const (
	PrivateSuffix = ".key"
	PublicSuffix  = ".pub"
)

const (
	keyMax  = 4 << 10 // bytes of a key file
	keysMax = 64      // keys of a folder
)

const (
	privateBlock = "PRIVATE KEY"
	publicBlock  = "PUBLIC KEY"
)

// PublicKey proves what its private half signed.
type PublicKey struct {
	Name string // of its file, without the suffix; only shown
	key  ed25519.PublicKey
}

// ID tells keys apart: 16 hexadecimal digits.
func (k PublicKey) ID() string {
	id := k.rawID()
	return hex.EncodeToString(id[:])
}

// String is the id with the name.
func (k PublicKey) String() string {
	if k.Name == "" {
		return k.ID()
	}
	return k.ID() + " (" + k.Name + ")"
}

func (k PublicKey) rawID() (id [idLen]byte) {
	sum := sha256.Sum256(k.key)
	copy(id[:], sum[:])
	return id
}

// PEM is the content of the key's file.
func (k PublicKey) PEM() []byte {
	der, err := x509.MarshalPKIXPublicKey(k.key)
	if err != nil {
		panic(err) // no ed25519 key does that
	}
	return pem.EncodeToMemory(&pem.Block{Type: publicBlock, Bytes: der})
}

// Save writes the key to a file that must not be there yet.
func (k PublicKey) Save(path string) error { return create(path, k.PEM(), 0o644) }

// LoadPublicKeys reads all *.pub of a folder, by name. A folder that isn't there
// holds none; one broken file is an error for all, InvalidArgument.
func LoadPublicKeys(dir string) ([]PublicKey, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var keys []PublicKey
	for _, entry := range entries {
		name, ok := strings.CutSuffix(entry.Name(), PublicSuffix)
		if !ok {
			continue
		}
		if len(keys) == keysMax {
			return nil, fmt.Errorf("more than %d keys in %q: %w", keysMax, dir, errdefs.ErrInvalidArgument)
		}
		key, err := loadPublicKey(filepath.Join(dir, entry.Name()))
		if err != nil {
			return nil, err
		}
		key.Name = name
		keys = append(keys, key)
	}
	return keys, nil
}

func loadPublicKey(path string) (PublicKey, error) {
	der, err := readPEM(path, publicBlock)
	if err != nil {
		return PublicKey{}, err
	}
	parsed, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return PublicKey{}, fmt.Errorf("key %q: %w: %w", path, err, errdefs.ErrInvalidArgument)
	}
	key, ok := parsed.(ed25519.PublicKey)
	if !ok {
		return PublicKey{}, fmt.Errorf("key %q is not of ed25519: %w", path, errdefs.ErrInvalidArgument)
	}
	return PublicKey{key: key}, nil
}

// PrivateKey signs bundles.
type PrivateKey struct{ key ed25519.PrivateKey }

// Generate makes a new key.
func Generate() (*PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return &PrivateKey{key: key}, nil
}

// LoadPrivateKey reads a key that only its owner can read. What isn't one is
// InvalidArgument.
func LoadPrivateKey(path string) (*PrivateKey, error) {
	der, err := readPEM(path, privateBlock)
	if err != nil {
		return nil, err
	}
	// Windows has no such modes.
	if info, err := os.Stat(path); err == nil && runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("key %q can be read by others (mode %04o): make it 0600: %w", path, info.Mode().Perm(), errdefs.ErrInvalidArgument)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("key %q: %w: %w", path, err, errdefs.ErrInvalidArgument)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("key %q is not of ed25519: %w", path, errdefs.ErrInvalidArgument)
	}
	return &PrivateKey{key: key}, nil
}

// Public is the half that capsules know.
func (k *PrivateKey) Public() PublicKey {
	return PublicKey{key: k.key.Public().(ed25519.PublicKey)}
}

// Save writes the key to a file that must not be there yet, for its owner only.
func (k *PrivateKey) Save(path string) error {
	der, err := x509.MarshalPKCS8PrivateKey(k.key)
	if err != nil {
		return err
	}
	return create(path, pem.EncodeToMemory(&pem.Block{Type: privateBlock, Bytes: der}), 0o600)
}

// readPEM gives the one block of a file.
func readPEM(path, kind string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, keyMax+1))
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(content)
	if block == nil || len(content) > keyMax || block.Type != kind || strings.TrimSpace(string(rest)) != "" {
		return nil, fmt.Errorf("key %q: want one PEM block %q and nothing behind it: %w", path, kind, errdefs.ErrInvalidArgument)
	}
	return block.Bytes, nil
}

// create writes a new file; one that can't be written whole is not left.
func create(path string, content []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
