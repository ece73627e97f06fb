package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	capsulev1 "capsule/api/capsule/v1"
)

// InstallOptions of "install".
type InstallOptions struct {
	Disk     string
	Erase    bool
	Yes      bool
	DryRun   bool
	Operator string
	Restore  string
	Open     OpenOptions
	NoWait   bool
	Timeout  time.Duration
}

func newInstallCommand(a *app) *cobra.Command {
	var o InstallOptions
	cmd := &cobra.Command{
		Use: "install NAME|HOST[:PORT]", Short: "Install a capsule on the disk of a machine that was started from a stick",
		Long: `Installs a capsule on a disk of a machine that was started from a stick with
Capsule's image. The machine is claimed first, with the code on its console, unless
that was done already.

All disks are shown with what is on them. The only disk that is empty is taken, or
the one that --disk names by its serial number. A disk with anything on it is taken
only with --disk and --erase together. Nothing is written before you agree.

All that is written is read back. What is cut, by Ctrl-C or the power, leaves a disk
that boots nothing, and is begun again by the same command; only the last step, a
second, is brought to its end. The capsule has the name and the keys of the stick's
system: the context that was made goes on.

--restore makes the machine the capsule of a backup: the same name, keys, operators
and secrets, and all that was declared. The backup is read to its end before anything
is written. The command then waits until the machine comes up from its disk, and fills
the volumes; "capsulectl capsule restore" goes on with that when it was broken off.
Switch the capsule that the backup is of off for good: two with one identity can't be
told apart.`,
		Example: `  capsulectl install capsule-a3f2
  capsulectl install capsule-a3f2 --disk S5Y2NX0R123456 --erase
  capsulectl install 192.168.1.20 --dry-run
  capsulectl install capsule-a3f2 --restore box.backup`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runInstall(cmd.Context(), a, o, args[0]) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Disk, "disk", "", "serial number, or worldwide name, of the disk (default the only empty one)")
	flags.BoolVar(&o.Erase, "erase", false, "take the disk that --disk names although something is on it")
	flags.BoolVar(&o.Yes, "yes", false, "don't ask before the disk is written")
	flags.BoolVar(&o.DryRun, "dry-run", false, "show the disks and what would be erased, and write nothing")
	flags.StringVar(&o.Restore, "restore", "", "backup, or folder of them, that the machine is to be the capsule of")
	o.Open.flags(cmd)
	flags.BoolVar(&o.NoWait, "no-wait", false, "after a restore, leave the volumes to \"capsulectl capsule restore\"")
	flags.DurationVar(&o.Timeout, "timeout", time.Hour, "how long to wait for the restored capsule")
	flags.StringVar(&o.Operator, "operator", "", "your name, where the machine is claimed by this (default that of this machine's user)")
	return cmd
}

func runInstall(ctx context.Context, a *app, o InstallOptions, target string) error {
	r, err := a.restoration(ctx, o)
	if err != nil {
		return err
	}
	if err := a.owner(ctx, o, target); err != nil {
		return err
	}
	disks, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.ListDisksResponse, error) {
		return c.installs().ListDisks(ctx, &capsulev1.ListDisksRequest{})
	})
	if err != nil {
		return notInstaller(err, target)
	}
	if err := a.ui.show(a.output, disksView(disks.GetDisks())); err != nil {
		return err
	}
	digest, err := r.stage(ctx)
	if err != nil {
		return err
	}
	plan, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.PlanInstallResponse, error) {
		return c.installs().PlanInstall(ctx, &capsulev1.PlanInstallRequest{Disk: o.Disk, Erase: o.Erase, Restore: digest})
	})
	if err != nil {
		return err
	}
	tellPlan(a, o, plan)
	r.tell()
	if o.DryRun {
		a.ui.note("nothing was written")
		return nil
	}
	if err := agree(a, o, plan.GetDisk()); err != nil {
		return err
	}
	if err := install(ctx, a, o, plan, digest); err != nil {
		return err
	}
	a.ui.printf("installed on disk %s, and verified\n", o.idOf(plan.GetDisk()))
	if r != nil {
		return r.finish(ctx)
	}
	a.ui.note("pull the stick, then switch the machine off and on: it comes up as %s", a.client.context.Name)
	return nil
}

func (c *client) installs() capsulev1.InstallServiceClient {
	return capsulev1.NewInstallServiceClient(c.conn)
}

// notInstaller tells what to do with a machine that runs a capsule.
func notInstaller(err error, target string) error {
	if s, ok := fromGRPC(err); ok && s.Code() == codes.FailedPrecondition {
		return &failure{exitFailed, errors.New(s.Message()), fmt.Sprintf("start the machine from a stick; %q may be the name of another one, see \"capsulectl discover\"", target)}
	}
	return err
}

func diskID(d *capsulev1.Disk) string {
	if d.GetSerial() != "" {
		return d.GetSerial()
	}
	return d.GetWwn()
}

// idOf is what the operator names a disk by: its worldwide name where several have one
// serial number.
func (o InstallOptions) idOf(d *capsulev1.Disk) string {
	if d.GetWwn() != "" && strings.EqualFold(o.Disk, d.GetWwn()) {
		return d.GetWwn()
	}
	return diskID(d)
}

// disksView lists disks by what they are named by.
func disksView(disks []*capsulev1.Disk) view {
	v := view{columns: []string{"SERIAL", "NAME", "MODEL", "SIZE", "HOLDS", "NOTE"}, empty: "the machine has no disks"}
	for _, d := range disks {
		note := d.GetUnfit()
		if note == "" && d.GetRemovable() {
			note = "can be pulled out"
		}
		v.names, v.values = append(v.names, diskID(d)), append(v.values, d)
		v.rows = append(v.rows, []string{diskID(d), d.GetName(), d.GetModel(), size(int64(d.GetBytes())), holds(d), note})
	}
	return v
}

// holds sums up what is on a disk: its table or file system, how many parts, and of
// which kinds these are.
func holds(d *capsulev1.Disk) string {
	var whole, kinds []string
	parts := 0
	for _, c := range d.GetContents() {
		switch {
		case c.GetWhere() == "":
			whole = append(whole, contentText(c))
			continue
		case !slices.Contains(kinds, c.GetKind()):
			kinds = append(kinds, c.GetKind())
		}
		parts++
	}
	switch {
	case len(whole)+parts == 0:
		return "nothing"
	case parts == 1:
		whole = append(whole, "1 partition: "+kinds[0])
	case parts > 1:
		whole = append(whole, fmt.Sprintf("%d partitions: %s", parts, strings.Join(kinds, ", ")))
	}
	return strings.Join(whole, ", ")
}

func contentText(c *capsulev1.DiskContent) string {
	text := c.GetKind()
	if c.GetLabel() != "" {
		text += fmt.Sprintf(" %q", c.GetLabel())
	}
	return text
}

// tellPlan says exactly what is lost.
func tellPlan(a *app, o InstallOptions, plan *capsulev1.PlanInstallResponse) {
	d := plan.GetDisk()
	a.ui.note("Capsule %s is installed on disk %s (%s, %s, now %s)", plan.GetVersion(), o.idOf(d), d.GetModel(), size(int64(d.GetBytes())), d.GetName())
	tellLost(a, d)
}

// tellLost lists what is on a disk that is about to be erased.
func tellLost(a *app, d *capsulev1.Disk) {
	if len(d.GetContents()) == 0 {
		a.ui.note("it is empty: nothing is lost")
		return
	}
	a.ui.note("%s", a.ui.paint(red, "all that is on it is lost:"))
	for _, c := range d.GetContents() {
		where := c.GetWhere()
		if where == "" {
			where = "the whole disk"
		}
		a.ui.note("  %s: %s, %s", where, contentText(c), size(int64(c.GetBytes())))
	}
}

// answerMax bounds what is typed, bytes.
const answerMax = 1024

// agree asks. What is lost must be named once more.
func agree(a *app, o InstallOptions, d *capsulev1.Disk) error {
	if o.Yes {
		return nil
	}
	if !a.ui.inTTY {
		return &failure{exitUsage, errors.New("nobody is here to agree, and nothing was written"), "--yes agrees beforehand"}
	}
	want := "yes"
	if len(d.GetContents()) > 0 {
		want = o.idOf(d)
	}
	a.ui.prompt(fmt.Sprintf("Type %q to go on: ", want))
	line, err := bufio.NewReader(io.LimitReader(a.ui.in, answerMax)).ReadString('\n')
	if err != nil && line == "" || !strings.EqualFold(strings.TrimSpace(line), want) {
		return &failure{exitFailed, errors.New("not agreed to; nothing was written"), ""}
	}
	return nil
}

func install(ctx context.Context, a *app, o InstallOptions, plan *capsulev1.PlanInstallResponse, restore string) error {
	progress := &meter{line: statusLine{ui: a.ui}}
	defer progress.end()
	req := &capsulev1.InstallRequest{Disk: o.idOf(plan.GetDisk()), Erase: o.Erase, Digest: plan.GetDigest(), Restore: restore}
	stream, err := a.client.installs().Install(ctx, req)
	if err != nil {
		return err
	}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return cutInstall(err)
		}
		progress.set(resp.GetStep(), int64(resp.GetDone()), int64(resp.GetTotal()), "")
	}
}

// cutInstall tells what is left when the connection breaks.
func cutInstall(err error) error {
	if s, ok := fromGRPC(err); ok && s.Code() == codes.Unavailable {
		return &failure{exitFailed, fmt.Errorf("the installation was cut: %s", cause(s.Message())), "run the same command again: it begins anew, or says that all was done"}
	}
	return err
}
