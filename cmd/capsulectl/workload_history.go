package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

func newWorkloadHistoryCommand(a *app) *cobra.Command {
	return onMany(a, &cobra.Command{
		Use: "history NAME", Short: "Show what was applied of a workload, and what became of it",
		Long: `Shows the manifests of a workload that were applied of late, oldest first: at most
ten, each by the generation that it was applied as. NOW tells which is declared and
which runs. With "-o yaml" the manifests themselves are shown.

The outcome is "healthy" once it was healthy, or has ended well; "ran" when it ran for
ten seconds and has no check; "failed" when it could not be made, ended or was
unhealthy; "rolled back" when the capsule then went back to what was healthy before.
One that was well once stays so.`,
		Example: "  capsulectl workload history web\n  capsulectl workload history web -o yaml",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.read(cmd.Context(), revisionsOf(args[0])) },
	})
}

// revisionsOf reads the revisions of a workload.
func revisionsOf(name string) reading {
	return func(ctx context.Context, a *app) (view, error) {
		o, err := fetchObject(ctx, a, "", name)
		if err != nil {
			return view{}, err
		}
		h, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.HistoryResponse, error) {
			return c.workloads.History(ctx, &capsulev1.HistoryRequest{Name: name})
		})
		if err != nil {
			return view{}, err
		}
		return revisionsView(o, h.GetRevisions(), time.Now())
	}
}

var revisionOutcomes = map[capsulev1.RevisionOutcome]string{
	capsulev1.RevisionOutcome_REVISION_OUTCOME_HEALTHY:     "healthy",
	capsulev1.RevisionOutcome_REVISION_OUTCOME_RAN:         "ran",
	capsulev1.RevisionOutcome_REVISION_OUTCOME_FAILED:      "failed",
	capsulev1.RevisionOutcome_REVISION_OUTCOME_ROLLED_BACK: "rolled back",
}

func revisionsView(o *capsulev1.Object, revisions []*capsulev1.Revision, now time.Time) (view, error) {
	v := view{
		columns: []string{"GENERATION", "IMAGE", "OUTCOME", "NOW", "BY", "AGE", "DIGEST", "MESSAGE"},
		empty:   "nothing is kept of what was applied before this version of Capsule",
	}
	declared := revisionAt(revisions, o.GetMeta().GetGeneration())
	runs := revisionAt(revisions, o.GetWorkload().GetStatus().GetRunningGeneration())
	for _, r := range revisions {
		state := ""
		switch {
		case r == runs && r == declared:
			state = "declared, runs"
		case r == runs:
			state = "runs"
		case r == declared:
			state = "declared"
		}
		v.rows = append(v.rows, []string{
			fmt.Sprint(r.GetGeneration()), r.GetSpec().GetImage(), revisionOutcomes[r.GetOutcome()], state, r.GetAppliedBy(),
			age(r.GetAppliedAt().AsTime(), now), shortDigest(r.GetImageDigest()), oneLine(r.GetMessage()),
		})
		v.names = append(v.names, fmt.Sprint(r.GetGeneration()))
		v.values = append(v.values, r)
		document, err := manifest.Encode(&capsulev1.Object{
			Meta: &capsulev1.Meta{Kind: r.GetKind(), Name: o.GetMeta().GetName()},
			Kind: &capsulev1.Object_Workload{Workload: &capsulev1.Workload{Spec: r.GetSpec()}},
		})
		if err != nil {
			return v, err
		}
		v.yaml = append(v.yaml, fmt.Appendf(nil, "# generation %d\n%s", r.GetGeneration(), document))
	}
	return v, nil
}

// revisionAt is the revision that a generation is of, nil for none: starts and stops
// make generations too.
func revisionAt(revisions []*capsulev1.Revision, generation uint64) *capsulev1.Revision {
	for _, r := range slices.Backward(revisions) {
		if r.GetGeneration() <= generation {
			return r
		}
	}
	return nil
}
