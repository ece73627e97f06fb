package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

// sizeNote explains sizes in the help of commands that take one.
const sizeNote = `A size has a unit: 10GiB are 10 times 2^30 bytes, 10GB are 10 times 10^9. It is
rounded up to whole extents of 4 MiB.`

// VolumeCreateOptions of "volume create".
type VolumeCreateOptions struct {
	Size           string
	SnapshotsEvery time.Duration
	SnapshotsKeep  uint32
	Wait           bool
	Timeout        time.Duration
}

func newVolumeCreateCommand(a *app) *cobra.Command {
	var o VolumeCreateOptions
	cmd := &cobra.Command{
		Use:   "create NAME --size SIZE",
		Short: "Make a volume",
		Long: `Makes a volume, as a manifest of kind Volume does. One that is there already and
is the same stays as it is; another one is refused.

` + sizeNote + ` It takes
space as it is written to, not when it is made.`,
		Example: `  capsulectl volume create photos --size 10GiB
  capsulectl volume create photos --size 10GiB --snapshots-every 24h --snapshots-keep 7`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			object, err := o.object(cmd, args[0])
			if err != nil {
				return usage(cmd, err)
			}
			return runVolumeCreate(cmd.Context(), a, o, object)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Size, "size", "", "size of the volume, such as 10GiB")
	flags.DurationVar(&o.SnapshotsEvery, "snapshots-every", 0, "time between snapshots that are made by themselves, 10m to 8760h")
	flags.Uint32Var(&o.SnapshotsKeep, "snapshots-keep", 0, "how many of those are kept, 1 to 100 (default 7)")
	waitFlags(cmd, &o.Wait, &o.Timeout, "wait until it is made")
	must(cmd.MarkFlagRequired("size"))
	return cmd
}

// object is what the options declare.
func (o VolumeCreateOptions) object(cmd *cobra.Command, name string) (*capsulev1.Object, error) {
	bytes, err := volumeSizeArgument(o.Size)
	if err != nil {
		return nil, err
	}
	spec := &capsulev1.VolumeSpec{Size: bytes}
	switch every, keep := cmd.Flags().Changed("snapshots-every"), cmd.Flags().Changed("snapshots-keep"); {
	case every && keep && o.SnapshotsKeep == 0:
		return nil, errors.New("--snapshots-keep 0: want 1 to 100")
	case every:
		spec.Snapshots = &capsulev1.SnapshotSchedule{Every: durationpb.New(o.SnapshotsEvery), Keep: o.SnapshotsKeep}
	case keep:
		return nil, errors.New("--snapshots-keep without --snapshots-every")
	}
	return &capsulev1.Object{
		Meta: &capsulev1.Meta{Kind: manifest.KindVolume, Name: name},
		Kind: &capsulev1.Object_Volume{Volume: &capsulev1.Volume{Spec: spec}},
	}, nil
}

// volumeSizeArgument reads a size of the command line.
func volumeSizeArgument(text string) (int64, error) {
	bytes, err := manifest.ParseSize(text)
	if err != nil {
		return 0, withoutClass(err)
	}
	return bytes, nil
}

func runVolumeCreate(ctx context.Context, a *app, o VolumeCreateOptions, object *capsulev1.Object) error {
	old, err := fetchObject(ctx, a, manifest.KindVolume, object.GetMeta().GetName())
	if err != nil && !notFound(err) {
		return err
	}
	if err := otherVolume(old, object); err != nil {
		return err
	}
	return applyObjects(ctx, a, ApplyOptions{Wait: o.Wait, Timeout: o.Timeout}, []*capsulev1.Object{object})
}

// otherVolume refuses to make a volume of what is there already and differs.
func otherVolume(old, object *capsulev1.Object) error {
	object = proto.CloneOf(object)
	manifest.Default(object) // as the capsule will
	has, wants := old.GetVolume().GetSpec(), object.GetVolume().GetSpec()
	if old == nil || old.GetMeta().GetDeletedAt() != nil || proto.Equal(has, wants) {
		return nil
	}
	name := old.GetMeta().GetName()
	text, hint := "with another snapshot schedule", fmt.Sprintf("change its manifest, which \"capsulectl volume get %s -o yaml\" prints, and apply it", name)
	switch {
	case has.GetSize() < wants.GetSize():
		text, hint = "of "+exactSize(has.GetSize()), fmt.Sprintf("capsulectl volume resize %s %s", name, manifest.FormatSize(wants.GetSize()))
	case has.GetSize() > wants.GetSize():
		text, hint = "of "+exactSize(has.GetSize()), "a volume never shrinks; make one of another name and copy what it holds"
	}
	return &failure{exitFailed, fmt.Errorf("volume %q is there already, %s", name, text), hint}
}

// VolumeResizeOptions of "volume resize".
type VolumeResizeOptions struct {
	Wait    bool
	Timeout time.Duration
}

func newVolumeResizeCommand(a *app) *cobra.Command {
	var o VolumeResizeOptions
	cmd := &cobra.Command{
		Use:   "resize NAME SIZE",
		Short: "Grow a volume",
		Long: `Gives a volume a larger size, while it is mounted and written to. A volume never
shrinks.

` + sizeNote,
		Example: "  capsulectl volume resize photos 20GiB --wait",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			bytes, err := volumeSizeArgument(args[1])
			if err != nil {
				return usage(cmd, err)
			}
			return runVolumeResize(cmd.Context(), a, o, args[0], bytes)
		},
	}
	waitFlags(cmd, &o.Wait, &o.Timeout, "wait until it has its new size")
	return cmd
}

func runVolumeResize(ctx context.Context, a *app, o VolumeResizeOptions, name string, bytes int64) error {
	object, err := fetchObject(ctx, a, manifest.KindVolume, name)
	if err != nil {
		return err
	}
	if object.GetMeta().GetDeletedAt() != nil { // applied, it would be made anew
		return fmt.Errorf("volume %q is being deleted", name)
	}
	object.GetVolume().GetSpec().Size = bytes
	return applyObjects(ctx, a, ApplyOptions{Wait: o.Wait, Timeout: o.Timeout}, []*capsulev1.Object{object})
}
