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

func newWorkloadCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "workload", Aliases: []string{"workloads", "w"}, Short: "Look into and steer workloads of either kind"}
	cmd.AddCommand(
		newWorkloadListCommand(a), newWorkloadGetCommand(a), newWorkloadLogsCommand(a), newWorkloadExecCommand(a),
		newWorkloadStartCommand(a), newWorkloadStopCommand(a), newWorkloadRestartCommand(a), newWorkloadDeleteCommand(a),
		newWorkloadHistoryCommand(a), newWorkloadRollbackCommand(a),
	)
	return cmd
}

func newWorkloadListCommand(a *app) *cobra.Command {
	return onMany(a, &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List workloads",
		Example: "  capsulectl workload list",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.read(cmd.Context(), listing("")) },
	})
}

func newWorkloadGetCommand(a *app) *cobra.Command {
	return onMany(a, &cobra.Command{
		Use: "get NAME", Short: "Show one workload in full",
		Example: "  capsulectl workload get web",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return runWorkloadGet(cmd.Context(), a, args[0]) },
	})
}

func runWorkloadGet(ctx context.Context, a *app, name string) error {
	if a.output != formatTable || a.many() {
		return a.read(ctx, getting("", name))
	}
	o, err := fetchObject(ctx, a, "", name)
	if err != nil {
		return err
	}
	return showFacts(a, o, workloadFacts(o, time.Now()))
}

// showFacts prints what is known of one object, and its manifest.
func showFacts(a *app, o *capsulev1.Object, facts [][]string) error {
	document, err := manifest.Encode(o)
	if err != nil {
		return err
	}
	if err := a.ui.table(nil, facts); err != nil {
		return err
	}
	a.ui.printf("\nmanifest:\n%s", indent(string(document)))
	return nil
}

// mountText is a mount in one line: "photos at /data, read only, shared".
func mountText(m *capsulev1.Mount) string {
	text := m.GetVolume() + " at " + m.GetPath()
	if m.GetReadOnly() {
		text += ", read only"
	}
	if m.GetShared() {
		text += ", shared"
	}
	return text
}

// workloadFacts are the lines that hold something.
func workloadFacts(o *capsulev1.Object, now time.Time) [][]string {
	m, s := o.GetMeta(), o.GetWorkload().GetStatus()
	state, message := workloadState(o)
	facts := [][]string{{"name:", m.GetName()}, {"kind:", m.GetKind()}, {"state:", state}}
	add := func(name, value string) {
		if value != "" {
			facts = append(facts, []string{name, value})
		}
	}
	add("message:", message)
	add("reason:", s.GetReason())
	if health := healthNames[s.GetHealth()]; health != "" {
		add("health:", joinState(health, oneLine(s.GetHealthMessage())))
	}
	if s.ExitCode != nil {
		add("last exit:", fmt.Sprintf("code %d, %s ago", s.GetExitCode(), age(s.GetFinishedAt().AsTime(), now)))
	}
	if s.GetNextStartAt() != nil && s.GetNextStartAt().AsTime().After(now) {
		add("next start:", "in "+s.GetNextStartAt().AsTime().Sub(now).Round(time.Second).String())
	}
	add("restarts:", fmt.Sprint(s.GetRestarts()))
	add("started:", agoOf(s, now))
	add("addresses:", strings.Join(s.GetAddresses(), ", "))
	for _, mount := range o.GetWorkload().GetSpec().GetMounts() {
		add("mount:", mountText(mount))
	}
	add("image digest:", s.GetImageDigest())
	add("generation:", fmt.Sprintf("%d wanted, %d running", m.GetGeneration(), s.GetRunningGeneration()))
	if s.GetOnTrial() {
		add("on trial:", fmt.Sprintf("generation %d is gone back to unless this becomes healthy", s.GetHealthyGeneration()))
	}
	add("created:", age(m.GetCreatedAt().AsTime(), now)+" ago")
	for _, w := range s.GetWarnings() {
		add("warning:", w)
	}
	return facts
}

func agoOf(s *capsulev1.WorkloadStatus, now time.Time) string {
	if s.GetStartedAt() == nil {
		return ""
	}
	return age(s.GetStartedAt().AsTime(), now) + " ago"
}

func indent(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n  ") + "\n"
}
