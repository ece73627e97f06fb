package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/spf13/cobra"
)

const longRoot = `capsulectl declares workloads and volumes on capsules and looks after the machines.

A capsule is named by --capsule, else by CAPSULE_HOST, else it is the current
context (see "capsulectl context"). Commands that only look, and "apply", take
several capsules, divided by commas, or --all of them: they are asked at the same
time and shown in one table, and one that does not answer hides none of the others.
The exit code is then 1 where some fail, or another one where all that fail have that.`

// exitsNote stands in the help of each command that has no codes of its own.
const exitsNote = "0 done, 1 failed, 2 wrong usage, 3 not ready in time, 4 not allowed"

// app is what all commands share.
type app struct {
	ui      *ui
	capsule string // --capsule
	// everyone is --all of the commands that have it.
	everyone bool
	// command is what was asked for, in its own words: "workload exec".
	command string
	// oneOf tells that this is one of several capsules of a command line.
	oneOf  bool
	output string // --output
	client *client
	begun  bool // the command line was right and its command ran
	// compared is done once the capsule's version was.
	compared sync.Once
	// answered tells that the capsule let this operator in.
	answered atomic.Bool
	// renewed tells that this command has seen to the certificate.
	renewed bool
}

// execute runs one command line. Errors are printed here and nowhere else.
func execute(ctx context.Context, u *ui, args []string) int {
	a := &app{ui: u}
	defer a.close()
	root := newRootCommand(a) //nolint:contextcheck // cobra hands ctx to the command that runs
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	a.afterwards(ctx)
	if err == nil {
		return 0
	}
	if !a.begun { // cobra refused the command line
		err = usage(cmd, err)
	}
	var exit remoteExit
	if errors.As(err, &exit) {
		return int(exit)
	}
	f := a.explain(ctx, err)
	u.fail(f)
	return f.code
}

func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:           "capsulectl",
		Short:         "Operate capsules: small machines that run containers and microVMs",
		Long:          longRoot,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE:          runGroup,
	}
	root.SetOut(a.ui.out)
	root.SetErr(a.ui.err)
	root.SetIn(a.ui.in)
	flags := root.PersistentFlags()
	flags.StringVar(&a.capsule, "capsule", "", "context name or host:port of the capsule, or several of them, divided by commas (default $CAPSULE_HOST, else the current context)")
	flags.StringVarP(&a.output, "output", "o", formatTable, "form of lists and objects: table, json, yaml or name")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if !slices.Contains(formats, a.output) {
			return usage(cmd, fmt.Errorf("output %q: want %s", a.output, strings.Join(formats, ", ")))
		}
		return nil
	}
	root.AddCommand(
		newApplyCommand(a), newGetCommand(a), newDeleteCommand(a), newEventsCommand(a), newTopCommand(a), newWorkloadCommand(a), newCopyCommand(a),
		newVolumeCommand(a), newImageCommand(a), newRegistryCommand(a), newCapsuleCommand(a), newReleaseCommand(a), newContextCommand(a), newInstallCommand(a), newDiscoverCommand(a), newClaimCommand(a), newAccessCommand(a), newLabCommand(a),
		newConvertCommand(a), newVersionCommand(a), newDocsCommand(), newManCommand(),
	)
	root.CompletionOptions.HiddenDefaultCmd = false
	root.InitDefaultCompletionCmd()
	for _, cmd := range all(root) {
		finish(a, cmd)
	}
	addCompletions(a, root)
	return root
}

// all gives a command and those below it.
func all(cmd *cobra.Command) []*cobra.Command {
	list := []*cobra.Command{cmd}
	for _, c := range cmd.Commands() {
		list = append(list, all(c)...)
	}
	return list
}

// finish adds to each command what all have: its exit codes in help, and wrong
// arguments counted as wrong usage.
func finish(a *app, cmd *cobra.Command) {
	if cmd.HasSubCommands() && cmd.RunE == nil && cmd.Run == nil {
		cmd.Args, cmd.RunE = cobra.ArbitraryArgs, runGroup
		return
	}
	if cmd.HasSubCommands() {
		return
	}
	if cmd.Long == "" {
		cmd.Long = cmd.Short + "."
	}
	codes := cmd.Annotations["exits"]
	if codes == "" {
		codes = exitsNote
	}
	cmd.Long += "\n\nExit codes: " + codes + "."
	run := cmd.RunE
	if run == nil {
		return
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		a.begun = true
		a.command = strings.TrimPrefix(cmd.CommandPath(), "capsulectl ")
		return run(cmd, args)
	}
}

// runGroup is a command that only has commands below it.
func runGroup(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	cmd.SuggestionsMinimumDistance = 2
	err := fmt.Errorf("unknown command %q of %q", args[0], cmd.CommandPath())
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return &failure{code: exitUsage, err: err, hint: fmt.Sprintf("did you mean %q?", near[0])}
	}
	return usage(cmd, err)
}

// named is the capsule that the command line or the environment asks for.
func (a *app) named() string {
	if a.capsule != "" {
		return a.capsule
	}
	return os.Getenv("CAPSULE_HOST")
}
