package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	v1 "capsule/api/capsule/v1"
)

func container(name, image string) *v1.Object {
	return &v1.Object{
		Meta: &v1.Meta{Kind: "Container", Name: name},
		Kind: &v1.Object_Workload{Workload: &v1.Workload{Spec: &v1.WorkloadSpec{
			Image: image, Env: map[string]string{"A": "1", "B": "2", "C": "3"},
		}}},
	}
}

func openTemp(t *testing.T) (*Store, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.db")
	return reopen(t, path), path
}

func reopen(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func apply(t *testing.T, s *Store, objs ...*v1.Object) []*v1.ApplyResult {
	t.Helper()
	results, err := s.Apply(t.Context(), objs, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	return results
}

func outcomes(results []*v1.ApplyResult) (list []string) {
	for _, r := range results {
		list = append(list, fmt.Sprintf("%s %s %d %s", r.Object.Meta.Kind, r.Object.Meta.Name, r.Object.Meta.Generation,
			strings.TrimPrefix(r.Outcome.String(), "OUTCOME_")))
	}
	return list
}

func eventTypes(t *testing.T, s *Store) (list []string) {
	t.Helper()
	page, err := s.Events(0, 1000, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range page.Events {
		list = append(list, fmt.Sprintf("%s %s %d", e.Type, e.Name, e.Generation))
	}
	return list
}

func TestApply(t *testing.T) {
	s, path := openTemp(t)
	steps := []struct {
		name string
		objs []*v1.Object
		want []string
	}{
		{"new", []*v1.Object{container("a", "web:1"), container("b", "web:1")}, []string{"Container a 1 CREATED", "Container b 1 CREATED"}},
		{"same", []*v1.Object{container("a", "web:1")}, []string{"Container a 1 UNCHANGED"}},
		{"changed", []*v1.Object{container("a", "web:2"), container("b", "web:1")}, []string{"Container a 2 CHANGED", "Container b 1 UNCHANGED"}},
	}
	for _, step := range steps {
		if diff := cmp.Diff(step.want, outcomes(apply(t, s, step.objs...))); diff != "" {
			t.Errorf("%s: %s", step.name, diff)
		}
	}
	flipped := container("a", "web:2")
	flipped.Meta.Kind = "MicroVM"
	before, err := s.Get("Container", "a")
	if err != nil {
		t.Fatal(err)
	}
	after := apply(t, s, flipped)[0].Object
	if after.Meta.Uid != before.Meta.Uid || after.Meta.Generation != 3 || after.Meta.CreatedAt.AsTime() != before.Meta.CreatedAt.AsTime() {
		t.Errorf("flip of kind made %v of %v", after.Meta, before.Meta)
	}
	if _, err := s.Get("Container", "a"); !errdefs.IsNotFound(err) {
		t.Errorf("get of the former kind: %v", err)
	}
	want := []string{"created a 1", "created b 1", "changed a 2", "changed a 3"}
	if diff := cmp.Diff(want, eventTypes(t, s)); diff != "" {
		t.Error(diff)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, path)
	all, err := s.List("")
	if err != nil || len(all) != 2 || !proto.Equal(all[0].GetWorkload().Spec, after.GetWorkload().Spec) {
		t.Errorf("after reopening: %v, %v", all, err)
	}
	vms, _ := s.List("MicroVM")
	if len(vms) != 1 {
		t.Errorf("list of a kind gives %v", vms)
	}
}

func TestApplyIsAllOrNothing(t *testing.T) {
	s, _ := openTemp(t)
	apply(t, s, container("a", "web:1"))
	big := container("big", "web:1")
	big.GetWorkload().Spec.Env["X"] = strings.Repeat("x", SpecMaxBytes)
	strange := container("strange", "web:1")
	strange.GetWorkload().Spec.ProtoReflect().SetUnknown(unknownField())
	var many []*v1.Object
	for i := range ObjectsMax {
		many = append(many, container(fmt.Sprint("m", i), "web:1"))
	}
	port := errors.New("port 80 is taken")
	tests := []struct {
		name  string
		objs  []*v1.Object
		check func(View, []*v1.Object) error
		is    error
	}{
		{"twice", []*v1.Object{container("b", "x"), container("b", "y")}, nil, errdefs.ErrInvalidArgument},
		{"no spec", []*v1.Object{container("b", "x"), {Meta: &v1.Meta{Kind: "Container", Name: "c"}}}, nil, errdefs.ErrInvalidArgument},
		{"too big", []*v1.Object{container("b", "x"), big}, nil, errdefs.ErrResourceExhausted},
		{"too many", many, nil, errdefs.ErrResourceExhausted},
		{"unknown field", []*v1.Object{container("b", "x"), strange}, nil, errdefs.ErrInvalidArgument},
		{"check", []*v1.Object{container("a", "web:9"), container("b", "x")}, func(v View, objs []*v1.Object) error {
			other, err := v.Get("", "b")
			if err != nil || other.GetWorkload().Spec.Image != "x" || len(objs) != 2 || !proto.Equal(other, objs[1]) {
				t.Errorf("check does not see what is applied: %v, %v, %v", objs, other, err)
			}
			for _, obj := range objs {
				if old := v.Old(obj); (old != nil) != (obj.Meta.Name == "a") || old != nil && old.GetWorkload().Spec.Image != "web:1" {
					t.Errorf("old of %s is %v", obj.Meta.Name, old)
				}
			}
			return port
		}, port},
	}
	before, _ := s.List("")
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if _, err := s.Apply(t.Context(), test.objs, false, test.check); !errors.Is(err, test.is) {
				t.Errorf("got %v, want %v", err, test.is)
			}
			after, _ := s.List("")
			if diff := cmp.Diff(before, after, protocmp.Transform()); diff != "" {
				t.Error(diff)
			}
			if got := eventTypes(t, s); len(got) != 1 {
				t.Errorf("events: %v", got)
			}
		})
	}
	results, err := s.Apply(t.Context(), []*v1.Object{container("n", "x")}, true, nil)
	if err != nil || results[0].Outcome != v1.Outcome_OUTCOME_CREATED {
		t.Errorf("dry run: %v %v", results, err)
	}
	if _, err := s.Get("", "n"); !errdefs.IsNotFound(err) {
		t.Errorf("dry run wrote: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Apply(ctx, []*v1.Object{container("n", "x")}, false, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestMutateStatusDelete(t *testing.T) {
	s, _ := openTemp(t)
	uid := apply(t, s, container("a", "web:1"))[0].Object.Meta.Uid
	obj, err := s.Mutate("a", "stopped", func(o *v1.Object) error {
		o.GetWorkload().Intent = &v1.Intent{Stopped: true}
		o.Meta.Uid = "mine" // meta is the store's
		return nil
	})
	if err != nil || obj.Meta.Generation != 2 || obj.Meta.Uid != uid || !obj.GetWorkload().Intent.Stopped {
		t.Fatal(obj, err)
	}
	if obj, err = s.Mutate("a", "stopped", func(*v1.Object) error { return ErrUnchanged }); err != nil || obj.Meta.Generation != 2 {
		t.Error(obj, err)
	}
	if _, err := s.Mutate("b", "stopped", nil); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	status := &v1.WorkloadStatus{Generation: 2, Phase: v1.Phase_PHASE_STOPPED}
	for range 2 {
		if err := s.PutStatus(uid, status); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.PutStatus("stale", &v1.WorkloadStatus{Generation: 9}); err != nil {
		t.Fatal(err)
	}
	// A status never undoes an apply, and an apply keeps the intent.
	apply(t, s, container("a", "web:2"))
	got, _ := s.Get("", "a")
	if got.Meta.Generation != 3 || got.GetWorkload().Status.Phase != v1.Phase_PHASE_STOPPED || !got.GetWorkload().Intent.Stopped {
		t.Error(got)
	}
	for range 2 {
		if err := s.Delete("", "a"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Mutate("a", "started", nil); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
	// Applied again before the old one is gone: another object.
	again := apply(t, s, container("a", "web:3"))[0]
	if again.Object.Meta.Uid == uid || again.Outcome != v1.Outcome_OUTCOME_CREATED {
		t.Error(again)
	}
	for range 2 {
		if err := s.Remove(again.Object.Meta.Uid); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"created a 1", "stopped a 2", "changed a 3", "deleting a 4", "deleted a 4", "created a 1", "deleted a 1"}
	if diff := cmp.Diff(want, eventTypes(t, s)); diff != "" {
		t.Error(diff)
	}
	if err := s.Delete("Container", "a"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
}

// unknownField is field 5000 of a newer capsuled.
func unknownField() []byte {
	return protowire.AppendString(protowire.AppendTag(nil, 5000, protowire.BytesType), "from the future")
}

// UPD-08: a store written by a newer version, read and changed by this one.
func TestNewerVersion(t *testing.T) {
	s, path := openTemp(t)
	uid := apply(t, s, container("a", "web:1"), container("b", "web:1"))[0].Object.Meta.Uid
	if err := s.PutStatus(uid, &v1.WorkloadStatus{Generation: 1}); err != nil {
		t.Fatal(err)
	}
	err := s.db.Update(func(tx *bolt.Tx) error {
		for _, name := range []string{"a", "b"} {
			obj, _ := view{tx: tx}.Get("", name)
			obj.ProtoReflect().SetUnknown(unknownField())
			obj.Meta.ProtoReflect().SetUnknown(unknownField())
			obj.GetWorkload().Spec.ProtoReflect().SetUnknown(unknownField())
			if err := writeObject(tx, obj); err != nil {
				return err
			}
		}
		status := &v1.WorkloadStatus{Generation: 1}
		status.ProtoReflect().SetUnknown(unknownField())
		data, _ := encode(status)
		volume, _ := encode(&v1.Object{Meta: &v1.Meta{Kind: "Tomorrow", Name: "v", Uid: "v1"}})
		table, _ := tx.CreateBucket([]byte("tomorrow"))
		mark, _ := json.Marshal(stamp{Format: formatWritten + 1, Readers: formatWritten, Version: "99"})
		return errors.Join(tx.Bucket(bucketStatus).Put([]byte(uid), data),
			tx.Bucket(bucketObjects).Put([]byte("tomorrow/v"), volume),
			table.Put([]byte("k"), []byte("v")), tx.Bucket(bucketFormat).Put(keyStamp, mark))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = reopen(t, path)
	if got := outcomes(apply(t, s, container("a", "web:2"), container("b", "web:1"))); got[0] != "Container a 2 CHANGED" || got[1] != "Container b 1 UNCHANGED" {
		t.Error(got)
	}
	if err := s.PutStatus(uid, &v1.WorkloadStatus{Generation: 2}); err != nil {
		t.Fatal(err)
	}
	obj, err := s.Get("", "a")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []proto.Message{obj, obj.Meta, obj.GetWorkload().Spec, obj.GetWorkload().Status} {
		if string(m.ProtoReflect().GetUnknown()) != string(unknownField()) {
			t.Errorf("%T lost what this version does not know", m)
		}
	}
	if _, err := s.Get("Tomorrow", "v"); err != nil {
		t.Error(err)
	}
	err = s.db.View(func(tx *bolt.Tx) error {
		if mark, err := readStamp(tx); err != nil || mark.Version != "99" || string(tx.Bucket([]byte("tomorrow")).Get([]byte("k"))) != "v" {
			t.Error(mark, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestTooNewIsRefusedWithReason(t *testing.T) {
	s, path := openTemp(t)
	err := s.db.Update(func(tx *bolt.Tx) error {
		mark, _ := json.Marshal(stamp{Format: 7, Readers: formatWritten + 1, Version: "99.0"})
		return tx.Bucket(bucketFormat).Put(keyStamp, mark)
	})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	_, err = Open(path)
	if !errors.Is(err, ErrUnreadable) || !strings.Contains(err.Error(), "99.0") {
		t.Error(err)
	}
}

func TestBucket(t *testing.T) {
	s, path := openTemp(t)
	b := s.Bucket("network")
	if _, found, err := b.Get("a"); found || err != nil {
		t.Error(found, err)
	}
	if err := b.Each(func(string, []byte) error { return errors.New("not empty") }); err != nil {
		t.Error(err)
	}
	for _, key := range []string{"b", "a", "c"} {
		if err := b.Put(key, []byte("value of "+key)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(b.Delete("c"), b.Delete("c"), s.Close()); err != nil {
		t.Fatal(err)
	}
	b = reopen(t, path).Bucket("network")
	var got []string
	err := b.Each(func(key string, value []byte) error {
		got = append(got, key+"="+string(value))
		return nil
	})
	if diff := cmp.Diff([]string{"a=value of a", "b=value of b"}, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if value, found, err := b.Get("a"); !found || string(value) != "value of a" || err != nil {
		t.Error(value, found, err)
	}
}

func TestConcurrentChanges(t *testing.T) {
	s, _ := openTemp(t)
	const each = 10
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			name := fmt.Sprint("w", i%2)
			for j := range each {
				results, err := s.Apply(t.Context(), []*v1.Object{container(name, fmt.Sprint("web:", i, ".", j))}, false, nil)
				if err != nil {
					t.Error(err)
					return
				}
				if err := s.PutStatus(results[0].Object.Meta.Uid, &v1.WorkloadStatus{Generation: uint64(j)}); err != nil {
					t.Error(err)
				}
				if err := s.Bucket("b").Put(name, []byte{byte(j)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	for _, name := range []string{"w0", "w1"} {
		obj, err := s.Get("", name)
		if err != nil || obj.Meta.Generation != 2*each {
			t.Errorf("%v %v", obj, err)
		}
	}
	if got := eventTypes(t, s); len(got) != 4*each {
		t.Errorf("%d events", len(got))
	}
}

func TestSecondProcessIsTold(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the lock")
	}
	s, path := openTemp(t)
	_ = s
	if _, err := Open(path); err == nil || errors.Is(err, ErrUnreadable) {
		t.Errorf("a held store is not damage: %v", err)
	}
}
