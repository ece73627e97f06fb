package config

import (
	"context"
	"fmt"
	"regexp"
	"slices"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/image"
	"capsule/internal/secret"
	"capsule/internal/store"
)

// Logins is the Secret that keeps the passwords of registries that were given without
// one, as "capsulectl registry set" does.
const Logins = "registry-logins"

// Registries are those that the machine is configured with: how each is reached, its
// login included. What can't be read of one is told to who needs it.
type Registries struct {
	store   *store.Store
	secrets *secret.Book
}

// NewRegistries are those of a store, whose passwords are in secrets.
func NewRegistries(st *store.Store, secrets *secret.Book) *Registries {
	return &Registries{st, secrets}
}

// Lookup implements image.Registries.
func (r *Registries) Lookup(host string) (image.RegistryAccess, error) {
	spec, err := Spec(r.store)
	if err != nil {
		return image.RegistryAccess{}, fmt.Errorf("read what is declared of it: %w", err)
	}
	one := named(spec, host)
	access := image.RegistryAccess{Username: one.GetUsername(), PlainHTTP: one.GetPlainHttp(), CA: []byte(one.GetCa()), Mirrors: one.GetMirrors()}
	if ref := one.GetPassword(); ref != "" {
		password, err := r.secrets.Value(ref)
		if err != nil {
			return image.RegistryAccess{}, fmt.Errorf("its password: %w", err)
		}
		access.Password = string(password)
	}
	return access, nil
}

// named is what is declared of a registry; nil when that is nothing.
func named(spec *v1.CapsuleSpec, host string) *v1.RegistrySpec {
	host = manifest.RegistryHost(host)
	for _, one := range spec.GetRegistries() {
		if one.GetName() == host {
			return one
		}
	}
	return nil
}

// Set declares one registry, or changes all of it but its mirrors. Without a password,
// that of the same user stays.
func (r *Registries) Set(ctx context.Context, reg *v1.Registry, password string) error {
	host := manifest.RegistryHost(reg.GetHost())
	if password != "" && reg.GetUsername() == "" {
		return fmt.Errorf("registry %q: a password needs a user name: %w", host, errdefs.ErrInvalidArgument)
	}
	wanted := &v1.RegistrySpec{Name: host, PlainHttp: reg.GetPlainHttp(), Ca: string(reg.GetCaPem()), Username: reg.GetUsername()}
	if password != "" {
		wanted.Password = Logins + "/" + loginKey(host)
		// Checked before anything is kept of it.
		if err := manifest.Validate(machine(&v1.CapsuleSpec{Registries: []*v1.RegistrySpec{wanted}})); err != nil {
			return err
		}
		if err := r.secrets.Put(ctx, Logins, loginKey(host), []byte(password)); err != nil {
			return err
		}
	}
	return Edit(ctx, r.store, func(spec *v1.CapsuleSpec) error {
		now := proto.CloneOf(wanted)
		old := named(spec, host)
		now.Mirrors = old.GetMirrors()
		if now.GetPassword() == "" && now.GetUsername() != "" && now.GetUsername() == old.GetUsername() {
			now.Password = old.GetPassword()
		}
		if old == nil {
			spec.Registries = append(spec.GetRegistries(), now)
			return nil
		}
		proto.Reset(old)
		proto.Merge(old, now)
		return nil
	})
}

// Delete forgets a registry, and its password where Set had kept that.
func (r *Registries) Delete(ctx context.Context, name string) error {
	host := manifest.RegistryHost(name)
	var old *v1.RegistrySpec
	err := Edit(ctx, r.store, func(spec *v1.CapsuleSpec) error {
		if old = named(spec, host); old == nil {
			return fmt.Errorf("registry %q is not set: %w", host, errdefs.ErrNotFound)
		}
		spec.Registries = slices.DeleteFunc(spec.GetRegistries(), func(one *v1.RegistrySpec) bool { return one.GetName() == host })
		return nil
	})
	if err != nil || old.GetPassword() != Logins+"/"+loginKey(host) {
		return err
	}
	return r.secrets.Put(ctx, Logins, loginKey(host), nil)
}

// List gives all registries, without their passwords.
func (r *Registries) List() ([]*v1.Registry, error) {
	spec, err := Spec(r.store)
	var list []*v1.Registry
	for _, one := range spec.GetRegistries() {
		list = append(list, &v1.Registry{Host: one.GetName(), Username: one.GetUsername(), PlainHttp: one.GetPlainHttp(), CaPem: []byte(one.GetCa())})
	}
	return list, err
}

var noKey = regexp.MustCompile(`[^A-Za-z0-9._-]`)

// loginKey is a registry's key among the logins.
func loginKey(host string) string { return noKey.ReplaceAllString(host, "_") }

// machine is the object with a spec.
func machine(spec *v1.CapsuleSpec) *v1.Object {
	return &v1.Object{
		Meta: &v1.Meta{Kind: manifest.KindCapsule, Name: manifest.CapsuleName},
		Kind: &v1.Object_Capsule{Capsule: &v1.Capsule{Spec: spec}},
	}
}

// Edit changes a part of what is declared of the machine. What would not be a right
// declaration is InvalidArgument, and changes nothing.
func Edit(ctx context.Context, st *store.Store, edit func(*v1.CapsuleSpec) error) error {
	_, err := st.Edit(ctx, manifest.KindCapsule, manifest.CapsuleName, func(obj *v1.Object) error {
		if obj.GetCapsule().GetSpec() == nil {
			obj.Kind = machine(&v1.CapsuleSpec{}).Kind
		}
		if err := edit(obj.GetCapsule().GetSpec()); err != nil {
			return err
		}
		manifest.Default(obj)
		return manifest.Validate(obj)
	}, nil)
	return err
}
