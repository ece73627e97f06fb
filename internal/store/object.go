package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "capsule/api/capsule/v1"
)

var errReadOnly = fmt.Errorf("the state of this capsule can only be read: %w", errdefs.ErrFailedPrecondition)

// View is the store inside a transaction.
type View interface {
	Get(kind, name string) (*v1.Object, error)
	List(kind string) ([]*v1.Object, error)
	// Old is the object as it was before the transaction, nil when it is new.
	Old(obj *v1.Object) *v1.Object
	// Renew gives a workload a new generation, with an event of a type: what it is
	// made of has changed, although its spec has not.
	Renew(name, event, text string) (*v1.Object, error)
	// Table is the Bucket of that name. What is put there is part of the change.
	Table(name string) (Table, error)
	// Note keeps an event about an object with the change.
	Note(obj *v1.Object, kind, text string) error
}

type view struct {
	tx  *bolt.Tx
	old map[string]*v1.Object
	// renewed are the objects that Renew has changed; nil where nothing is applied.
	renewed *[]*v1.Object
	// listed is what List gave while checks look at one state of the store; nil where
	// it is being written to.
	listed *[]*v1.Object
}

// Classes of kinds that this version knows.
const (
	classWorkload = "workload"
	classVolume   = "volume"
	classCapsule  = "capsule"
	classSecret   = "secret"
)

// class groups kinds whose names are unique together.
func class(kind string) string {
	switch kind {
	case "", "Container", "MicroVM":
		return classWorkload
	}
	return strings.ToLower(kind)
}

func objectKey(kind, name string) []byte {
	return []byte(class(kind) + "/" + name)
}

func (v view) Get(kind, name string) (*v1.Object, error) {
	key := objectKey(kind, name)
	data := v.tx.Bucket(bucketObjects).Get(key)
	if data == nil {
		return nil, notFound(kind, name)
	}
	obj, err := readObject(v.tx, key, data)
	if err != nil {
		return nil, err
	}
	if kind != "" && obj.GetMeta().GetKind() != kind {
		return nil, notFound(kind, name)
	}
	return obj, nil
}

func (v view) List(kind string) ([]*v1.Object, error) {
	if v.listed == nil {
		return v.read(kind)
	}
	if *v.listed == nil {
		all, err := v.read("")
		if err != nil {
			return nil, err
		}
		*v.listed = all
	}
	var objs []*v1.Object
	for _, obj := range *v.listed {
		if kind == "" || obj.GetMeta().GetKind() == kind {
			objs = append(objs, obj)
		}
	}
	return objs, nil
}

func (v view) read(kind string) ([]*v1.Object, error) {
	var objs []*v1.Object
	err := v.tx.Bucket(bucketObjects).ForEach(func(key, data []byte) error {
		obj, err := readObject(v.tx, key, data)
		if err != nil {
			return err
		}
		if kind == "" || obj.GetMeta().GetKind() == kind {
			objs = append(objs, obj)
		}
		return nil
	})
	return objs, err
}

func (v view) Old(obj *v1.Object) *v1.Object {
	return v.old[string(objectKey(obj.Meta.Kind, obj.Meta.Name))]
}

func (v view) Table(name string) (Table, error) { return tableIn(v.tx, []byte(name)) }

func (v view) Note(obj *v1.Object, kind, text string) error { return noteText(v.tx, obj, kind, text) }

func notFound(kind, name string) error {
	if kind == "" {
		kind = classWorkload
	}
	return fmt.Errorf("%s %q does not exist: %w", strings.ToLower(kind), name, errdefs.ErrNotFound)
}

// errDryRun rolls a transaction back whose results are wanted.
var errDryRun = errors.New("dry run")

// Apply writes all objects with their events, or nothing. Of each, the kind,
// the name and the spec are read. check sees the objects as they will be, in
// the same order, all in place; nil checks nothing.
func (s *Store) Apply(ctx context.Context, objs []*v1.Object, dryRun bool, check func(View, []*v1.Object) error) ([]*v1.ApplyResult, error) {
	if dryRun && s.ReadOnly() {
		return nil, errReadOnly
	}
	if err := distinct(objs); err != nil {
		return nil, err
	}
	var results []*v1.ApplyResult
	err := s.update(func(tx *bolt.Tx) ([]Change, error) {
		if err := ctx.Err(); err != nil { // it ended while others wrote
			return nil, err
		}
		var changes []Change
		v := view{tx: tx, old: map[string]*v1.Object{}, renewed: &[]*v1.Object{}}
		for _, obj := range objs {
			result, change, err := applyKnown(v, obj)
			if err != nil {
				return nil, fmt.Errorf("apply %s %q: %w", strings.ToLower(obj.Meta.Kind), obj.Meta.Name, err)
			}
			results = append(results, result)
			changes = append(changes, change...)
		}
		if err := checkAll(v, results, check); err != nil {
			return nil, err
		}
		if dryRun {
			return nil, errDryRun
		}
		for _, obj := range *v.renewed {
			changes = append(changes, Change{Object: obj})
		}
		return changes, nil
	})
	if err != nil && !errors.Is(err, errDryRun) {
		return nil, err
	}
	s.copier.wake()
	return results, nil
}

func distinct(objs []*v1.Object) error {
	seen := map[string]bool{}
	for i, obj := range objs {
		if obj.GetMeta().GetName() == "" || obj.GetMeta().GetKind() == "" || specOf(obj) == nil || !fits(obj) {
			return fmt.Errorf("object %d has no kind, name or spec: %w", i+1, errdefs.ErrInvalidArgument)
		}
		key := string(objectKey(obj.Meta.Kind, obj.Meta.Name))
		if seen[key] {
			return fmt.Errorf("%s %q is declared twice: %w", strings.ToLower(obj.Meta.Kind), obj.Meta.Name, errdefs.ErrInvalidArgument)
		}
		seen[key] = true
	}
	return nil
}

func checkAll(v view, results []*v1.ApplyResult, check func(View, []*v1.Object) error) error {
	v.listed = new([]*v1.Object) // checks ask again and again
	all, err := v.List("")
	if err != nil {
		return err
	}
	if len(all) > ObjectsMax {
		return fmt.Errorf("there would be %d objects, at most %d are kept: %w", len(all), ObjectsMax, errdefs.ErrResourceExhausted)
	}
	if check == nil {
		return nil
	}
	objs := make([]*v1.Object, 0, len(results))
	for _, r := range results {
		objs = append(objs, r.Object)
	}
	return check(v, objs)
}

// applyKnown is applyOne of what somebody else has made, who may be newer than this
// capsule. What is in the store already is kept, known or not.
func applyKnown(v view, in *v1.Object) (*v1.ApplyResult, []Change, error) {
	if hasUnknown(specOf(in).ProtoReflect()) {
		return nil, nil, fmt.Errorf("the spec has fields that this capsule does not know: update the capsule first: %w", errdefs.ErrInvalidArgument)
	}
	return applyOne(v, in)
}

// applyOne writes one object. An object on its way out is replaced by a new
// one of the same name: the loop removes what is left of the old first.
func applyOne(v view, in *v1.Object) (*v1.ApplyResult, []Change, error) {
	if size := proto.Size(specOf(in)); size > SpecMaxBytes {
		return nil, nil, fmt.Errorf("the spec has %d bytes, at most %d are kept: %w", size, SpecMaxBytes, errdefs.ErrResourceExhausted)
	}
	kind := in.Meta.Kind
	if class(kind) == classWorkload {
		kind = "" // it may have been of the other kind
	}
	old, err := v.Get(kind, in.Meta.Name)
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, nil, err
	}
	var changes []Change
	if old.GetMeta().GetDeletedAt() != nil {
		if err := remove(v.tx, old); err != nil {
			return nil, nil, err
		}
		changes = append(changes, Change{Object: old, Deleted: true})
		old = nil
	}
	if old != nil {
		v.old[string(objectKey(in.Meta.Kind, in.Meta.Name))] = proto.CloneOf(old)
	}
	obj, outcome := merge(old, in)
	result := &v1.ApplyResult{Object: obj, Outcome: outcome}
	if outcome == v1.Outcome_OUTCOME_UNCHANGED {
		return result, nil, nil
	}
	if err := writeObject(v.tx, obj); err != nil {
		return nil, nil, err
	}
	text := map[v1.Outcome]string{v1.Outcome_OUTCOME_CREATED: "created", v1.Outcome_OUTCOME_CHANGED: "changed"}[outcome]
	if err := note(v.tx, obj, text); err != nil {
		return nil, nil, err
	}
	return result, append(changes, Change{Object: obj}), nil
}

// merge is the object that an apply of in makes of old.
func merge(old, in *v1.Object) (*v1.Object, v1.Outcome) {
	if old == nil {
		obj := &v1.Object{Meta: &v1.Meta{
			Kind: in.Meta.Kind, Name: in.Meta.Name, Generation: 1,
			Uid: newUID(), CreatedAt: timestamppb.Now(),
		}}
		put(obj, proto.Clone(specOf(in)))
		put(obj, pending(obj))
		return obj, v1.Outcome_OUTCOME_CREATED
	}
	obj := proto.CloneOf(old)
	before := specOf(old)
	if old.Meta.Kind == in.Meta.Kind && equalKnown(before, specOf(in)) && !GivenUp(old) {
		return obj, v1.Outcome_OUTCOME_UNCHANGED
	}
	spec := proto.Clone(specOf(in))
	if before != nil {
		spec.ProtoReflect().SetUnknown(before.ProtoReflect().GetUnknown())
	}
	put(obj, spec)
	obj.Meta.Kind = in.Meta.Kind
	obj.Meta.Generation++
	return obj, v1.Outcome_OUTCOME_CHANGED
}

// GivenUp tells that what is declared was rolled back: whoever applies it again
// wants it tried again.
func GivenUp(obj *v1.Object) bool {
	s := obj.GetWorkload().GetStatus()
	return s.GetRolledBack() != "" && s.GetGeneration() == obj.GetMeta().GetGeneration()
}

// Mutate changes a workload's spec or intent outside of an apply. event is the
// type of the event that is kept with it. fn returns ErrUnchanged when there is
// nothing to do.
func (s *Store) Mutate(name, event string, fn func(*v1.Object) error) (*v1.Object, error) {
	var obj *v1.Object
	err := s.update(func(tx *bolt.Tx) ([]Change, error) {
		old, err := view{tx: tx}.Get("", name)
		if err != nil {
			return nil, err
		}
		if old.Meta.DeletedAt != nil {
			return nil, fmt.Errorf("workload %q is being deleted: %w", name, errdefs.ErrFailedPrecondition)
		}
		obj = proto.CloneOf(old)
		if err := fn(obj); err != nil {
			if errors.Is(err, ErrUnchanged) {
				obj = old
			}
			return nil, err
		}
		obj.Meta = proto.CloneOf(old.Meta)
		obj.Meta.Generation++
		obj.GetWorkload().Status = old.GetWorkload().GetStatus()
		if err := writeObject(tx, obj); err != nil {
			return nil, err
		}
		return []Change{{Object: obj}}, note(tx, obj, event)
	})
	if errors.Is(err, ErrUnchanged) {
		return obj, nil
	}
	if err != nil {
		return nil, err
	}
	s.copier.wake()
	return obj, nil
}

// Edit changes the spec of one object, which is made when it is not there: edit
// gets what is declared now, empty when that is nothing. The result is as of an
// apply, also when nothing changed. check is that of Apply.
func (s *Store) Edit(ctx context.Context, kind, name string, edit func(*v1.Object) error, check func(View, []*v1.Object) error) (*v1.ApplyResult, error) {
	var result *v1.ApplyResult
	err := s.update(func(tx *bolt.Tx) ([]Change, error) {
		if err := ctx.Err(); err != nil { // it ended while others wrote
			return nil, err
		}
		v := view{tx: tx, old: map[string]*v1.Object{}}
		obj, err := v.Get(kind, name)
		if errdefs.IsNotFound(err) {
			obj, err = &v1.Object{Meta: &v1.Meta{Kind: kind, Name: name}}, nil
		}
		if err != nil {
			return nil, err
		}
		obj = bare(obj)
		if err := edit(obj); err != nil {
			return nil, err
		}
		if err := distinct([]*v1.Object{obj}); err != nil {
			return nil, err
		}
		var changes []Change
		if result, changes, err = applyOne(v, obj); err != nil {
			return nil, fmt.Errorf("change %s %q: %w", strings.ToLower(kind), name, err)
		}
		return changes, checkAll(v, []*v1.ApplyResult{result}, check)
	})
	if err != nil {
		return nil, err
	}
	s.copier.wake()
	return result, nil
}

// Delete asks for the removal of an object; the loop calls Remove when nothing
// is left of it. Asking again is success.
func (s *Store) Delete(kind, name string) error { return s.DeleteIf(kind, name, nil) }

// DeleteIf is Delete unless check, which sees the store as it is then, has an
// error; nil checks nothing.
func (s *Store) DeleteIf(kind, name string, check func(View) error) error {
	err := s.update(func(tx *bolt.Tx) ([]Change, error) {
		v := view{tx: tx}
		obj, err := v.Get(kind, name)
		if err != nil || obj.Meta.DeletedAt != nil {
			return nil, err
		}
		if check != nil {
			if err := check(v); err != nil {
				return nil, err
			}
		}
		obj.Meta.DeletedAt = timestamppb.Now()
		obj.Meta.Generation++
		if err := writeObject(tx, obj); err != nil {
			return nil, err
		}
		return []Change{{Object: obj}}, note(tx, obj, "deleting")
	})
	if err == nil {
		s.copier.wake()
	}
	return err
}

// Remove forgets an object of which nothing is left on the machine. An uid that
// is not there is success.
func (s *Store) Remove(uid string) error {
	defer s.copier.wake()
	return s.update(func(tx *bolt.Tx) ([]Change, error) {
		obj, err := byUID(tx, uid)
		if obj == nil || err != nil {
			return nil, err
		}
		return []Change{{Object: obj, Deleted: true}}, remove(tx, obj)
	})
}

func remove(tx *bolt.Tx, obj *v1.Object) error {
	if err := tx.Bucket(bucketObjects).Delete(objectKey(obj.Meta.Kind, obj.Meta.Name)); err != nil {
		return err
	}
	if err := tx.Bucket(bucketStatus).Delete([]byte(obj.Meta.Uid)); err != nil {
		return err
	}
	return note(tx, obj, "deleted")
}

// PutStatus writes the status of the workload with that uid, and keeps events about
// what it tells. It is ignored when there is no such object any more, or when
// nothing differs.
func (s *Store) PutStatus(uid string, status *v1.WorkloadStatus, events ...Happening) error {
	return s.putStatus(uid, proto.CloneOf(status), events)
}

// PutVolumeStatus is PutStatus for a volume.
func (s *Store) PutVolumeStatus(uid string, status *v1.VolumeStatus) error {
	return s.putStatus(uid, proto.CloneOf(status), nil)
}

// PutCapsuleStatus is PutStatus for the machine itself.
func (s *Store) PutCapsuleStatus(uid string, status *v1.CapsuleStatus, events ...Happening) error {
	return s.putStatus(uid, proto.CloneOf(status), events)
}

func (s *Store) putStatus(uid string, status proto.Message, events []Happening) error {
	return s.update(func(tx *bolt.Tx) ([]Change, error) {
		obj, err := byUID(tx, uid)
		if err != nil {
			return nil, err
		}
		old := statusOf(obj)
		if old == nil || old.ProtoReflect().Descriptor() != status.ProtoReflect().Descriptor() {
			return nil, nil
		}
		status.ProtoReflect().SetUnknown(old.ProtoReflect().GetUnknown())
		if proto.Equal(old, status) {
			return nil, nil
		}
		data, err := encode(status)
		if err != nil {
			return nil, err
		}
		put(obj, status)
		for _, e := range events {
			if err := noteText(tx, obj, e.Type, e.Text); err != nil {
				return nil, err
			}
		}
		return []Change{{Object: obj}}, tx.Bucket(bucketStatus).Put([]byte(uid), data)
	})
}

// byUID gives an object, nil when there is none of that uid. Only one that may be it is
// decoded: a status is written often, and there are many objects.
func byUID(tx *bolt.Tx, uid string) (found *v1.Object, err error) {
	c := tx.Bucket(bucketObjects).Cursor()
	for key, data := c.First(); key != nil; key, data = c.Next() {
		if !bytes.Contains(data, []byte(uid)) {
			continue
		}
		obj, err := readObject(tx, key, data)
		if err != nil || obj.GetMeta().GetUid() == uid {
			return obj, err
		}
	}
	return nil, nil
}

// newUID is 128 random bits in hexadecimal.
func newUID() string {
	b := make([]byte, 16)
	rand.Read(b) // never fails: crypto/rand ends the program instead
	return hex.EncodeToString(b)
}
