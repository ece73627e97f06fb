package main

import (
	"context"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
)

func newVolumeRestoreCommand(a *app) *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use: "restore NAME SNAPSHOT", Short: "Make a volume what a snapshot of it is",
		Long: `Makes a volume what a snapshot of it is. No workload may mount it meanwhile. What
the volume was before is kept as another snapshot.

--to makes a new volume of the snapshot instead and leaves the first as it is, as
"volume clone" does.`,
		Example: `  capsulectl volume restore photos before-update
  capsulectl volume restore photos before-update --to photos-then`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if to != "" {
				return runVolumeClone(cmd.Context(), a, args[0], args[1], to)
			}
			return runVolumeRestore(cmd.Context(), a, args[0], args[1])
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "name of a new volume to restore to")
	return cmd
}

func runVolumeRestore(ctx context.Context, a *app, volume, snapshot string) error {
	answer, err := callWithin(ctx, a, workMax, func(ctx context.Context, c *client) (*capsulev1.RestoreResponse, error) {
		return c.volumes.Restore(ctx, &capsulev1.RestoreRequest{Volume: volume, Snapshot: snapshot})
	})
	if err != nil {
		return err
	}
	a.ui.printf("volume/%s restored from %s@%s; what it was is kept as %s\n", volume, volume, snapshot, snapshotName(answer.GetKept()))
	return nil
}

func newVolumeCloneCommand(a *app) *cobra.Command {
	var snapshot string
	cmd := &cobra.Command{
		Use: "clone NAME NEWNAME", Short: "Make a new volume of a volume as it is now, or of a snapshot",
		Long: `Makes a new volume of a volume as it is now, also while that is mounted and
written to, or of a snapshot of it. The two share their space until one changes.`,
		Example: `  capsulectl volume clone photos photos-test
  capsulectl volume clone photos photos-then --snapshot before-update`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runVolumeClone(cmd.Context(), a, args[0], snapshot, args[1])
		},
	}
	cmd.Flags().StringVar(&snapshot, "snapshot", "", "snapshot to make it of")
	return cmd
}

func runVolumeClone(ctx context.Context, a *app, volume, snapshot, name string) error {
	answer, err := callWithin(ctx, a, workMax, func(ctx context.Context, c *client) (*capsulev1.CloneResponse, error) {
		return c.volumes.Clone(ctx, &capsulev1.CloneRequest{Volume: volume, Snapshot: snapshot, Name: name})
	})
	if err != nil {
		return err
	}
	return showMade(a, answer.GetObject())
}

// showMade tells of a volume that was made of something.
func showMade(a *app, o *capsulev1.Object) error {
	if a.output != formatTable {
		return showVolume(a, o)
	}
	a.ui.printf("%s created: %s\n", nameOf(o.GetMeta()), exactSize(volumeSize(o)))
	return nil
}
