package server

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/secret"
	"capsule/internal/store"
	"capsule/internal/workload"
)

// seal puts what the store keeps in the place of secrets that are declared, and has
// all applied.
func (o *Options) seal(objs []*capsulev1.Object, dryRun bool, apply func() error) error {
	if o.Secrets == nil { // none is among them
		return apply()
	}
	return o.Secrets.Seal(objs, dryRun, apply)
}

// admitSecrets looks at what is applied, where there are secrets.
func (o *Options) admitSecrets(tx store.View, objs []*capsulev1.Object) (notes map[string][]string, err error) {
	if o.Secrets == nil {
		return nil, nil
	}
	return o.Secrets.Admit(tx, objs)
}

// show gives objects as anybody may see them.
func (o *Options) show(objs ...*capsulev1.Object) ([]*capsulev1.Object, error) {
	if o.Secrets != nil {
		return o.Secrets.Show(objs...)
	}
	shown := make([]*capsulev1.Object, 0, len(objs))
	for _, obj := range objs {
		shown = append(shown, secret.Hide(obj))
	}
	return shown, nil
}

// showOne is show for one object.
func (o *Options) showOne(obj *capsulev1.Object) (*capsulev1.Object, error) {
	shown, err := o.show(obj)
	if err != nil {
		return nil, err
	}
	return shown[0], nil
}

// deleteSecret removes a secret that no workload uses.
func (o *Options) deleteSecret(st *store.Store, name string) error {
	return st.Drop(manifest.KindSecret, name, func(tx store.View) error {
		users, err := secretUsers(tx, name)
		if err == nil && len(users) > 0 {
			err = fmt.Errorf("secret %q is used by %s: change or delete that first: %w", name, usedBy(users), errdefs.ErrFailedPrecondition)
		}
		return err
	})
}

// usedBy tells of users of a secret, of which the machine may be one.
func usedBy(users []string) string {
	workloads := slices.DeleteFunc(slices.Clone(users), func(name string) bool { return name == manifest.CapsuleName })
	switch {
	case len(workloads) == len(users):
		return named(workloads)
	case len(workloads) == 0:
		return "a registry of the capsule"
	}
	return named(workloads) + " and a registry of the capsule"
}

// secretUsers are the workloads that name a secret, also those of which what serves,
// or is gone back to, does.
func secretUsers(tx store.View, name string) ([]string, error) {
	all, err := tx.List("")
	if err != nil {
		return nil, err
	}
	objs := all
	for _, obj := range all {
		if obj.GetWorkload() == nil || obj.GetMeta().GetDeletedAt() != nil { // it starts no more
			continue
		}
		standing, err := workload.Standing(tx, obj.GetMeta())
		if err != nil {
			return nil, err
		}
		objs = append(objs, standing...)
	}
	return secret.Users(objs, name), nil
}

// difference is what an apply changes of an object.
func difference(old, obj *capsulev1.Object) string {
	if old.GetSecret() == nil && obj.GetSecret() == nil {
		return manifest.Diff(old, obj)
	}
	return manifest.Diff(secret.Compared(old, obj))
}
