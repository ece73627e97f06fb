package secret

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

// Seal puts what the store keeps in the place of what is declared of each Secret among
// the objects, and then has them applied. One whose values are as they were stays the
// same to the byte, and so does each value; a dry run makes no key.
func (b *Book) Seal(objs []*v1.Object, dryRun bool, apply func() error) error {
	b.sealing.RLock()
	defer b.sealing.RUnlock()
	for _, obj := range objs {
		if obj.GetSecret() == nil {
			continue
		}
		if err := b.seal(obj, dryRun); err != nil {
			return fmt.Errorf("seal secret %q: %w", obj.GetMeta().GetName(), err)
		}
	}
	return apply()
}

func (b *Book) seal(obj *v1.Object, dryRun bool) error {
	name, values := obj.GetMeta().GetName(), valuesOf(obj.GetSecret().GetSpec())
	old, err := b.store.Get(manifest.KindSecret, name)
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	was := old.GetSecret().GetSealed()
	plain, err := b.openAll(name, was)
	opened := was != nil && err == nil // what can't be opened is declared anew
	if opened && maps.EqualFunc(plain, values, bytes.Equal) {
		obj.Kind = &v1.Object_Secret{Secret: &v1.Secret{Sealed: was}}
		return nil
	}
	key, err := b.keys.current(!dryRun)
	if err == nil && key == nil {
		key, err = passing()
	}
	if err != nil {
		return err
	}
	sealed := &v1.SealedSecret{KeyId: key.id, Values: map[string][]byte{}}
	for k, value := range values {
		if opened && was.GetKeyId() == key.id && is(plain, k, value) {
			sealed.Values[k] = was.GetValues()[k]
		} else {
			sealed.Values[k] = key.seal(name, k, value)
		}
	}
	obj.Kind = &v1.Object_Secret{Secret: &v1.Secret{Sealed: sealed}}
	return nil
}

// passing is a key for what is not kept.
func passing() (*machineKey, error) {
	key := make([]byte, keyBytes)
	rand.Read(key) // never fails: crypto/rand ends the program instead
	return newMachineKey("", key)
}

// is tells that a map has the value at the key.
func is(values map[string][]byte, key string, value []byte) bool {
	old, found := values[key]
	return found && bytes.Equal(old, value)
}

// valuesOf are the values of both fields.
func valuesOf(spec *v1.SecretSpec) map[string][]byte {
	values := maps.Clone(spec.GetBinaryData())
	if values == nil {
		values = map[string][]byte{}
	}
	for key, text := range spec.GetData() {
		values[key] = []byte(text)
	}
	return values
}

// Unlock makes the secrets ready after a start: it opens the machine's key, binds it
// to a TPM that has come since, and forgets keys that nothing needs any more. It is
// called again after an error, and harms nothing when it is cut off. What is lost for
// good is no error.
func (b *Book) Unlock() error {
	b.sealing.Lock()
	defer b.sealing.Unlock()
	rebound, err := b.keys.rebind()
	if errors.Is(err, errDamaged) {
		slog.Error("secrets can't be opened, and are to be declared again", "error", err)
		return nil
	}
	if err != nil {
		return err
	}
	key, err := b.keys.current(false)
	if err != nil || key == nil {
		return err
	}
	if rebound {
		slog.Info("secrets: a key that the TPM has sealed replaces the one on the disk")
	}
	used := map[string]bool{}
	err = b.store.Rewrite(manifest.KindSecret, func(obj *v1.Object) {
		sealed := obj.GetSecret().GetSealed()
		if again := b.reseal(obj.GetMeta().GetName(), sealed, key); again != nil {
			obj.GetSecret().Sealed, sealed = again, again
		}
		used[sealed.GetKeyId()] = true
	})
	if err != nil {
		return err
	}
	// The store's copy, too, must open with what is left.
	return b.keys.keep(used, b.store.Copy)
}

// reseal gives a Secret under another key; nil when it is so already, or can't be
// opened.
func (b *Book) reseal(name string, sealed *v1.SealedSecret, key *machineKey) *v1.SealedSecret {
	if sealed.GetKeyId() == key.id {
		return nil
	}
	plain, err := b.openAll(name, sealed)
	if err != nil {
		slog.Warn("a secret can't be opened", "error", err)
		return nil
	}
	again := proto.CloneOf(sealed)
	again.KeyId = key.id
	for k, value := range plain {
		again.Values[k] = key.seal(name, k, value)
	}
	return again
}
