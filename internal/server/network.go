package server

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/store"
)

// lookAtNetwork asks the network around what can be known of the machine's new one
// before it is tried. The warnings are of each object.
func (o *Options) lookAtNetwork(ctx context.Context, objs []*capsulev1.Object) ([][]string, error) {
	warnings := make([][]string, len(objs))
	var errs []error
	for i, obj := range objs {
		if obj.GetCapsule() == nil || o.Network == nil {
			continue
		}
		texts, err := o.Network.Look(ctx, obj.GetCapsule().GetSpec().GetNetwork())
		warnings[i] = texts
		errs = append(errs, err)
	}
	return warnings, errors.Join(errs...)
}

// admitNetwork begins the trial of a changed network with the change.
func (o *Options) admitNetwork(tx store.View, objs []*capsulev1.Object) error {
	var errs []error
	for _, obj := range objs {
		if obj.GetCapsule() != nil && o.Network != nil {
			errs = append(errs, o.Network.Admit(tx, obj))
		}
	}
	return errors.Join(errs...)
}

// tryNetwork has the machine try what was applied, and adds to the result that it
// does, and until when.
func (o *Options) tryNetwork(r *capsulev1.ApplyResult) {
	if r.GetObject().GetCapsule() == nil || o.Network == nil {
		return
	}
	o.Network.Follow()
	s, err := o.Network.Status()
	if err != nil {
		o.Log.Error("look at the network", "error", err)
	}
	r.Object = proto.CloneOf(r.GetObject())
	status := r.GetObject().GetCapsule().GetStatus()
	if status == nil {
		status = &capsulev1.CapsuleStatus{}
		r.GetObject().GetCapsule().Status = status
	}
	status.Trial = s.Trial
}

func (s *capsule) ConfirmNetwork(ctx context.Context, req *capsulev1.ConfirmNetworkRequest) (*capsulev1.ConfirmNetworkResponse, error) {
	if s.Network == nil {
		return nil, fmt.Errorf("no change of the network is tried: %w", errdefs.ErrFailedPrecondition)
	}
	proof, done, err := s.Network.Confirm(ctx, req.GetGeneration(), req.GetProof())
	if err != nil {
		return nil, err
	}
	return &capsulev1.ConfirmNetworkResponse{Proof: proof, Confirmed: done}, nil
}
