package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
)

// waitDefault is how long --wait waits: room for a large image on a slow line.
const waitDefault = 5 * time.Minute

// ApplyOptions of "apply".
type ApplyOptions struct {
	Files   []string
	DryRun  bool
	Wait    bool
	Timeout time.Duration
	// ConfirmAt is where a changed network is confirmed; "" is chosen.
	ConfirmAt string
}

func newApplyCommand(a *app) *cobra.Command {
	var o ApplyOptions
	cmd := &cobra.Command{
		Use:   "apply -f FILE|DIR|-",
		Short: "Create or change workloads, volumes and secrets from manifests",
		Long: `Creates or changes what the manifests declare, all of it or nothing. A file may
hold several documents, divided by "---"; of a folder its *.yaml and *.yml are
read; "-" is the standard input.

--dry-run checks everything on the capsule and shows what would change.
--wait follows the workloads until what was applied runs, and is healthy where it
has a check, or has ended with code 0; a workload that fails, is unhealthy or falls
into back-off meanwhile ends the wait, with a change that is taken back once what was
healthy before runs again. One that waits for a volume or another workload is waited
for. A volume is ready once it is made.

A change of the capsule's own network (kind Capsule) is tried for a minute, and goes
back by itself unless it is confirmed. That is done here, by a new connection to an
address that is new, or to the host that --confirm-at names.

On several capsules each takes all of it or nothing, whatever becomes of the
others; the table tells what was done on which.`,
		Example: `  capsulectl apply -f web.yaml --wait
  capsulectl apply -f manifests/ --dry-run
  capsulectl apply -f web.yaml --capsule kitchen,attic`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error { return runApply(cmd.Context(), a, o, args) },
	}
	onMany(a, cmd)
	flags := cmd.Flags()
	flags.StringArrayVarP(&o.Files, "file", "f", nil, "file or folder of manifests, \"-\" for the standard input (repeatable)")
	flags.BoolVar(&o.DryRun, "dry-run", false, "check and show the difference only")
	flags.BoolVar(&o.Wait, "wait", false, "wait until it runs and is healthy, and volumes are ready")
	flags.DurationVar(&o.Timeout, "timeout", waitDefault, "bound of --wait")
	flags.StringVar(&o.ConfirmAt, "confirm-at", "", "HOST[:PORT] to confirm a changed network of the capsule at")
	must(cmd.MarkFlagRequired("file"))
	return cmd
}

func runApply(ctx context.Context, a *app, o ApplyOptions, _ []string) error {
	if err := o.checkConfirmAt(a); err != nil {
		return err
	}
	objects, err := a.readManifests(o.Files)
	if err != nil {
		return err
	}
	if a.many() {
		return a.read(ctx, func(ctx context.Context, a *app) (view, error) { return applyOnOne(ctx, a, o, objects) })
	}
	return applyObjects(ctx, a, o, objects)
}

// applyOnOne of several capsules gives what was done in rows, also when the wait
// for it fails.
func applyOnOne(ctx context.Context, a *app, o ApplyOptions, objects []*capsulev1.Object) (view, error) {
	results, err := a.apply(ctx, o, objects)
	if err != nil {
		return view{}, err
	}
	v := view{columns: []string{"NAME", "RESULT"}}
	for _, r := range results {
		name := nameOf(r.GetObject().GetMeta())
		v.names, v.values = append(v.names, name), append(v.values, r)
		v.rows = append(v.rows, []string{name, outcomeText(r, o.DryRun)})
		if (o.DryRun || isConfiguration(r.GetObject())) && r.GetDiff() != "" {
			v.text += fmt.Sprintf("%s\n%s\n", name, strings.TrimRight(r.GetDiff(), "\n"))
		}
	}
	return v, a.followApplied(ctx, o, results)
}

func applyObjects(ctx context.Context, a *app, o ApplyOptions, objects []*capsulev1.Object) error {
	results, err := a.apply(ctx, o, objects)
	if err != nil {
		return err
	}
	if err := a.showApplied(results, o.DryRun); err != nil {
		return err
	}
	return a.followApplied(ctx, o, results)
}

// followApplied confirms a changed network, and waits where that was asked for.
func (a *app) followApplied(ctx context.Context, o ApplyOptions, results []*capsulev1.ApplyResult) error {
	if !o.DryRun {
		if err := a.confirmNetwork(ctx, o.ConfirmAt, results); err != nil {
			return err
		}
	}
	return a.waitApplied(ctx, o, results)
}

// apply makes the call, and passes on what the capsule warns of.
func (a *app) apply(ctx context.Context, o ApplyOptions, objects []*capsulev1.Object) ([]*capsulev1.ApplyResult, error) {
	answer, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.ApplyResponse, error) {
		return c.objects.Apply(ctx, &capsulev1.ApplyRequest{Objects: objects, DryRun: o.DryRun})
	})
	a.warnOf(answer.GetResults())
	return answer.GetResults(), err
}

// warnOf passes on what the capsule warns of.
func (a *app) warnOf(results []*capsulev1.ApplyResult) {
	for _, r := range results {
		for _, w := range r.GetWarnings() {
			a.ui.warn(nameOf(r.GetObject().GetMeta()) + ": " + w)
		}
	}
}

// waitApplied waits for what was applied, where that was asked for.
func (a *app) waitApplied(ctx context.Context, o ApplyOptions, results []*capsulev1.ApplyResult) error {
	if !o.Wait || o.DryRun {
		return nil
	}
	var targets []target
	for _, r := range results {
		targets = append(targets, targetOf(r.GetObject()))
	}
	return a.waitReady(ctx, o.Timeout, targets)
}

var outcomes = map[capsulev1.Outcome]string{
	capsulev1.Outcome_OUTCOME_CREATED:   "created",
	capsulev1.Outcome_OUTCOME_CHANGED:   "changed",
	capsulev1.Outcome_OUTCOME_UNCHANGED: "unchanged",
}

// outcomeText is what was done with an object, or would be.
func outcomeText(r *capsulev1.ApplyResult, dryRun bool) string {
	text := outcomes[r.GetOutcome()]
	if dryRun {
		text += " (dry run)"
	}
	if isVolume(r.GetObject()) {
		text += ": " + exactSize(r.GetObject().GetVolume().GetSpec().GetSize())
	}
	return text
}

func (a *app) showApplied(results []*capsulev1.ApplyResult, dryRun bool) error {
	v := view{columns: []string{}}
	for _, r := range results {
		meta := r.GetObject().GetMeta()
		v.names, v.values = append(v.names, nameOf(meta)), append(v.values, r)
		if a.output != formatTable {
			continue
		}
		a.ui.printf("%s %s\n", nameOf(meta), outcomeText(r, dryRun))
		if (dryRun || isConfiguration(r.GetObject())) && r.GetDiff() != "" {
			a.ui.printf("%s\n", strings.TrimRight(r.GetDiff(), "\n"))
		}
	}
	if a.output == formatTable {
		return nil
	}
	return a.ui.show(a.output, v)
}
