package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/network"
	"capsule/internal/secret"
	"capsule/internal/store"
	"capsule/internal/workload"
)

type objects struct {
	capsulev1.UnimplementedObjectServiceServer
	Options
}

// kinds that can be asked for.
var kinds = []string{"", manifest.KindContainer, manifest.KindMicroVM, manifest.KindVolume, manifest.KindSecret, manifest.KindCapsule}

// errNoState is the answer in recovery mode when not even a copy can be read.
var errNoState = fmt.Errorf("what was declared can't be read: %w", errdefs.ErrFailedPrecondition)

// state is the store, if there is one to ask.
func (o *Options) state() (*store.Store, error) {
	if o.Store == nil {
		return nil, errNoState
	}
	return o.Store, nil
}

// wake tells the loop of workloads that something changed.
func (o *Options) wake(name string) {
	if o.Runtime != nil {
		o.Runtime.Wake(name)
	}
}

// wakeObject tells the loop that looks after an object.
func (o *Options) wakeObject(kind, name string) {
	switch {
	case kind == manifest.KindCapsule, kind == manifest.KindSecret: // who uses them follows the store
	case kind != manifest.KindVolume:
		o.wake(name)
	case o.Volumes != nil:
		o.Volumes.Wake(name)
	}
}

func checkKind(kind string) error {
	if !slices.Contains(kinds, kind) {
		return fmt.Errorf("unknown kind %q: %w", kind, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (s *objects) Apply(ctx context.Context, req *capsulev1.ApplyRequest) (*capsulev1.ApplyResponse, error) {
	st, err := s.state()
	if err != nil {
		return nil, err
	}
	objs := req.GetObjects()
	if len(objs) == 0 || len(objs) > manifest.MaxObjects {
		return nil, fmt.Errorf("apply takes 1 to %d objects, not %d: %w", manifest.MaxObjects, len(objs), errdefs.ErrInvalidArgument)
	}
	if err := s.mayDeclare(ctx, kindsOf(objs)...); err != nil {
		return nil, err
	}
	notes, err := s.check(objs)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(objs, needsVolumes) {
		if err := s.Volumes.Ready(ctx); err != nil {
			return nil, err
		}
	}
	looked, err := s.lookAtNetwork(ctx, objs)
	if err != nil {
		return nil, err
	}
	var old []*capsulev1.Object
	var admitted, awaited, large, secrets map[string][]string
	check := func(tx store.View, objs []*capsulev1.Object) error {
		for _, o := range objs {
			old = append(old, tx.Old(o))
		}
		err := portConflicts(tx, objs)
		var circle error
		awaited, circle = dependencies(tx, objs)
		err = errors.Join(err, circle, s.admitNetwork(tx, objs))
		var tooLarge error
		large, tooLarge = s.fits(tx, objs)
		err = errors.Join(err, tooLarge)
		if s.Volumes != nil {
			var refused error
			admitted, refused = s.Volumes.Admit(tx, objs)
			err = errors.Join(err, refused)
		}
		if err != nil {
			return err
		}
		if secrets, err = s.admitSecrets(tx, objs); err != nil {
			return err
		}
		return workload.Record(tx, objs, caller(ctx), time.Now())
	}
	var results []*capsulev1.ApplyResult
	err = s.seal(objs, req.GetDryRun(), func() (err error) {
		results, err = st.Apply(ctx, objs, req.GetDryRun(), check)
		return err
	})
	if err != nil {
		return nil, err
	}
	for i, r := range results {
		meta := r.GetObject().GetMeta()
		r.Diff = difference(old[i], r.GetObject())
		r.Warnings = slices.Concat(r.Warnings, notes[i], looked[i], admitted[meta.GetUid()], awaited[meta.GetUid()], large[meta.GetUid()], secrets[meta.GetUid()], triedAgain(old[i], r), s.warnings(r.GetObject()))
		if !req.GetDryRun() {
			s.wakeObject(meta.GetKind(), meta.GetName())
			s.tryNetwork(r)
		}
		r.Object = secret.Hide(r.GetObject())
	}
	return &capsulev1.ApplyResponse{Results: results}, nil
}

// check fills defaults in and checks every object, so that one answer names all
// that is wrong. Its notes are what the operator should know of each.
func (s *objects) check(objs []*capsulev1.Object) (notes [][]string, err error) {
	var errs []error
	for _, o := range objs {
		notes = append(notes, manifest.Default(o))
		if err := manifest.Validate(o); err != nil {
			errs = append(errs, err)
		} else if what := s.lacks(o); what != "" {
			errs = append(errs, fmt.Errorf("%s %q: %s not available in this version of Capsule: %w",
				o.GetMeta().GetKind(), o.GetMeta().GetName(), what, errdefs.ErrFailedPrecondition))
		}
	}
	return notes, errors.Join(append(errs, manifest.Unique(objs))...)
}

// lacks is what an object needs and this capsule has not, with its verb.
func (s *objects) lacks(o *capsulev1.Object) string {
	kind := o.GetMeta().GetKind()
	switch {
	case kind == manifest.KindCapsule:
	case kind == manifest.KindSecret && s.Secrets == nil:
		return "secrets are"
	case kind == manifest.KindSecret:
	case kind != manifest.KindVolume && !slices.Contains(s.Kinds, kind):
		return "kind " + kind + " is"
	case needsVolumes(o) && s.Volumes == nil:
		return "volumes are"
	}
	return ""
}

func needsVolumes(o *capsulev1.Object) bool {
	return o.GetMeta().GetKind() == manifest.KindVolume || len(o.GetWorkload().GetSpec().GetMounts()) > 0
}

// portConflicts checks the ports of all that would be declared. Those of other
// workloads come first: they are the holders.
func portConflicts(tx store.View, objs []*capsulev1.Object) error {
	all, err := tx.List("")
	if err != nil {
		return err
	}
	asked := map[string]bool{}
	for _, o := range objs {
		asked[o.GetMeta().GetUid()] = true
	}
	var held, wanted []network.Published
	for _, o := range all {
		switch {
		case o.GetMeta().GetDeletedAt() != nil:
		case asked[o.GetMeta().GetUid()]:
			wanted = append(wanted, workload.Ports(o)...)
		default:
			held = append(held, workload.Ports(o)...)
		}
	}
	if err := network.Conflicts(append(held, wanted...)); err != nil {
		return err
	}
	return standingConflicts(tx, all, asked, wanted)
}

// warnings are what is right and yet may surprise.
func (s *objects) warnings(o *capsulev1.Object) []string {
	var list []string
	w := o.GetWorkload()
	if w.GetIntent().GetStopped() {
		list = append(list, fmt.Sprintf("%q was stopped by an operator and stays so until it is started", o.GetMeta().GetName()))
	}
	return list
}

func (s *objects) Get(_ context.Context, req *capsulev1.GetRequest) (*capsulev1.GetResponse, error) {
	st, err := s.state()
	if err != nil {
		return nil, err
	}
	if err := checkKind(req.GetKind()); err != nil {
		return nil, err
	}
	obj, err := st.Get(req.GetKind(), req.GetName())
	if err != nil {
		return nil, err
	}
	if obj, err = s.showOne(obj); err != nil {
		return nil, err
	}
	return &capsulev1.GetResponse{Object: obj}, nil
}

func (s *objects) List(_ context.Context, req *capsulev1.ListRequest) (*capsulev1.ListResponse, error) {
	st, err := s.state()
	if err != nil {
		return nil, err
	}
	if err := checkKind(req.GetKind()); err != nil {
		return nil, err
	}
	objs, err := st.List(req.GetKind())
	if err != nil {
		return nil, err
	}
	if req.GetKind() == "" { // every machine has one, and older clients take it for a workload
		objs = slices.DeleteFunc(objs, func(o *capsulev1.Object) bool { return o.GetCapsule() != nil })
	}
	if objs, err = s.show(objs...); err != nil {
		return nil, err
	}
	return &capsulev1.ListResponse{Objects: objs}, nil
}

func (s *objects) Delete(ctx context.Context, req *capsulev1.DeleteRequest) (*capsulev1.DeleteResponse, error) {
	st, err := s.state()
	if err != nil {
		return nil, err
	}
	if err := checkKind(req.GetKind()); err != nil {
		return nil, err
	}
	if err := s.mayDeclare(ctx, req.GetKind()); err != nil {
		return nil, err
	}
	if req.GetKind() == manifest.KindCapsule {
		return nil, errOneMachine
	}
	if req.GetKind() == manifest.KindVolume {
		return &capsulev1.DeleteResponse{}, s.deleteVolume(ctx, st, req.GetName())
	}
	if req.GetKind() == manifest.KindSecret {
		return &capsulev1.DeleteResponse{}, s.deleteSecret(st, req.GetName())
	}
	if err := st.Delete(req.GetKind(), req.GetName()); err != nil {
		return nil, err
	}
	s.wake(req.GetName())
	return &capsulev1.DeleteResponse{}, nil
}

func (s *objects) Watch(req *capsulev1.WatchRequest, out capsulev1.ObjectService_WatchServer) error {
	st, err := s.state()
	if err != nil {
		return err
	}
	if err := checkKind(req.GetKind()); err != nil {
		return err
	}
	changes, err := st.Watch(out.Context(), req.GetKind(), req.GetName())
	if err != nil {
		return err
	}
	for c := range changes {
		shown, err := s.showOne(c.Object)
		if err != nil {
			return err
		}
		if err := out.Send(&capsulev1.WatchResponse{Object: shown, Deleted: c.Deleted, Synced: c.Synced}); err != nil {
			return err
		}
	}
	if err := out.Context().Err(); err != nil {
		return err
	}
	return fmt.Errorf("the watch ended, as it fell behind or the capsule stops; watch again: %w", errdefs.ErrUnavailable)
}
