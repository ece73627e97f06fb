package main

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

func newVolumeSnapshotCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "snapshot NAME [SNAPSHOT]", Short: "Keep a volume as it is now",
		Long: `Keeps a volume as it is now, under a name that is made of the time unless one is
given. It is done at once, also while the volume is mounted and written to, and
takes space only as the volume changes.`,
		Example: "  capsulectl volume snapshot photos before-update",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runVolumeSnapshot(cmd.Context(), a, args[0], strings.Join(args[1:], ""))
		},
	}
}

func runVolumeSnapshot(ctx context.Context, a *app, volume, name string) error {
	answer, err := callWithin(ctx, a, workMax, func(ctx context.Context, c *client) (*capsulev1.SnapshotResponse, error) {
		return c.volumes.Snapshot(ctx, &capsulev1.SnapshotRequest{Volume: volume, Name: name})
	})
	if err != nil {
		return err
	}
	if a.output == formatTable {
		a.ui.printf("snapshot %s made\n", snapshotName(answer.GetSnapshot()))
		return nil
	}
	v := snapshotView([]*capsulev1.Snapshot{answer.GetSnapshot()}, time.Now())
	v.single = true
	return a.ui.show(a.output, v)
}

// snapshotName is a snapshot in one word, as "volume export" takes it.
func snapshotName(s *capsulev1.Snapshot) string { return s.GetVolume() + "@" + s.GetName() }

func newVolumeSnapshotsCommand(a *app) *cobra.Command {
	return onMany(a, &cobra.Command{
		Use: "snapshots [NAME]", Short: "List the snapshots of a volume, or of all",
		Long: `Lists snapshots, the oldest of a volume first. USED is what a snapshot refers to in
the pool; most of it is shared with the volume and with other snapshots.`,
		Example: "  capsulectl volume snapshots photos",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.read(cmd.Context(), snapshotsOf(strings.Join(args, "")))
		},
	})
}

func snapshotsOf(volume string) reading {
	return func(ctx context.Context, a *app) (view, error) {
		answer, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.ListSnapshotsResponse, error) {
			return c.volumes.ListSnapshots(ctx, &capsulev1.ListSnapshotsRequest{Volume: volume})
		})
		return snapshotView(answer.GetSnapshots(), time.Now()), err
	}
}

func snapshotView(snapshots []*capsulev1.Snapshot, now time.Time) view {
	slices.SortStableFunc(snapshots, func(a, b *capsulev1.Snapshot) int {
		return cmp.Or(strings.Compare(a.GetVolume(), b.GetVolume()), a.GetCreatedAt().AsTime().Compare(b.GetCreatedAt().AsTime()))
	})
	v := view{
		columns: []string{"VOLUME", "SNAPSHOT", "SIZE", "USED", "MADE BY", "AGE"},
		empty:   "no snapshots; \"capsulectl volume snapshot NAME\" makes one",
	}
	for _, s := range snapshots {
		by := "operator"
		if s.GetScheduled() {
			by = "schedule"
		}
		v.names, v.values = append(v.names, snapshotName(s)), append(v.values, s)
		v.rows = append(v.rows, []string{
			s.GetVolume(), s.GetName(), manifest.FormatSize(s.GetSize()), size(s.GetUsed()), by, age(s.GetCreatedAt().AsTime(), now),
		})
	}
	return v
}

func newVolumeDeleteSnapshotCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "delete-snapshot NAME SNAPSHOT...", Short: "Remove snapshots of a volume",
		Long:    "Removes snapshots of a volume. The volume stays as it is.",
		Example: "  capsulectl volume delete-snapshot photos before-update",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runVolumeDeleteSnapshot(cmd.Context(), a, args[0], args[1:])
		},
	}
}

// runVolumeDeleteSnapshot goes on after one that is absent or can't be removed.
func runVolumeDeleteSnapshot(ctx context.Context, a *app, volume string, names []string) error {
	var errs []error
	for _, name := range names {
		_, err := callWithin(ctx, a, workMax, func(ctx context.Context, c *client) (*capsulev1.DeleteSnapshotResponse, error) {
			return c.volumes.DeleteSnapshot(ctx, &capsulev1.DeleteSnapshotRequest{Volume: volume, Name: name})
		})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		a.ui.printf("snapshot %s@%s deleted\n", volume, name)
	}
	return errors.Join(errs...)
}
