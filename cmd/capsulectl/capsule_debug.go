package main

import (
	"context"
	"os"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
)

// DebugOptions of "capsule debug".
type DebugOptions struct {
	Stdin bool
	TTY   bool
	Env   []string
}

func newCapsuleDebugCommand(a *app) *cobra.Command {
	var o DebugOptions
	cmd := &cobra.Command{
		Use:   "debug [flags] [-- COMMAND [ARGUMENT...]]",
		Short: "Run a shell or a command with tools in the machine itself",
		Long: `Runs a command, or a shell, as root in the machine's own namespaces, with tools
that are part of the running version: lvm, e2fsprogs, thin_check, nft, ip, ss,
tcpdump, strace, and the usual small commands of busybox. It needs neither a
network beyond this connection nor containerd, and works in recovery mode.

The machine's files are at /host, its state at /perm. What is written elsewhere
is in memory, and gone at the end, as is all that still runs. Who ran what is in
the audit log.

Nothing keeps you from breaking the machine here. All that it should need for
its daily life is a command of its own.`,
		Example: `  capsulectl capsule debug
  capsulectl capsule debug -- lvm lvs -a
  capsulectl capsule debug -- tcpdump -ni any -c 20 port 53
  capsulectl capsule debug -it -- top`,
		Annotations: map[string]string{"exits": commandExits},
		RunE:        func(cmd *cobra.Command, args []string) error { return runCapsuleDebug(cmd.Context(), a, o, args) },
	}
	flags := cmd.Flags()
	flags.BoolVarP(&o.Stdin, "stdin", "i", false, "give the command this program's input; a shell always has it")
	flags.BoolVarP(&o.TTY, "tty", "t", false, "give the command a terminal; a shell has one where this program has")
	flags.StringArrayVarP(&o.Env, "env", "e", nil, "set NAME=value for the command (repeatable)")
	return cmd
}

func runCapsuleDebug(ctx context.Context, a *app, o DebugOptions, args []string) error {
	if len(args) == 0 {
		o.Stdin = true
		o.TTY = o.TTY || isTerminal(os.Stdin)
	}
	start := &capsulev1.ExecStart{Command: args, Env: o.Env, Tty: o.TTY, Stdin: o.Stdin}
	return runCommand(ctx, a, start, func(ctx context.Context, c *client) (execClient, error) { return c.debug.Run(ctx) })
}
