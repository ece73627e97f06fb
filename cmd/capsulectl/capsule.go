package main

import (
	"context"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
)

func newCapsuleCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "capsule", Short: "Look after the machine itself"}
	cmd.AddCommand(newCapsuleInfoCommand(a), newCapsuleLogsCommand(a), newCapsuleAuditCommand(a), newCapsuleDebugCommand(a),
		newCapsuleSupportCommand(a), newCapsulePcapCommand(a), newCapsuleDiskCommand(a), newCapsuleBackupCommand(a),
		newCapsuleRestoreCommand(a), newCapsuleRestartServiceCommand(a), newCapsuleUpdateCommand(a), newCapsuleRebootCommand(a),
		newCapsuleShutdownCommand(a))
	return cmd
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
