package store

import (
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
)

func volume(name string, size int64) *v1.Object {
	return &v1.Object{
		Meta: &v1.Meta{Kind: "Volume", Name: name},
		Kind: &v1.Object_Volume{Volume: &v1.Volume{Spec: &v1.VolumeSpec{Size: size}}},
	}
}

func TestVolumes(t *testing.T) {
	s, path := openTemp(t)
	// A volume and a workload may have one name; neither hides the other.
	made := apply(t, s, volume("a", 1<<30), container("a", "web:1"))
	uid := made[0].Object.Meta.Uid
	if phase := made[0].Object.GetVolume().GetStatus().GetPhase(); phase != v1.VolumePhase_VOLUME_PHASE_PENDING {
		t.Errorf("a new volume is %v", phase)
	}
	ready := &v1.VolumeStatus{Generation: 1, Phase: v1.VolumePhase_VOLUME_PHASE_READY, Size: 1 << 30}
	if err := s.PutVolumeStatus(uid, ready); err != nil {
		t.Fatal(err)
	}
	// A status of the wrong kind, or of what is gone, is nobody's.
	if err := errors.Join(s.PutStatus(uid, &v1.WorkloadStatus{Generation: 7}), s.PutVolumeStatus(made[1].Object.Meta.Uid, ready), s.PutVolumeStatus("stale", ready)); err != nil {
		t.Fatal(err)
	}
	got := outcomes(apply(t, s, volume("a", 2<<30), container("a", "web:1")))
	if diff := cmp.Diff([]string{"Volume a 2 CHANGED", "Container a 1 UNCHANGED"}, got); diff != "" {
		t.Error(diff)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, path)
	vol, err := s.Get("Volume", "a")
	if err != nil || vol.GetVolume().Spec.Size != 2<<30 || !proto.Equal(vol.GetVolume().Status, ready) {
		t.Error(vol, err)
	}
	if web, err := s.Get("", "a"); err != nil || web.Meta.Kind != "Container" || web.GetWorkload().Status.Generation != 0 {
		t.Error(web, err)
	}
	if list, err := s.List("Volume"); err != nil || len(list) != 1 {
		t.Error(list, err)
	}
	if err := s.Delete("Volume", "b"); !errdefs.IsNotFound(err) || err.Error() != `volume "b" does not exist: not found` {
		t.Error(err)
	}
	used := errors.New("it is in use")
	err = s.DeleteIf("Volume", "a", func(v View) error {
		if web, err := v.Get("", "a"); err != nil || web.Meta.Kind != "Container" {
			t.Error(web, err)
		}
		return used
	})
	if vol, _ := s.Get("Volume", "a"); !errors.Is(err, used) || vol.Meta.DeletedAt != nil {
		t.Error(vol, err)
	}
	if err := s.Delete("Volume", "a"); err != nil {
		t.Fatal(err)
	}
	again := apply(t, s, volume("a", 1<<30))[0].Object
	if again.Meta.Uid == uid || again.GetVolume().Status.Phase != v1.VolumePhase_VOLUME_PHASE_PENDING {
		t.Error("a volume applied while the old one is on its way out is not another one:", again)
	}
	if err := s.Remove(again.Meta.Uid); err != nil {
		t.Fatal(err)
	}
	page, err := s.Events(0, 100, nil)
	if err != nil {
		t.Fatal(err)
	}
	var types []string
	for _, e := range page.Events {
		if e.Kind == "Volume" {
			types = append(types, fmt.Sprint(e.Type, " ", e.Generation))
		}
	}
	if diff := cmp.Diff([]string{"created 1", "changed 2", "deleting 3", "deleted 3", "created 1", "deleted 1"}, types); diff != "" {
		t.Error(diff)
	}
}

func TestKindAndContentMustFit(t *testing.T) {
	s, _ := openTemp(t)
	for _, kind := range []string{"Container", "Volume", "Tomorrow"} {
		obj := volume("a", 1<<30)
		if kind == "Volume" {
			obj = container("a", "web:1")
		}
		obj.Meta.Kind = kind
		if _, err := s.Apply(t.Context(), []*v1.Object{obj}, false, nil); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s with the content of another kind: %v", kind, err)
		}
	}
}

// UPD-08, for volumes.
func TestVolumeOfNewerVersion(t *testing.T) {
	s, path := openTemp(t)
	uid := apply(t, s, volume("a", 1<<30))[0].Object.Meta.Uid
	err := s.db.Update(func(tx *bolt.Tx) error {
		obj, _ := view{tx: tx}.Get("Volume", "a")
		obj.GetVolume().ProtoReflect().SetUnknown(unknownField())
		obj.GetVolume().Spec.ProtoReflect().SetUnknown(unknownField())
		status := &v1.VolumeStatus{Generation: 1}
		status.ProtoReflect().SetUnknown(unknownField())
		data, _ := encode(status)
		return errors.Join(writeObject(tx, obj), tx.Bucket(bucketStatus).Put([]byte(uid), data))
	})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, path)
	if got := outcomes(apply(t, s, volume("a", 1<<30))); got[0] != "Volume a 1 UNCHANGED" {
		t.Error(got)
	}
	apply(t, s, volume("a", 2<<30))
	if err := s.PutVolumeStatus(uid, &v1.VolumeStatus{Generation: 2}); err != nil {
		t.Fatal(err)
	}
	obj, err := s.Get("Volume", "a")
	if err != nil || obj.GetVolume().Status.Generation != 2 {
		t.Fatal(obj, err)
	}
	for _, m := range []proto.Message{obj.GetVolume(), obj.GetVolume().Spec, obj.GetVolume().Status} {
		if string(m.ProtoReflect().GetUnknown()) != string(unknownField()) {
			t.Errorf("%T lost what this version does not know", m)
		}
	}
	if _, err := s.Mutate("a", "stopped", nil); !errdefs.IsNotFound(err) {
		t.Error("a volume has no intent:", err)
	}
}
