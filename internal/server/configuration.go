package server

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/config"
	"capsule/internal/identity"
)

// kindRoles are of kinds that not everybody who may apply may declare, as it stands
// beside them in Object.
var kindRoles = readKindRoles()

func readKindRoles() map[string]capsulev1.Role {
	roles := map[string]capsulev1.Role{}
	fields := (*capsulev1.Object)(nil).ProtoReflect().Descriptor().Oneofs().ByName("kind").Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if role, _ := proto.GetExtension(f.Options(), capsulev1.E_KindRole).(capsulev1.Role); role != capsulev1.Role_ROLE_UNSPECIFIED {
			roles[string(f.Message().Name())] = role
		}
	}
	return roles
}

// mayDeclare refuses a caller whose role is less than the kind of an object needs.
func (o *Options) mayDeclare(ctx context.Context, kinds ...string) error {
	for _, kind := range kinds {
		needs, special := kindRoles[kind]
		if !special {
			continue
		}
		cert, err := certificate(ctx)
		if err != nil {
			return err
		}
		has, err := o.Identity.Admit(cert)
		if err != nil {
			return err
		}
		if has < needs {
			return fmt.Errorf("declaring kind %q needs the role %q, and the certificate of %q has the role %q: %w",
				kind, identity.RoleName(needs), cert.Subject.CommonName, identity.RoleName(has), errdefs.ErrPermissionDenied)
		}
	}
	return nil
}

// kindsOf are the kinds of objects.
func kindsOf(objs []*capsulev1.Object) []string {
	kinds := make([]string, 0, len(objs))
	for _, o := range objs {
		kinds = append(kinds, o.GetMeta().GetKind())
	}
	return kinds
}

// errOneMachine is the refusal to delete what the machine is configured by.
var errOneMachine = fmt.Errorf("the configuration of the machine can't be deleted; one that is applied without fields (\"kind: Capsule\") has all as it comes: %w", errdefs.ErrInvalidArgument)

// configure changes what is declared of the machine, for calls that change a part of it.
func (o *Options) configure(ctx context.Context, edit func(*capsulev1.CapsuleSpec) error) error {
	st, err := o.state()
	if err != nil {
		return err
	}
	return config.Edit(ctx, st, edit)
}
