package store

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"

	v1 "capsule/api/capsule/v1"
)

func capsule(hostname string) *v1.Object {
	return &v1.Object{
		Meta: &v1.Meta{Kind: "Capsule", Name: "capsule"},
		Kind: &v1.Object_Capsule{Capsule: &v1.Capsule{Spec: &v1.CapsuleSpec{Hostname: hostname}}},
	}
}

// rename is an edit of what is declared of the machine.
func rename(to string) func(*v1.Object) error {
	return func(obj *v1.Object) error {
		if obj.GetCapsule() == nil {
			obj.Kind = &v1.Object_Capsule{Capsule: &v1.Capsule{Spec: &v1.CapsuleSpec{}}}
		}
		obj.GetCapsule().Spec.Hostname = to
		return nil
	}
}

func TestCapsule(t *testing.T) {
	s, path := openTemp(t)
	// The machine, a workload and a volume may have one name.
	made := apply(t, s, capsule("attic"), container("capsule", "web:1"), volume("capsule", 1<<30))
	uid := made[0].Object.Meta.Uid
	if phase := made[0].Object.GetCapsule().GetStatus().GetPhase(); phase != v1.CapsulePhase_CAPSULE_PHASE_PENDING {
		t.Errorf("a new one is %v", phase)
	}
	ready := &v1.CapsuleStatus{Generation: 1, Phase: v1.CapsulePhase_CAPSULE_PHASE_READY, Hostname: "attic"}
	if err := s.PutCapsuleStatus(uid, ready, Happening{Type: "renamed", Text: "is called attic"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got, err := s.Get("Capsule", "capsule")
	if err != nil {
		t.Fatal(err)
	}
	if got.GetCapsule().GetSpec().GetHostname() != "attic" || got.GetCapsule().GetStatus().GetHostname() != "attic" {
		t.Errorf("after a restart it is %v", got)
	}
}

func TestEdit(t *testing.T) {
	s, _ := openTemp(t)
	ctx := context.Background()
	edit := func(fn func(*v1.Object) error) (*v1.ApplyResult, error) {
		return s.Edit(ctx, "Capsule", "capsule", fn, nil)
	}
	var got []string
	for _, name := range []string{"attic", "attic", "cellar"} {
		result, err := edit(rename(name))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, outcomes([]*v1.ApplyResult{result})...)
	}
	want := []string{"Capsule capsule 1 CREATED", "Capsule capsule 1 UNCHANGED", "Capsule capsule 2 CHANGED"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("edits (-want +got):\n%s", diff)
	}
	refused := errors.New("refused")
	if _, err := edit(func(*v1.Object) error { return refused }); !errors.Is(err, refused) {
		t.Errorf("an edit that gives up: %v", err)
	}
	_, err := s.Edit(ctx, "Capsule", "capsule", rename("kitchen"), func(View, []*v1.Object) error { return refused })
	if !errors.Is(err, refused) {
		t.Errorf("a change that is refused: %v", err)
	}
	if _, err := edit(func(obj *v1.Object) error { obj.Kind = nil; return nil }); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an edit that leaves nothing: %v", err)
	}
	obj, err := s.Get("Capsule", "capsule")
	if err != nil || obj.GetCapsule().GetSpec().GetHostname() != "cellar" || obj.GetMeta().GetGeneration() != 2 {
		t.Errorf("in the end it is %v, %v", obj, err)
	}
}

// What a newer capsule declared is edited by an older one, and kept.
func TestEditOfUnknown(t *testing.T) {
	s, _ := openTemp(t)
	newer := protowire.AppendVarint(protowire.AppendTag(nil, 1000, protowire.VarintType), 1)
	if _, err := s.Edit(t.Context(), "Capsule", "capsule", func(obj *v1.Object) error {
		err := rename("attic")(obj)
		obj.GetCapsule().Spec.ProtoReflect().SetUnknown(newer)
		return err
	}, nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"attic", "cellar"} {
		result, err := s.Edit(t.Context(), "Capsule", "capsule", rename(name), nil)
		if err != nil {
			t.Fatal(err)
		}
		if spec := result.GetObject().GetCapsule().GetSpec(); spec.GetHostname() != name || !bytes.Equal(spec.ProtoReflect().GetUnknown(), newer) {
			t.Errorf("it is %v", spec)
		}
	}
}
