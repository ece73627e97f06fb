package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

func newCapsuleCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "capsule", Short: "Look after the machine itself"}
	cmd.AddCommand(newCapsuleInfoCommand(a), newCapsuleLogsCommand(a), newCapsuleAuditCommand(a), newCapsuleRestartServiceCommand(a),
		newCapsuleUpdateCommand(a), newCapsuleBackupCommand(a), newCapsuleRestoreCommand(a), newCapsuleRebootCommand(a), newCapsuleShutdownCommand(a))
	return cmd
}

func newCapsuleInfoCommand(a *app) *cobra.Command {
	return onMany(a, &cobra.Command{
		Use: "info", Short: "Show the machine and how it is",
		Example: `  capsulectl capsule info
  capsulectl capsule info --all`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.read(cmd.Context(), capsuleInfo) },
	})
}

func capsuleInfo(ctx context.Context, a *app) (view, error) {
	info, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.InfoResponse, error) {
		return c.capsule.Info(ctx, &capsulev1.InfoRequest{})
	})
	if err != nil {
		return view{}, err
	}
	v := view{single: true, names: []string{info.GetName()}, values: []any{info}, rows: infoFacts(info), summary: infoSummary(info)}
	if a.output == formatTable && info.GetPool() != nil {
		volumes, err := fetchObjects(ctx, a, manifest.KindVolume)
		if err != nil {
			return v, err
		}
		storage := storageFacts(info.GetPool(), volumes)
		if degraded(info.GetPool()) {
			v.rows = append(storage, v.rows...)
		} else {
			v.rows = append(v.rows, storage...)
		}
	}
	return v, nil
}

func modeText(i *capsulev1.InfoResponse) string {
	mode := strings.ToLower(strings.TrimPrefix(i.GetMode().String(), "MODE_"))
	if r := i.GetModeReason(); r != "" {
		mode += " (" + r + ")"
	}
	return mode
}

// infoSummary is a machine in one row.
func infoSummary(i *capsulev1.InfoResponse) *view {
	return &view{
		columns: []string{"NAME", "VERSION", "MODE", "UP", "ADDRESSES", "MEMORY FREE", "STORAGE FREE", "RUNNING"},
		rows: [][]string{{
			i.GetName(), i.GetVersion(), modeText(i), age(i.GetBootedAt().AsTime(), i.GetTime().AsTime()), strings.Join(i.GetAddresses(), ", "),
			size(int64(i.GetMemoryAvailable())), size(int64(i.GetPermFree())), //nolint:gosec // bytes of a machine
			fmt.Sprintf("%d of %d", i.GetWorkloadsRunning(), i.GetWorkloads()),
		}},
	}
}

func infoFacts(i *capsulev1.InfoResponse) [][]string {
	mode := modeText(i)
	clock := "not set from the network yet"
	if i.GetClockSynchronized() {
		clock = "set from the network"
	}
	addresses := strings.Join(i.GetAddresses(), ", ")
	if addresses == "" {
		addresses = i.GetNetworkMessage()
	}
	virtualization := i.GetVirtualization()
	if virtualization == "" {
		virtualization = "-"
	}
	now := i.GetTime().AsTime()
	facts := [][]string{{"name:", i.GetName()}, {"id:", i.GetId()}, {"version:", i.GetVersion()}, {"slot:", i.GetSlot()}, {"mode:", mode}}
	if t := i.GetTentative(); t != nil {
		facts = append(facts, []string{"update:", tentativeText(t)})
	}
	return append(facts, [][]string{
		{"kernel:", i.GetKernel() + " " + i.GetArchitecture()},
		{"up:", age(i.GetBootedAt().AsTime(), now)},
		{"time:", now.UTC().Format(time.RFC3339) + ", " + clock},
		{"addresses:", addresses},
		{"processors:", fmt.Sprint(i.GetCpus())},
		{"virtualization:", virtualization},
		{"memory:", fmt.Sprintf("%s free of %s", size(int64(i.GetMemoryAvailable())), size(int64(i.GetMemoryTotal())))}, //nolint:gosec // bytes of a machine
		{"storage:", fmt.Sprintf("%s free of %s", size(int64(i.GetPermFree())), size(int64(i.GetPermTotal())))},         //nolint:gosec // as above
		{"workloads:", fmt.Sprintf("%d running of %d", i.GetWorkloadsRunning(), i.GetWorkloads())},
		{"secrets:", i.GetSecrets()},
		{"daemon starts:", fmt.Sprint(i.GetDaemonStarts())},
		{"watchdog:", i.GetWatchdog()},
	}...)
}

// CapsuleLogsOptions of "capsule logs".
type CapsuleLogsOptions struct {
	Follow bool
	Tail   int64
}

func newCapsuleLogsCommand(a *app) *cobra.Command {
	var o CapsuleLogsOptions
	cmd := &cobra.Command{
		Use: "logs [SERVICE]", Short: "Print what the system's services wrote",
		Long:    "Prints the logs of capsuled, containerd or the kernel, or of all of them.",
		Example: "  capsulectl capsule logs capsuled --tail 50",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runCapsuleLogs(cmd.Context(), a, o, strings.Join(args, ""))
		},
	}
	cmd.Flags().BoolVarP(&o.Follow, "follow", "f", false, "go on with what is written from now on")
	cmd.Flags().Int64Var(&o.Tail, "tail", -1, "only the last lines; -1 is all")
	return cmd
}

func runCapsuleLogs(ctx context.Context, a *app, o CapsuleLogsOptions, service string) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	stream, err := c.capsule.Logs(ctx, &capsulev1.CapsuleServiceLogsRequest{Service: service, Follow: o.Follow, Tail: o.Tail})
	if err != nil {
		return err
	}
	for {
		line, err := stream.Recv()
		if errors.Is(err, io.EOF) || (ctx.Err() != nil && o.Follow) {
			return nil
		}
		if err != nil {
			return err
		}
		prefix := ""
		if service == "" {
			prefix = line.GetService() + ": "
		}
		a.ui.printf("%s%s\n", prefix, trimLine(line.GetData()))
	}
}

func newCapsuleRebootCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "reboot", Short: "Stop all workloads gracefully and boot the machine again",
		Example: "  capsulectl capsule reboot",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := call(cmd.Context(), a, func(ctx context.Context, c *client) (*capsulev1.RebootResponse, error) {
				return c.capsule.Reboot(ctx, &capsulev1.RebootRequest{})
			})
			if err == nil {
				a.ui.printf("rebooting\n")
			}
			return err
		},
	}
}

func newCapsuleShutdownCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "shutdown", Short: "Stop all workloads gracefully and power the machine off",
		Example: "  capsulectl capsule shutdown",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := call(cmd.Context(), a, func(ctx context.Context, c *client) (*capsulev1.ShutdownResponse, error) {
				return c.capsule.Shutdown(ctx, &capsulev1.ShutdownRequest{})
			})
			if err == nil {
				a.ui.printf("shutting down\n")
			}
			return err
		},
	}
}

func newCapsuleRestartServiceCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "restart-service SERVICE", Short: "Kill one of the system's services, which is started again",
		Long:      "Kills capsuled (the API and all that decides) or containerd. The capsule starts it again within a second; workloads go on.",
		Example:   "  capsulectl capsule restart-service capsuled",
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"capsuled", "containerd"},
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := call(cmd.Context(), a, func(ctx context.Context, c *client) (*capsulev1.RestartServiceResponse, error) {
				return c.capsule.RestartService(ctx, &capsulev1.RestartServiceRequest{Service: args[0]})
			})
			if err == nil {
				a.ui.printf("%s is killed and starts again\n", args[0])
			}
			return err
		},
	}
}
