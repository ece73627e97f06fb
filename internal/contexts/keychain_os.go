//go:build darwin || windows

package contexts

import (
	"errors"

	"github.com/zalando/go-keyring"
)

// keychainService is what people see beside their keys.
const keychainService = "capsule operator key"

// osKeychain is the login keychain of macOS, by Apple's own tool, and the
// Credential Manager of Windows, by its API. The key goes to Apple's tool by its
// standard input, not on its command line.
func osKeychain() *keychain {
	return &keychain{
		get: func(id string) (string, error) { return keyring.Get(keychainService, id) },
		set: func(id, secret string) error { return keyring.Set(keychainService, id, secret) },
		remove: func(id string) error {
			err := keyring.Delete(keychainService, id)
			if errors.Is(err, keyring.ErrNotFound) {
				return nil
			}
			return err
		},
	}
}
