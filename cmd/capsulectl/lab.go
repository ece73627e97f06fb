//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"capsule/api/manifest"
	"capsule/internal/contexts"
	"capsule/internal/lab"
)

// labReady is how long "lab up" waits: a first boot under emulation on a busy
// machine takes about a minute.
const labReady = 5 * time.Minute

func newLabCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "lab", Short: "Run capsules in QEMU on this machine"}
	cmd.AddCommand(newLabUpCommand(a), newLabDownCommand(a), newLabListCommand(a), newLabConsoleCommand(a))
	return cmd
}

// LabUpOptions of "lab up".
type LabUpOptions struct {
	lab.Options
	Memory   string
	DiskSize string
	Publish  []string
	Timeout  time.Duration
}

func newLabUpCommand(a *app) *cobra.Command {
	var o LabUpOptions
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Boot a capsule in QEMU and make it the current context",
		Long: `Boots a capsule in QEMU from a copy of the image, gives it a CA of its own, saves
a context with an operator's keys, and waits until it is ready. A machine that
was kept by "lab down --keep-disk" is started again as it was made.

KVM is used when a small guest is seen to run on it, else emulation. The API and
the published ports are open on this machine's loopback only.`,
		Example: `  capsulectl lab up --publish 8080:8080
  capsulectl lab up --name second --memory 512MiB --cpus 1`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runLabUp(cmd.Context(), a, o) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Image, "image", "build/capsule.img", "disk image of a capsule")
	flags.StringVar(&o.Name, "name", "lab", "name of the machine and of its context")
	flags.StringVar(&o.Memory, "memory", "1GiB", "its memory")
	flags.IntVar(&o.CPUs, "cpus", 0, "its processors (default those of this machine, at most 4)")
	flags.StringVar(&o.DiskSize, "disk-size", "8GiB", "its disk")
	flags.StringArrayVar(&o.Publish, "publish", nil, "lead HOSTPORT of this machine to PORT of the capsule: HOSTPORT:PORT[/udp] (repeatable)")
	flags.StringVar(&o.Accel, "accel", "", "kvm or tcg (default KVM where it works)")
	flags.DurationVar(&o.Timeout, "timeout", labReady, "how long to wait until it is ready")
	return cmd
}

func runLabUp(ctx context.Context, a *app, o LabUpOptions) error {
	options, err := o.parse()
	if err != nil {
		return err
	}
	if err := labNameFree(o.Name); err != nil {
		return err
	}
	line := &statusLine{ui: a.ui}
	defer line.end()
	options.Progress = func(s lab.Step) {
		switch {
		case !s.Console:
			line.end()
			a.ui.note("%s", s.Text)
		case a.ui.errMoves: // elsewhere the console would drown the steps
			line.set("console: " + s.Text)
		}
	}
	m, err := lab.Up(ctx, options)
	line.end()
	if m != nil {
		if err := saveLabContext(m); err != nil {
			return err
		}
	}
	if err != nil {
		return explainLab(err, o.Name)
	}
	return showLabUp(a, m)
}

func (o LabUpOptions) parse() (lab.Options, error) {
	memory, err := manifest.ParseSize(o.Memory)
	if err != nil {
		return o.Options, &failure{exitUsage, fmt.Errorf("memory: %w", err), ""}
	}
	disk, err := manifest.ParseSize(o.DiskSize)
	if err != nil {
		return o.Options, &failure{exitUsage, fmt.Errorf("disk size: %w", err), ""}
	}
	options := o.Options
	options.MemoryBytes, options.DiskBytes, options.ReadyMax = memory, disk, o.Timeout
	for _, s := range o.Publish {
		p, err := lab.ParsePublish(s)
		if err != nil {
			return options, &failure{exitUsage, err, ""}
		}
		options.Publish = append(options.Publish, p)
	}
	return options, nil
}

// labNameFree refuses a name whose context is that of a machine elsewhere: the lab's
// would replace it, and with it the only key to that one.
func labNameFree(name string) error {
	store, err := contexts.Open("")
	if err != nil {
		return err
	}
	if c, err := store.Get(name); err == nil && !loopback(c.Host) {
		return &failure{exitUsage, fmt.Errorf("context %q is that of a capsule at %s, and would be lost", c.Name, c.Host), "give the machine another name with --name"}
	}
	return nil
}

func saveLabContext(m *lab.Machine) error {
	c, err := m.Context()
	if err != nil {
		return err
	}
	store, err := contexts.Open("")
	if err != nil {
		return err
	}
	if err := store.Put(c); err != nil {
		return err
	}
	return store.Use(c.Name)
}

func showLabUp(a *app, m *lab.Machine) error {
	a.ui.printf("capsule %s is up at %s\n", m.Name, m.API)
	for _, p := range m.Publish {
		a.ui.printf("127.0.0.1:%d leads to its port %d/%s\n", p.HostPort, p.Port, p.Protocol)
	}
	return nil
}

// explainLab adds the next step to what can go wrong with machines.
func explainLab(err error, name string) error {
	var notReady *lab.NotReady
	switch {
	case errors.As(err, &notReady):
		return &failure{exitNotReady, err, fmt.Sprintf("it is left as it is: \"capsulectl lab console %s\" joins its console, \"capsulectl lab down %s\" removes it", name, name)}
	case errors.Is(err, lab.ErrNoQEMU):
		return &failure{exitFailed, err, "install QEMU: \"apt-get install qemu-system-x86\" or \"brew install qemu\""}
	case errors.Is(err, lab.ErrNoFirmware):
		return &failure{exitFailed, err, "install OVMF: \"apt-get install ovmf\", or run \"make image\""}
	case errdefs.IsInvalidArgument(err):
		return &failure{exitUsage, err, ""}
	case errdefs.IsNotFound(err) && strings.HasPrefix(err.Error(), "lab machine"):
		return &failure{exitFailed, err, "\"capsulectl lab list\" shows those there are"}
	case errdefs.IsNotFound(err):
		return &failure{exitFailed, err, "\"make image\" builds one; --image names another"}
	}
	return err
}

func newLabDownCommand(a *app) *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use: "down [NAME]", Short: "Shut a lab capsule down and remove it",
		Long:    "Shuts the capsule down gracefully, cuts its power when it does not end in time,\nand removes its disk and its context.",
		Example: "  capsulectl lab down",
		Args:    cobra.MaximumNArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return runLabDown(cmd.Context(), a, keep, args) },
	}
	cmd.Flags().BoolVar(&keep, "keep-disk", false, "keep the machine; \"lab up\" starts it again")
	return cmd
}

func labName(args []string) string {
	if len(args) == 0 {
		return "lab"
	}
	return args[0]
}

func runLabDown(ctx context.Context, a *app, keep bool, args []string) error {
	name := labName(args)
	m, err := lab.Attach("", name)
	if err != nil {
		return explainLab(err, name)
	}
	m.Tell(func(s lab.Step) { a.ui.note("%s", s.Text) })
	if err := m.Down(ctx, keep); err != nil {
		return err
	}
	if keep {
		a.ui.printf("capsule %s is down; its disk is kept\n", name)
		return nil
	}
	store, err := contexts.Open("")
	if err != nil {
		return err
	}
	// The name may meanwhile be that of another capsule.
	if c, err := store.Get(name); err == nil && c.Host == m.API {
		if err := store.Delete(name); err != nil {
			return err
		}
	}
	a.ui.printf("capsule %s is removed\n", name)
	return nil
}

func newLabListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List lab capsules",
		Example: "  capsulectl lab list",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return runLabList(a) },
	}
}

func runLabList(a *app) error {
	machines, err := lab.List("")
	if err != nil {
		return err
	}
	v := view{columns: []string{"NAME", "STATE", "API", "PUBLISHED", "MEMORY", "CPUS", "ACCEL"}, empty: "no lab capsules; \"capsulectl lab up\" makes one"}
	for _, m := range machines {
		state := "down"
		if m.Running() {
			state = "running"
		}
		var ports []string
		for _, p := range m.Publish {
			ports = append(ports, p.String())
		}
		v.names, v.values = append(v.names, m.Name), append(v.values, m)
		v.rows = append(v.rows, []string{m.Name, state, m.API, strings.Join(ports, ", "), size(m.MemoryBytes), fmt.Sprint(m.CPUs), m.Accel})
	}
	return a.ui.show(a.output, v)
}

func newLabConsoleCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "console [NAME]", Short: "Show a lab capsule's console and join it",
		Long:    "Prints what the console showed so far, then what it shows. Ctrl-] leaves it.",
		Example: "  capsulectl lab console",
		Args:    cobra.MaximumNArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return runLabConsole(cmd.Context(), a, args) },
	}
}

func runLabConsole(ctx context.Context, a *app, args []string) error {
	name := labName(args)
	m, err := lab.Attach("", name)
	if err != nil {
		return explainLab(err, name)
	}
	past, err := os.ReadFile(m.ConsoleLog())
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	if _, err := a.ui.out.Write(past); err != nil {
		return err
	}
	if !m.Running() {
		return &failure{exitFailed, fmt.Errorf("lab machine %q is down", name), "\"capsulectl lab up\" starts it"}
	}
	if isTerminal(os.Stdin) {
		state, err := term.MakeRaw(int(os.Stdin.Fd()))
		if err != nil {
			return fmt.Errorf("prepare the terminal: %w", err)
		}
		defer term.Restore(int(os.Stdin.Fd()), state) //nolint:errcheck // nothing else can be done
	}
	return m.Console(ctx, &leaver{in: a.ui.in}, a.ui.out)
}
