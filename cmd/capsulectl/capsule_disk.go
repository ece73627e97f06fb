package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	capsulev1 "capsule/api/capsule/v1"
)

func newCapsuleDiskCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "disk", Short: "Look after the disks: more of them, larger ones, another for one that fails"}
	cmd.AddCommand(newDiskListCommand(a), newDiskGrowCommand(a), newDiskAddCommand(a), newDiskReplaceCommand(a), newDiskKeepCommand(a))
	return cmd
}

func (c *client) disks() capsulev1.DiskServiceClient { return capsulev1.NewDiskServiceClient(c.conn) }

func newDiskListCommand(a *app) *cobra.Command {
	return onMany(a, &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the machine's disks, and those of the pool that are missing",
		Long: `Lists the disks of the machine with what the capsule uses them for, what is on them,
and what is being done with them. Disks of the pool that are missing come first.`,
		Example: "  capsulectl capsule disk list",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.read(cmd.Context(), poolDisks) },
	})
}

func poolDisks(ctx context.Context, a *app) (view, error) {
	answer, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.ListPoolDisksResponse, error) {
		return c.disks().ListPoolDisks(ctx, &capsulev1.ListPoolDisksRequest{})
	})
	return poolDisksView(answer.GetDisks()), err
}

var diskUseNames = map[capsulev1.DiskUse]string{
	capsulev1.DiskUse_DISK_USE_NONE: "-", capsulev1.DiskUse_DISK_USE_SYSTEM: "system", capsulev1.DiskUse_DISK_USE_POOL: "pool",
}

var diskStateNames = map[capsulev1.DiskState]string{
	capsulev1.DiskState_DISK_STATE_OK: "ok", capsulev1.DiskState_DISK_STATE_MISSING: "missing",
	capsulev1.DiskState_DISK_STATE_JOINING: "joining", capsulev1.DiskState_DISK_STATE_LEAVING: "leaving",
}

func poolDisksView(disks []*capsulev1.PoolDisk) view {
	v := view{columns: []string{"SERIAL", "NAME", "MODEL", "SIZE", "USE", "STATE", "USED", "HOLDS", "NOTE"}, empty: "the machine has no disks"}
	for _, p := range disks {
		d := p.GetDisk()
		used, content := "-", "-"
		if p.GetPoolBytes() > 0 {
			used = share(int64(p.GetUsedBytes()), int64(p.GetPoolBytes()))
		}
		if p.GetUse() == capsulev1.DiskUse_DISK_USE_NONE {
			content = holds(d)
		}
		v.names, v.values = append(v.names, diskID(d)), append(v.values, p)
		v.rows = append(v.rows, []string{
			diskID(d), d.GetName(), d.GetModel(), size(int64(d.GetBytes())), diskUseNames[p.GetUse()], diskStateText(p), used, content, diskNote(p),
		})
	}
	return v
}

func diskStateText(p *capsulev1.PoolDisk) string {
	text := diskStateNames[p.GetState()]
	if p.GetMovingBytes() > 0 {
		text += fmt.Sprintf(", %d %% moved", share100(int64(p.GetMovedBytes()), int64(p.GetMovingBytes())))
	}
	return text
}

func diskNote(p *capsulev1.PoolDisk) string {
	switch d := p.GetDisk(); {
	case p.GetMessage() != "":
		return p.GetMessage()
	case d.GetUnfit() != "":
		return d.GetUnfit()
	case d.GetRemovable() && p.GetUse() != capsulev1.DiskUse_DISK_USE_SYSTEM:
		return "can be pulled out"
	}
	return ""
}

func newDiskGrowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "grow", Short: "Use what the disks have become larger",
		Long: `Uses what the disks have become larger, as those of a virtual machine may: the
capsule's own storage and the pool grow while all goes on. A start does so by itself.`,
		Example: "  capsulectl capsule disk grow",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := call(cmd.Context(), a, func(ctx context.Context, c *client) (*capsulev1.GrowPoolDisksResponse, error) {
				return c.disks().GrowPoolDisks(ctx, &capsulev1.GrowPoolDisksRequest{})
			})
			if err == nil {
				a.ui.printf("storage: %s; pool: %s\n", grownText(r.GetPermBefore(), r.GetPerm()), grownText(r.GetPoolBefore(), r.GetPool()))
			}
			return err
		},
	}
}

func grownText(before, now uint64) string {
	if now == before {
		return size(int64(now)) + ", as before"
	}
	return fmt.Sprintf("%s, was %s", size(int64(now)), size(int64(before)))
}

// DiskTakeOptions of "disk add" and "disk replace".
type DiskTakeOptions struct {
	InstallOptions
	Replaces string
}

func (o *DiskTakeOptions) flags(cmd *cobra.Command) *cobra.Command {
	flags := cmd.Flags()
	flags.BoolVar(&o.Erase, "erase", false, "take the disk although something is on it")
	flags.BoolVar(&o.Yes, "yes", false, "don't ask before the disk is written")
	flags.BoolVar(&o.DryRun, "dry-run", false, "show what would be done, and write nothing")
	return cmd
}

func newDiskAddCommand(a *app) *cobra.Command {
	var o DiskTakeOptions
	return o.flags(&cobra.Command{
		Use: "add DISK", Short: "Have a disk join the pool",
		Long: `Has a disk, named by its serial number or worldwide name, join the pool, which grows
by it while all goes on. Volumes lie on all disks of the pool together: from then on
they need each of them. The way back is "disk replace" by another one.

A disk with anything on it is taken only with --erase. Nothing is written before you
agree. What is cut is taken up again by the capsule itself.`,
		Example: `  capsulectl capsule disk add S5Y2NX0R123456
  capsulectl capsule disk add S5Y2NX0R123456 --erase`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Disk = args[0]
			return runDiskTake(cmd.Context(), a, o)
		},
	})
}

func newDiskReplaceCommand(a *app) *cobra.Command {
	var o DiskTakeOptions
	return o.flags(&cobra.Command{
		Use: "replace OLD NEW", Short: "Move all that is on a disk of the pool to another one",
		Long: `Has the disk NEW join the pool, moves to it all that is on OLD, and takes OLD out. All
goes on meanwhile. The capsule does it by itself: it goes on when the connection is
lost, when its daemon is started again and after a power cut; the same command, or
"disk list", shows how far it is, and "disk keep" calls it off.

What NEW holds is lost; a disk with anything on it is taken only with --erase.
The disk that the capsule runs from can't be replaced in this way: make a backup, and
install the capsule with it on another disk.`,
		Example: "  capsulectl capsule disk replace WD-WCC4E1234567 S5Y2NX0R123456",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Replaces, o.Disk = args[0], args[1]
			return runDiskTake(cmd.Context(), a, o)
		},
	})
}

func newDiskKeepCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "keep", Short: "Call off a replacement: both disks stay in the pool",
		Long: `Calls off the replacement that is under way: what was moved stays on the new disk, the
rest on the old one, and both stay in the pool. It's for an old disk that can't be
read at some place, where moving gets no further.`,
		Example: "  capsulectl capsule disk keep",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := call(cmd.Context(), a, func(ctx context.Context, c *client) (*capsulev1.KeepPoolDiskResponse, error) {
				return c.disks().KeepPoolDisk(ctx, &capsulev1.KeepPoolDiskRequest{})
			})
			if err == nil {
				a.ui.printf("both disks stay in the pool\n")
			}
			return err
		},
	}
}

func runDiskTake(ctx context.Context, a *app, o DiskTakeOptions) error {
	plan, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.PlanPoolDiskResponse, error) {
		return c.disks().PlanPoolDisk(ctx, &capsulev1.PlanPoolDiskRequest{Disk: o.Disk, Erase: o.Erase, Replaces: o.Replaces})
	})
	if err != nil {
		return err
	}
	tellTake(a, o, plan)
	if o.DryRun {
		a.ui.note("nothing was written")
		return nil
	}
	if !plan.GetUnderWay() {
		if err := agree(a, o.InstallOptions, plan.GetDisk()); err != nil {
			return err
		}
	}
	if err := takeDisk(ctx, a, o, plan); err != nil {
		return err
	}
	if o.Replaces != "" {
		a.ui.printf("disk %s is replaced by %s, and may be pulled out\n", o.Replaces, o.Disk)
		return nil
	}
	a.ui.printf("disk %s is in the pool\n", o.Disk)
	return nil
}

// tellTake says exactly what is done, and what is lost.
func tellTake(a *app, o DiskTakeOptions, plan *capsulev1.PlanPoolDiskResponse) {
	d := plan.GetDisk()
	if plan.GetUnderWay() {
		a.ui.note("that was begun already, and is under way")
		return
	}
	what := fmt.Sprintf("disk %s (%s, %s, now %s)", o.idOf(d), d.GetModel(), size(int64(d.GetBytes())), d.GetName())
	if old := plan.GetReplaced(); old != nil {
		a.ui.note("%s takes the place of disk %s (%s, now %s), from which %s are moved", what, diskID(old), old.GetModel(), old.GetName(), size(int64(plan.GetMovingBytes())))
	} else {
		a.ui.note("%s joins the pool, which needs it from then on", what)
	}
	if d.GetRemovable() {
		a.ui.note("it can be pulled out: without it no volume can be used")
	}
	tellLost(a, d)
}

func takeDisk(ctx context.Context, a *app, o DiskTakeOptions, plan *capsulev1.PlanPoolDiskResponse) error {
	progress := &meter{line: statusLine{ui: a.ui}}
	defer progress.end()
	req := &capsulev1.TakePoolDiskRequest{Disk: o.Disk, Erase: o.Erase, Replaces: o.Replaces, Digest: plan.GetDigest()}
	stream, err := a.client.disks().TakePoolDisk(ctx, req)
	if err != nil {
		return err
	}
	said := ""
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return cutTake(ctx, err)
		}
		switch text := resp.GetStep(); {
		case resp.GetTotal() > 0:
			progress.set(text, int64(resp.GetDone()), int64(resp.GetTotal()), "")
			continue
		case resp.GetWaits() != "":
			text += ": " + resp.GetWaits()
			fallthrough
		default:
			if text != said {
				said = text
				progress.note("%s", text)
			}
		}
	}
}

// cutTake tells what goes on when the connection breaks, or is ended here.
func cutTake(ctx context.Context, err error) error {
	const hint = `"capsulectl capsule disk list" shows how far it is, the same command follows it again`
	if ctx.Err() != nil {
		return &failure{exitFailed, errors.New("interrupted: the capsule goes on with it by itself"), hint}
	}
	if s, ok := fromGRPC(err); ok && s.Code() == codes.Unavailable {
		return &failure{exitFailed, fmt.Errorf("the connection was cut (%s): the capsule goes on with it by itself", cause(s.Message())), hint}
	}
	return err
}
