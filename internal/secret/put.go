package secret

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/store"
)

// Put keeps one value of a Secret that the capsule itself looks after, which is made
// when it is not there; a nil value is dropped. It is on the disk when Put returns.
func (b *Book) Put(ctx context.Context, name, key string, value []byte) error {
	b.putting.Lock()
	defer b.putting.Unlock()
	obj, err := b.store.Get(manifest.KindSecret, name)
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	values, err := b.openAll(name, obj.GetSecret().GetSealed())
	if err != nil {
		return fmt.Errorf("change secret %q: %w", name, err)
	}
	if value != nil {
		values[key] = value
	} else {
		delete(values, key)
	}
	if len(values) == 0 {
		return b.store.Drop(manifest.KindSecret, name, func(store.View) error { return nil })
	}
	all := []*v1.Object{{
		Meta: &v1.Meta{Kind: manifest.KindSecret, Name: name},
		Kind: &v1.Object_Secret{Secret: &v1.Secret{Spec: &v1.SecretSpec{BinaryData: values}}},
	}}
	return b.Seal(all, false, func() error {
		_, err := b.store.Apply(ctx, all, false, nil)
		return err
	})
}
