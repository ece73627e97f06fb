package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

func newVolumeCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "volume", Aliases: []string{"volumes", "v"}, Short: "Look after data that outlives workloads"}
	cmd.AddCommand(
		newVolumeCreateCommand(a), newVolumeListCommand(a), newVolumeGetCommand(a), newVolumeResizeCommand(a), newVolumeDeleteCommand(a),
		newVolumeSnapshotCommand(a), newVolumeSnapshotsCommand(a), newVolumeDeleteSnapshotCommand(a),
		newVolumeRestoreCommand(a), newVolumeCloneCommand(a), newVolumeExportCommand(a), newVolumeImportCommand(a), newVolumePoolCommand(a),
	)
	return cmd
}

func newVolumeListCommand(a *app) *cobra.Command {
	return onMany(a, &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List volumes",
		Long: `Lists volumes. USED is what a volume takes of the pool, which may be less than
its size.`,
		Example: "  capsulectl volume list",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.read(cmd.Context(), volumeList) },
	})
}

func volumeList(ctx context.Context, a *app) (view, error) {
	objects, err := fetchObjects(ctx, a, manifest.KindVolume)
	if err != nil {
		return view{}, err
	}
	v, err := volumeView(objects, time.Now())
	v.empty = noVolumes
	return v, err
}

// volumeView lists volumes by the names that the commands of volumes take.
func volumeView(objects []*capsulev1.Object, now time.Time) (view, error) {
	v, err := objectView(objects, now)
	for i, name := range v.names {
		v.names[i] = strings.TrimPrefix(name, "volume/")
	}
	return v, err
}

func newVolumeGetCommand(a *app) *cobra.Command {
	return onMany(a, &cobra.Command{
		Use: "get NAME", Short: "Show one volume in full",
		Example: `  capsulectl volume get photos
  capsulectl volume get photos -o yaml`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runVolumeGet(cmd.Context(), a, args[0]) },
	})
}

func runVolumeGet(ctx context.Context, a *app, name string) error {
	if a.many() {
		return a.read(ctx, getting(manifest.KindVolume, name))
	}
	o, err := fetchObject(ctx, a, manifest.KindVolume, name)
	if err != nil {
		return err
	}
	if a.output == formatTable {
		return showFacts(a, o, volumeFacts(o, time.Now()))
	}
	return showVolume(a, o)
}

// showVolume shows one volume in the form that --output asks for.
func showVolume(a *app, o *capsulev1.Object) error {
	v, err := volumeView([]*capsulev1.Object{o}, time.Now())
	if err != nil {
		return err
	}
	v.single = true
	return a.ui.show(a.output, v)
}

// volumeFacts are the lines that hold something.
func volumeFacts(o *capsulev1.Object, now time.Time) [][]string {
	m, s := o.GetMeta(), o.GetVolume().GetStatus()
	state, message := volumeState(o)
	facts := [][]string{{"name:", m.GetName()}, {"state:", state}}
	add := func(name, value string) {
		if value != "" {
			facts = append(facts, []string{name, value})
		}
	}
	add("message:", message)
	add("size:", exactSize(volumeSize(o)))
	add("used:", size(s.GetUsed())+" of the pool")
	add("mounted by:", list(s.GetHolders()))
	snapshots := fmt.Sprint(s.GetSnapshots())
	if s.GetLastSnapshotAt() != nil {
		snapshots += ", the last " + age(s.GetLastSnapshotAt().AsTime(), now) + " ago"
	}
	add("snapshots:", snapshots)
	add("created:", age(m.GetCreatedAt().AsTime(), now)+" ago")
	return facts
}

var volumePhaseNames = map[capsulev1.VolumePhase]string{
	capsulev1.VolumePhase_VOLUME_PHASE_PENDING: "pending", capsulev1.VolumePhase_VOLUME_PHASE_READY: "ready",
	capsulev1.VolumePhase_VOLUME_PHASE_IN_USE: "in-use", capsulev1.VolumePhase_VOLUME_PHASE_FAILED: "failed",
	capsulev1.VolumePhase_VOLUME_PHASE_DELETING: "deleting",
}

func volumePhaseName(p capsulev1.VolumePhase) string {
	if name := volumePhaseNames[p]; name != "" {
		return name
	}
	return "pending"
}

var volumeColumns = []string{"NAME", "SIZE", "USED", "STATE", "MOUNTED BY", "SNAPSHOTS", "AGE", "MESSAGE"}

func volumeRow(o *capsulev1.Object, now time.Time) []string {
	m, s := o.GetMeta(), o.GetVolume().GetStatus()
	state, message := volumeState(o)
	return []string{
		m.GetName(), manifest.FormatSize(volumeSize(o)), size(s.GetUsed()), state, list(s.GetHolders()),
		fmt.Sprint(s.GetSnapshots()), age(m.GetCreatedAt().AsTime(), now), message,
	}
}

// volumeState is where a volume stands: a word, and a sentence.
func volumeState(o *capsulev1.Object) (state, message string) {
	m, s := o.GetMeta(), o.GetVolume().GetStatus()
	state, message = volumePhaseName(s.GetPhase()), s.GetMessage()
	switch {
	case m.GetDeletedAt() != nil:
		state = volumePhaseName(capsulev1.VolumePhase_VOLUME_PHASE_DELETING)
	case s.GetGeneration() < m.GetGeneration():
		message = notLookedAt(message)
	}
	return state, message
}

// volumeSize is what the volume has; what is asked for while it has nothing yet.
func volumeSize(o *capsulev1.Object) int64 {
	if s := o.GetVolume().GetStatus().GetSize(); s != 0 {
		return s
	}
	return o.GetVolume().GetSpec().GetSize()
}

// exactSize is a size as a manifest has it, and its bytes.
func exactSize(bytes int64) string {
	return fmt.Sprintf("%s (%d bytes)", manifest.FormatSize(bytes), bytes)
}
