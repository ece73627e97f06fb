package contexts

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

const pemKey = "PRIVATE KEY"

// pendingMax keys wait at most: enough for all that anybody asks for at once.
const pendingMax = 1000

// Pending is a key that was made here and has no certificate yet. It is on the
// disk before anybody hears of it, so that an answer that got lost can be asked
// for again with the same key. Its folder is the user's alone; it never gets into
// a keychain, which it is too short-lived for.
type Pending struct {
	ID  string
	Key *ecdsa.PrivateKey
}

func (s *Store) pendingPath(id string) (string, error) {
	if !nameForm.MatchString(id) {
		return "", fmt.Errorf("pending key %q: letters, digits, \"-\", \"_\" and \".\", at most 63: %w", id, errdefs.ErrInvalidArgument)
	}
	return filepath.Join(s.dir, "pending", id+".pem"), nil
}

// Await gives the pending key of that name, made now unless it is there.
func (s *Store) Await(id string) (Pending, error) {
	path, err := s.pendingPath(id)
	if err != nil {
		return Pending{}, err
	}
	if p, err := readPending(id, path); err == nil || !os.IsNotExist(err) {
		return p, err
	}
	if all, err := s.PendingKeys(); err != nil || len(all) >= pendingMax {
		return Pending{}, fmt.Errorf("%d keys wait for a certificate already; see %s: %w", len(all), filepath.Dir(path), errdefs.ErrFailedPrecondition)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pending{}, fmt.Errorf("make a key: %w", err)
	}
	text, err := encodeKey(key)
	if err != nil {
		return Pending{}, err
	}
	// Another program may make one at the same time: the first on the disk counts.
	if err := create(path, []byte(text)); err != nil && !errors.Is(err, os.ErrExist) {
		return Pending{}, fmt.Errorf("keep a new key: %w", err)
	}
	return readPending(id, path)
}

func readPending(id, path string) (Pending, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Pending{}, err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != pemKey {
		return Pending{}, fmt.Errorf("pending key %s: no key in it; remove it: %w", path, errdefs.ErrInvalidArgument)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return Pending{}, fmt.Errorf("pending key %s: %w", path, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return Pending{}, fmt.Errorf("pending key %s: of a kind that is not made here: %w", path, errdefs.ErrInvalidArgument)
	}
	return Pending{id, key}, nil
}

// PendingKeys are all that wait; what can't be read is left out.
func (s *Store) PendingKeys() ([]Pending, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "pending"))
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list pending keys: %w", err)
	}
	var all []Pending
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".pem")
		if !ok {
			continue
		}
		if p, err := readPending(id, filepath.Join(s.dir, "pending", e.Name())); err == nil {
			all = append(all, p)
		}
	}
	return all, nil
}

// PendingFor finds the key that a certificate is for.
func (s *Store) PendingFor(certificate *x509.Certificate) (Pending, error) {
	all, err := s.PendingKeys()
	if err != nil {
		return Pending{}, err
	}
	i := slices.IndexFunc(all, func(p Pending) bool { return p.Key.PublicKey.Equal(certificate.PublicKey) })
	if i < 0 {
		return Pending{}, fmt.Errorf("the key that the certificate of %q is for was not made here: %w", certificate.Subject.CommonName, errdefs.ErrNotFound)
	}
	return all[i], nil
}

// KeyFor finds the key that a certificate is for, as a context is to hold it:
// among those that wait, else among those of contexts, since one key may be let in
// by several capsules.
func (s *Store) KeyFor(certificate *x509.Certificate) (string, error) {
	p, err := s.PendingFor(certificate)
	if err == nil {
		return p.KeyPEM()
	}
	names, listErr := s.List()
	if listErr != nil {
		return "", listErr
	}
	for _, name := range names {
		c, readErr := s.Get(name)
		if readErr != nil {
			continue
		}
		if leaf, leafErr := c.Leaf(); leafErr == nil && bytes.Equal(leaf.RawSubjectPublicKeyInfo, certificate.RawSubjectPublicKeyInfo) {
			return c.Key, nil
		}
	}
	return "", err
}

// Settle forgets a pending key, once its certificate is in a context.
func (s *Store) Settle(p Pending) error {
	path, err := s.pendingPath(p.ID)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("forget a pending key: %w", err)
	}
	return nil
}

// KeyPEM is the key as a context holds it.
func (p Pending) KeyPEM() (string, error) { return encodeKey(p.Key) }

// Request asks for a certificate of this name: PKCS #10, DER.
func (p Pending) Request(name string) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, p.Key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return der, nil
}

func encodeKey(key *ecdsa.PrivateKey) (string, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", fmt.Errorf("encode key: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der})), nil
}
