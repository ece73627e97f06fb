package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
)

// VolumeDeleteOptions of "volume delete".
type VolumeDeleteOptions struct {
	Force bool
}

func newVolumeDeleteCommand(a *app) *cobra.Command {
	var o VolumeDeleteOptions
	cmd := &cobra.Command{
		Use: "delete NAME...", Aliases: []string{"rm"}, Short: "Remove volumes with their data and snapshots",
		Long: `Removes volumes with their data and their snapshots. One that a workload mounts
is refused; with --force that workload is stopped first, and stays stopped.`,
		Example: `  capsulectl volume delete photos
  capsulectl volume delete photos --force`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runVolumeDelete(cmd.Context(), a, o, args) },
	}
	cmd.Flags().BoolVar(&o.Force, "force", false, "stop the workloads that mount them first")
	return cmd
}

// runVolumeDelete goes on after one that is absent or can't be removed.
func runVolumeDelete(ctx context.Context, a *app, o VolumeDeleteOptions, names []string) error {
	var errs []error
	for _, name := range names {
		errs = append(errs, deleteVolume(ctx, a, name, o.Force))
	}
	return errors.Join(errs...)
}

// deleteVolume returns once nothing of the volume is left.
func deleteVolume(ctx context.Context, a *app, name string, force bool) error {
	answer, err := callWithin(ctx, a, workMax, func(ctx context.Context, c *client) (*capsulev1.VolumeServiceDeleteResponse, error) {
		return c.volumes.Delete(ctx, &capsulev1.VolumeServiceDeleteRequest{Name: name, Force: force})
	})
	if err != nil {
		return err
	}
	for _, workload := range answer.GetStopped() {
		a.ui.printf("workload/%s stopped\n", workload)
	}
	a.ui.printf("volume/%s deleted\n", name)
	return nil
}
