package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
)

// ActionOptions of "workload start", "stop" and "restart".
type ActionOptions struct {
	Wait    bool
	Timeout time.Duration
}

// action is one of the calls that change what operators ask of a workload.
type action struct {
	verb, done string
	short      string
	long       string
	until      goal
	do         func(ctx context.Context, c *client, name string) (*capsulev1.Object, error)
}

func newWorkloadStartCommand(a *app) *cobra.Command {
	return newActionCommand(a, action{
		verb: "start", done: "asked to start", short: "Start a stopped workload, or one that waits for its next try",
		long:  "Clears an operator's stop, and skips a waiting back-off.",
		until: untilRuns,
		do: func(ctx context.Context, c *client, name string) (*capsulev1.Object, error) {
			r, err := c.workloads.Start(ctx, &capsulev1.StartRequest{Name: name})
			return r.GetObject(), err
		},
	})
}

func newWorkloadStopCommand(a *app) *cobra.Command {
	return newActionCommand(a, action{
		verb: "stop", done: "asked to stop", short: "Stop a workload and keep it stopped",
		long:  "Sends the stop signal, waits for the grace, then kills. The workload stays\nstopped until it is started, through reboots too.",
		until: untilStopped,
		do: func(ctx context.Context, c *client, name string) (*capsulev1.Object, error) {
			r, err := c.workloads.Stop(ctx, &capsulev1.StopRequest{Name: name})
			return r.GetObject(), err
		},
	})
}

func newWorkloadRestartCommand(a *app) *cobra.Command {
	return newActionCommand(a, action{
		verb: "restart", done: "asked to restart", short: "Replace a workload's instance by a new one",
		long:  "Stops the instance gracefully and starts a new one of the same manifest.",
		until: untilRuns,
		do: func(ctx context.Context, c *client, name string) (*capsulev1.Object, error) {
			r, err := c.workloads.Restart(ctx, &capsulev1.RestartRequest{Name: name})
			return r.GetObject(), err
		},
	})
}

func newActionCommand(a *app, act action) *cobra.Command {
	var o ActionOptions
	cmd := &cobra.Command{
		Use:     act.verb + " NAME...",
		Short:   act.short,
		Long:    act.long,
		Example: "  capsulectl workload " + act.verb + " web --wait",
		Args:    cobra.MinimumNArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return runAction(cmd.Context(), a, act, o, args) },
	}
	waitFlags(cmd, &o.Wait, &o.Timeout, "wait until it is done")
	return cmd
}

func runAction(ctx context.Context, a *app, act action, o ActionOptions, names []string) error {
	var targets []target
	for _, name := range names {
		object, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.Object, error) { return act.do(ctx, c, name) })
		if err != nil {
			return err
		}
		a.ui.printf("%s %s\n", nameOf(object.GetMeta()), act.done)
		targets = append(targets, targetOf(object))
	}
	if !o.Wait {
		return nil
	}
	return a.wait(ctx, o.Timeout, targets, act.until)
}

func newWorkloadDeleteCommand(a *app) *cobra.Command {
	var o DeleteOptions
	cmd := &cobra.Command{
		Use: "delete NAME...", Aliases: []string{"rm"}, Short: "Remove workloads",
		Long:    "Stops the workloads gracefully and removes them.",
		Example: "  capsulectl workload delete web",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var metas []*capsulev1.Meta
			for _, name := range args {
				metas = append(metas, &capsulev1.Meta{Name: name})
			}
			return deleteObjects(cmd.Context(), a, o, metas)
		},
	}
	waitFlags(cmd, &o.Wait, &o.Timeout, "wait until nothing of them is left")
	return cmd
}
