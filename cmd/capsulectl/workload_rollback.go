package main

import (
	"context"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
)

// RollbackOptions of "workload rollback".
type RollbackOptions struct {
	To uint64
	ApplyOptions
}

func newWorkloadRollbackCommand(a *app) *cobra.Command {
	var o RollbackOptions
	cmd := &cobra.Command{
		Use: "rollback NAME", Short: "Apply an older manifest of a workload again",
		Long: `Applies an older manifest of a workload again, as "apply" would: it is checked, what
runs serves until it is prepared, and it is gone back from when it does not become
healthy. Without --to it is the newest one that was well and differs from what is
declared. "workload history" shows which there are.

Volumes are left as they are: a program may not read what a newer one wrote.`,
		Example: `  capsulectl workload rollback web --dry-run
  capsulectl workload rollback web --to 3 --wait`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runWorkloadRollback(cmd.Context(), a, o, args[0])
		},
	}
	flags := cmd.Flags()
	flags.Uint64Var(&o.To, "to", 0, "generation of the manifest, as \"workload history\" shows it")
	flags.BoolVar(&o.DryRun, "dry-run", false, "check and show the difference only")
	waitFlags(cmd, &o.Wait, &o.Timeout, "wait until it runs and is healthy")
	return cmd
}

func runWorkloadRollback(ctx context.Context, a *app, o RollbackOptions, name string) error {
	answer, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.RollbackResponse, error) {
		return c.workloads.Rollback(ctx, &capsulev1.RollbackRequest{Name: name, To: o.To, DryRun: o.DryRun})
	})
	if err != nil {
		return err
	}
	results := []*capsulev1.ApplyResult{answer.GetResult()}
	a.warnOf(results)
	a.ui.note("back to the manifest of generation %d", answer.GetTo())
	if err := a.showApplied(results, o.DryRun); err != nil {
		return err
	}
	return a.waitApplied(ctx, o.ApplyOptions, results)
}
