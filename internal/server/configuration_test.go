package server

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

func machineObject(spec *capsulev1.CapsuleSpec) *capsulev1.Object {
	return &capsulev1.Object{
		Meta: &capsulev1.Meta{Kind: manifest.KindCapsule},
		Kind: &capsulev1.Object_Capsule{Capsule: &capsulev1.Capsule{Spec: spec}},
	}
}

// Whoever may declare workloads may not declare the machine, not even to look what
// would be.
func TestConfigurationRole(t *testing.T) {
	b := newBox(t, nil)
	for _, tc := range []struct {
		role capsulev1.Role
		want codes.Code
	}{{capsulev1.Role_ROLE_OPERATOR, codes.PermissionDenied}, {capsulev1.Role_ROLE_ADMIN, codes.OK}} {
		role, want := tc.role, tc.want
		client := capsulev1.NewObjectServiceClient(b.dial(t, role))
		for _, dry := range []bool{true, false} {
			_, err := client.Apply(t.Context(), &capsulev1.ApplyRequest{DryRun: dry, Objects: []*capsulev1.Object{
				web("web"), machineObject(&capsulev1.CapsuleSpec{Hostname: "attic"}),
			}})
			if status.Code(err) != want || want != codes.OK && !strings.Contains(err.Error(), `declaring kind "Capsule" needs the role "admin"`) {
				t.Errorf("%v, dry run %v: %v", role, dry, err)
			}
		}
		_, err := client.Get(t.Context(), &capsulev1.GetRequest{Kind: "Container", Name: "web"})
		if (err == nil) != (want == codes.OK) {
			t.Errorf("%v: all or nothing: %v", role, err)
		}
		_, err = client.Delete(t.Context(), &capsulev1.DeleteRequest{Kind: manifest.KindCapsule, Name: manifest.CapsuleName})
		if want == codes.OK {
			want = codes.InvalidArgument // it can't be deleted
		}
		if status.Code(err) != want {
			t.Errorf("%v: delete: %v", role, err)
		}
		if want == codes.PermissionDenied {
			continue
		}
		all, err := client.List(t.Context(), &capsulev1.ListRequest{})
		if err != nil || len(all.GetObjects()) != 1 {
			t.Errorf("older clients, which ask for all kinds, get %v, %v", all, err)
		}
		got, err := client.Get(t.Context(), &capsulev1.GetRequest{Kind: manifest.KindCapsule, Name: manifest.CapsuleName})
		if err != nil || got.GetObject().GetCapsule().GetSpec().GetHostname() != "attic" {
			t.Errorf("%v, %v", got, err)
		}
	}
}

// Calls that change a part of the machine's configuration change its one object.
func TestConfigurationInParts(t *testing.T) {
	b, _ := newVolumeBox(t)
	conn := b.dial(t, capsulev1.Role_ROLE_ADMIN)
	objects, volumes := capsulev1.NewObjectServiceClient(conn), capsulev1.NewVolumeServiceClient(conn)
	if _, err := objects.Apply(t.Context(), &capsulev1.ApplyRequest{Objects: []*capsulev1.Object{machineObject(&capsulev1.CapsuleSpec{Hostname: "attic"})}}); err != nil {
		t.Fatal(err)
	}
	if _, err := volumes.SetPool(t.Context(), &capsulev1.SetPoolRequest{OvercommitMax: 300}); err != nil {
		t.Fatal(err)
	}
	for _, n := range []uint32{0, 99, 100_001} {
		if _, err := volumes.SetPool(t.Context(), &capsulev1.SetPoolRequest{OvercommitMax: n}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%d %%: %v", n, err)
		}
	}
	got, err := objects.Get(t.Context(), &capsulev1.GetRequest{Kind: manifest.KindCapsule, Name: manifest.CapsuleName})
	if err != nil {
		t.Fatal(err)
	}
	spec := got.GetObject().GetCapsule().GetSpec()
	if spec.GetHostname() != "attic" || spec.GetPool().GetOvercommit() != 300 || got.GetObject().GetMeta().GetGeneration() != 2 {
		t.Errorf("%v", got)
	}
}
