// Package secret owns what nobody is to read: the values of Secrets, which the store
// holds encrypted, and the machine's keys that they are encrypted with. It gives
// values to who hands them to a program, and to nobody else: what is shown of a
// Secret, or compared, has their names only.
//
//	/perm/secret.keys  the machine's keys, the current one first: bound to the
//	                   machine's TPM where it has one, else as they are
//	store              Secret.sealed: each value under the key that key_id names,
//	                   bound to its Secret's name and its own
//
// A Secret that can't be opened holds the workloads that use it, and says why;
// declaring it again is all that is needed. It never ends the daemon.
package secret

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/store"
)

// KeyFile is where a capsule keeps the machine's keys.
const KeyFile = "/perm/secret.keys"

// Book holds the values of a capsule's Secrets.
type Book struct {
	store *store.Store
	keys  *keyring
	// sealing is read-locked while something sealed is on its way into the store, so
	// that no key is dropped meanwhile.
	sealing sync.RWMutex
	putting sync.Mutex // makes Put one step
}

// Open gives the book of a store, with the machine's keys in a file, which is made
// when it is first needed, and the TPM, nil for that of this machine. What is wrong
// with the keys is told to whoever needs them.
func Open(st *store.Store, keyFile string, tpm TPM) *Book {
	if tpm == nil {
		tpm = DeviceTPM
	}
	return &Book{store: st, keys: &keyring{path: keyFile, tpm: tpm}}
}

// Reason in the status of a workload that waits for a value.
const Reason = "secret"

// HeldError is why a value is not to be had now. Its text begins with the secret,
// and what needs the value waits.
type HeldError struct{ text string }

func (e *HeldError) Error() string { return e.text }

// Unwrap makes it a failed precondition.
func (e *HeldError) Unwrap() error { return errdefs.ErrFailedPrecondition }

func held(name, format string, args ...any) error {
	return &HeldError{fmt.Sprintf("secret %q ", name) + fmt.Sprintf(format, args...)}
}

// Value gives what "SECRET/KEY" names. The error is a *HeldError when a change of the
// secret, or of the machine, makes it to be had.
func (b *Book) Value(ref string) ([]byte, error) {
	name, key, ok := strings.Cut(ref, "/")
	if !ok {
		return nil, fmt.Errorf("%q is no value of a secret; want \"SECRET/KEY\": %w", ref, errdefs.ErrInvalidArgument)
	}
	obj, err := b.store.Get(manifest.KindSecret, name)
	if errdefs.IsNotFound(err) {
		return nil, held(name, "is not declared")
	}
	if err != nil {
		return nil, err
	}
	sealed := obj.GetSecret().GetSealed()
	if _, found := sealed.GetValues()[key]; !found {
		return nil, held(name, "has no key %q; it has %s", key, strings.Join(slices.Sorted(maps.Keys(sealed.GetValues())), ", "))
	}
	return b.open(name, key, sealed)
}

// open decrypts one value.
func (b *Book) open(name, key string, sealed *v1.SealedSecret) ([]byte, error) {
	opener, err := b.keys.opener(sealed.GetKeyId())
	if err != nil {
		return nil, held(name, "can't be opened: %v", err)
	}
	value, err := opener.open(name, key, sealed.GetValues()[key])
	if err != nil {
		return nil, held(name, "can't be opened: its value %q is damaged; declare it again", key)
	}
	return value, nil
}

// openAll decrypts all values of a Secret.
func (b *Book) openAll(name string, sealed *v1.SealedSecret) (map[string][]byte, error) {
	values := map[string][]byte{}
	for key := range sealed.GetValues() {
		value, err := b.open(name, key, sealed)
		if err != nil {
			return nil, err
		}
		values[key] = value
	}
	return values, nil
}

// Backup gives the machine's keys as they are, bound to no machine, in the form of their
// file: all those that open what is sealed in the store as save sees it. On a machine
// with a TPM the next start binds them to it.
func (b *Book) Backup(save func() error) (keys []byte, err error) {
	b.sealing.RLock() // no key is dropped meanwhile
	defer b.sealing.RUnlock()
	if err := save(); err != nil {
		return nil, err
	}
	if keys, err = b.keys.plain(); err != nil {
		return nil, fmt.Errorf("open the machine's keys for a backup: %w", err)
	}
	return keys, nil
}

// State tells in a sentence where the machine's key is, for who asks what protects
// the secrets.
func (b *Book) State() string { return b.keys.state() }
