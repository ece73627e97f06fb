package secret

import (
	"crypto/cipher"
	"crypto/rand"
	"errors"

	"golang.org/x/crypto/chacha20poly1305"
)

const keyBytes = chacha20poly1305.KeySize

// machineKey seals and opens values.
type machineKey struct {
	id    string
	plain []byte
	aead  cipher.AEAD
}

func newMachineKey(id string, key []byte) (*machineKey, error) {
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, err
	}
	return &machineKey{id: id, plain: key, aead: aead}, nil
}

// bound is what a value is sealed with beside its content, so that one can't be put
// in another's place on the disk. Names of secrets have no "/".
func bound(name, key string) []byte { return []byte("capsule secret 1: " + name + "/" + key) }

// seal gives the nonce, which is random and so long that no two are the same, and the
// sealed value.
func (m *machineKey) seal(name, key string, value []byte) []byte {
	nonce := make([]byte, m.aead.NonceSize(), m.aead.NonceSize()+len(value)+m.aead.Overhead())
	rand.Read(nonce) // never fails: crypto/rand ends the program instead
	return m.aead.Seal(nonce, nonce, value, bound(name, key))
}

var errShort = errors.New("it is too short")

func (m *machineKey) open(name, key string, sealed []byte) ([]byte, error) {
	if len(sealed) < m.aead.NonceSize() {
		return nil, errShort
	}
	nonce, rest := sealed[:m.aead.NonceSize()], sealed[m.aead.NonceSize():]
	return m.aead.Open(nil, nonce, rest, bound(name, key))
}
