package server

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/network"
	"capsule/internal/store"
	"capsule/internal/workload"
)

// caller is the name in the certificate of who calls, "" within the capsule.
func caller(ctx context.Context) string {
	cert, err := certificate(ctx)
	if err != nil {
		return ""
	}
	return cert.Subject.CommonName
}

// History gives what is kept of what was applied.
func (s *workloads) History(_ context.Context, req *capsulev1.HistoryRequest) (*capsulev1.HistoryResponse, error) {
	_, h, err := s.history(req.GetName())
	return h, err
}

func (s *workloads) history(name string) (*capsulev1.Object, *capsulev1.HistoryResponse, error) {
	st, err := s.state()
	if err != nil {
		return nil, nil, err
	}
	obj, err := st.Get("", name)
	if err != nil {
		return nil, nil, err
	}
	h, err := workload.Revisions(st, obj.GetMeta())
	return obj, h, err
}

// Rollback applies an older revision, with all checks of an apply.
func (s *workloads) Rollback(ctx context.Context, req *capsulev1.RollbackRequest) (*capsulev1.RollbackResponse, error) {
	obj, h, err := s.history(req.GetName())
	if err != nil {
		return nil, err
	}
	if obj.GetMeta().GetDeletedAt() != nil {
		return nil, fmt.Errorf("workload %q is being deleted: %w", req.GetName(), errdefs.ErrFailedPrecondition)
	}
	to, err := revision(h, obj, req.GetTo())
	if err != nil {
		return nil, err
	}
	again := &capsulev1.Object{
		Meta: &capsulev1.Meta{Kind: to.GetKind(), Name: req.GetName()},
		Kind: &capsulev1.Object_Workload{Workload: &capsulev1.Workload{Spec: to.GetSpec()}},
	}
	applied, err := (&objects{Options: s.Options}).Apply(ctx, &capsulev1.ApplyRequest{Objects: []*capsulev1.Object{again}, DryRun: req.GetDryRun()})
	if err != nil {
		return nil, fmt.Errorf("roll back to generation %d: %w", to.GetGeneration(), err)
	}
	return &capsulev1.RollbackResponse{Result: applied.GetResults()[0], To: to.GetGeneration()}, nil
}

// revision finds the one of a generation, or for 0 the newest one that was well and
// differs from what is declared.
func revision(h *capsulev1.HistoryResponse, obj *capsulev1.Object, generation uint64) (*capsulev1.Revision, error) {
	var kept []string
	for _, r := range slices.Backward(h.GetRevisions()) {
		switch well := r.GetOutcome() == capsulev1.RevisionOutcome_REVISION_OUTCOME_HEALTHY || r.GetOutcome() == capsulev1.RevisionOutcome_REVISION_OUTCOME_RAN; {
		case generation != 0 && r.GetGeneration() == generation:
			return r, nil
		case generation == 0 && well && !declares(obj, r):
			return r, nil
		}
		kept = append(kept, fmt.Sprint(r.GetGeneration()))
	}
	slices.Reverse(kept)
	what, list := "other revision that was well", strings.Join(kept, ", ")
	if generation != 0 {
		what = fmt.Sprintf("revision %d", generation)
	}
	if list == "" {
		list = "none yet"
	}
	return nil, fmt.Errorf("workload %q has no %s; kept are: %s: %w", obj.GetMeta().GetName(), what, list, errdefs.ErrFailedPrecondition)
}

// declares tells whether an object is what a revision says.
func declares(obj *capsulev1.Object, r *capsulev1.Revision) bool {
	return obj.GetMeta().GetKind() == r.GetKind() && proto.Equal(obj.GetWorkload().GetSpec(), r.GetSpec())
}

// standingConflicts checks the ports of generations that are declared no more, and
// serve or are gone back to, should what is declared not be well.
func standingConflicts(tx store.View, all []*capsulev1.Object, asked map[string]bool, wanted []network.Published) error {
	for _, o := range all {
		if o.GetWorkload() == nil || asked[o.GetMeta().GetUid()] || o.GetMeta().GetDeletedAt() != nil {
			continue // what is deleted is on its way out, and gone back to no more
		}
		standing, err := workload.Standing(tx, o.GetMeta())
		if err != nil {
			return err
		}
		for _, former := range standing {
			if former.GetMeta().GetGeneration() == o.GetMeta().GetGeneration() {
				continue
			}
			if err := network.Conflicts(append(workload.Ports(former), wanted...)); err != nil {
				return fmt.Errorf("generation %d of workload %q serves, or is gone back to: %w", former.GetMeta().GetGeneration(), o.GetMeta().GetName(), err)
			}
		}
	}
	return nil
}

// triedAgain warns whoever applies again what was rolled back.
func triedAgain(old *capsulev1.Object, r *capsulev1.ApplyResult) []string {
	if r.GetDiff() != "" || old == nil || !store.GivenUp(old) {
		return nil
	}
	return []string{fmt.Sprintf("it was rolled back before (%s), and is tried again", old.GetWorkload().GetStatus().GetRolledBack())}
}
