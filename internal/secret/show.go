package secret

import (
	"bytes"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

// Hide gives an object as it may be shown: a Secret with its keys, and neither with
// values nor with anything that a guess of them could be compared with.
func Hide(obj *v1.Object) *v1.Object {
	secret := obj.GetSecret()
	if secret == nil {
		return obj
	}
	shown := &v1.SecretSpec{Data: map[string]string{}}
	for key := range secret.GetSealed().GetValues() {
		shown.Data[key] = manifest.Hidden
	}
	return &v1.Object{
		Meta: proto.CloneOf(obj.GetMeta()),
		Kind: &v1.Object_Secret{Secret: &v1.Secret{Spec: shown, Status: secret.GetStatus()}},
	}
}

// Changed is shown in the place of a value that differs from the one before.
const Changed = "(changed)"

// Compared gives two states of an object so that their difference can be shown: of a
// Secret which values differ, and not how. Either may be nil.
func Compared(old, obj *v1.Object) (shownOld, shown *v1.Object) {
	if old != nil {
		shownOld = Hide(old)
	}
	shown = Hide(obj)
	before := old.GetSecret().GetSealed().GetValues()
	for key, value := range obj.GetSecret().GetSealed().GetValues() {
		if was, found := before[key]; found && !bytes.Equal(was, value) {
			shown.GetSecret().Spec.Data[key] = Changed
		}
	}
	return shownOld, shown
}

// Show is Hide for many, with who uses each Secret and whether it can be opened.
func (b *Book) Show(objs ...*v1.Object) ([]*v1.Object, error) {
	var all []*v1.Object
	shown := make([]*v1.Object, 0, len(objs))
	for _, obj := range objs {
		secret := obj.GetSecret()
		if secret == nil {
			shown = append(shown, obj)
			continue
		}
		if all == nil {
			var err error
			if all, err = b.store.List(""); err != nil {
				return nil, err
			}
		}
		hidden, name := Hide(obj), obj.GetMeta().GetName()
		status := &v1.SecretStatus{Users: Users(all, name)}
		if _, err := b.openAll(name, secret.GetSealed()); err != nil {
			status.Message = strings.TrimPrefix(err.Error(), "secret \""+name+"\" ")
		}
		hidden.GetSecret().Status = status
		shown = append(shown, hidden)
	}
	return shown, nil
}

// Users are the workloads among the objects that name a Secret, sorted.
func Users(objs []*v1.Object, name string) []string {
	var users []string
	for _, obj := range objs {
		if obj.GetMeta().GetDeletedAt() == nil && slices.ContainsFunc(Refs(obj), func(ref string) bool { return strings.HasPrefix(ref, name+"/") }) {
			users = append(users, obj.GetMeta().GetName())
		}
	}
	slices.Sort(users)
	return slices.Compact(users)
}

// Refs are the values that a workload, or the machine, names, "SECRET/KEY", sorted, each
// once.
func Refs(obj *v1.Object) []string {
	var refs []string
	spec := obj.GetWorkload().GetSpec()
	for _, ref := range spec.GetSecretEnv() {
		refs = append(refs, ref)
	}
	for _, file := range spec.GetFiles() {
		if ref := file.GetSecret(); ref != "" {
			refs = append(refs, ref)
		}
	}
	for _, r := range obj.GetCapsule().GetSpec().GetRegistries() {
		if ref := r.GetPassword(); ref != "" {
			refs = append(refs, ref)
		}
	}
	slices.Sort(refs)
	return slices.Compact(refs)
}
