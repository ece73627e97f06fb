package contexts

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
)

// inKeychain stands in a context's file for a key that the platform keeps.
const inKeychain = "keychain"

// keychainOff is a variable of the environment that keeps keys in files, for
// where nobody can unlock a keychain.
const keychainOff = "CAPSULE_KEYCHAIN"

// keychain is where a platform keeps secrets. A key is filed under the SHA-256 of
// its public half, so that renaming or copying a context can't mix keys up.
type keychain struct {
	get    func(id string) (string, error)
	set    func(id, secret string) error
	remove func(id string) error // absent is no error
}

// platform is nil where there is none that a program can count on: on Linux it
// hangs on the desktop, and a laptop's key must be there in a plain shell too.
var platform = osKeychain()

func (k *keychain) use() bool { return k != nil && os.Getenv(keychainOff) != "off" }

// keep gives what is to stand in the file: the word for the keychain if that
// took the key and gives it back, else the key itself.
func (k *keychain) keep(certificate, key string) string {
	if !k.use() || key == inKeychain {
		return key
	}
	id, err := keyID(certificate)
	if err != nil {
		return key
	}
	if err := k.set(id, key); err != nil {
		return key
	}
	if got, err := k.get(id); err != nil || got != key {
		return key
	}
	return inKeychain
}

// keyID names the key of a certificate.
func keyID(certificate string) (string, error) {
	leaf, err := parseLeaf(certificate)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", sha256.Sum256(leaf.RawSubjectPublicKeyInfo)), nil
}

func parseLeaf(certificate string) (*x509.Certificate, error) {
	block, _ := pem.Decode([]byte(certificate))
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("no certificate: %w", errdefs.ErrInvalidArgument)
	}
	return x509.ParseCertificate(block.Bytes)
}

// Leaf is the operator's certificate.
func (c Context) Leaf() (*x509.Certificate, error) {
	leaf, err := parseLeaf(c.Certificate)
	if err != nil {
		return nil, fmt.Errorf("context %q: operator's certificate: %w", c.Name, err)
	}
	return leaf, nil
}

// Authority is the capsule's CA.
func (c Context) Authority() (*x509.Certificate, error) {
	ca, err := parseLeaf(c.CA)
	if err != nil {
		return nil, fmt.Errorf("context %q: CA: %w", c.Name, err)
	}
	return ca, nil
}

// Keychain tells whether the key is kept by the platform and not in the file.
func (c Context) Keychain() bool { return c.Key == inKeychain }

// pair is the operator's certificate with its key, wherever that is kept.
func (c Context) pair() (tls.Certificate, error) {
	key := c.Key
	if c.Keychain() {
		if platform == nil {
			return tls.Certificate{}, fmt.Errorf("its key is in the keychain of another system: %w", errdefs.ErrFailedPrecondition)
		}
		id, err := keyID(c.Certificate)
		if err != nil {
			return tls.Certificate{}, err
		}
		if key, err = platform.get(id); err != nil {
			return tls.Certificate{}, fmt.Errorf("get its key from the keychain: %w", err)
		}
	}
	return tls.X509KeyPair([]byte(c.Certificate), []byte(key))
}

// forget removes the key of a context from the keychain, unless another context
// has the same.
func (s *Store) forget(c Context) error {
	if !c.Keychain() || platform == nil {
		return nil
	}
	id, err := keyID(c.Certificate)
	if err != nil {
		return err
	}
	names, err := s.List()
	if err != nil {
		return err
	}
	for _, name := range names {
		other, err := s.Get(name)
		if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
			return err // it may be the other that has it
		}
		if otherID, err := keyID(other.Certificate); err == nil && other.Keychain() && otherID == id {
			return nil
		}
	}
	return platform.remove(id)
}
