package main

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
)

func newCapsuleRestoreCommand(a *app) *cobra.Command {
	var o OpenOptions
	cmd := &cobra.Command{
		Use: "restore FILE|FOLDER/", Short: "Fill the volumes of a capsule that was installed from a backup",
		Long: `Gives the volumes that wait for their data, after "capsulectl install --restore", what
the backup holds for them. That command does the same by itself; this one ends what was
broken off. Each volume is there whole or not at all, and workloads that mount it start
by themselves. Volumes that have their data are left alone.

Of a folder the newest backup is taken.`,
		Example: `  capsulectl capsule restore box.backup
  capsulectl capsule restore --identity ~/keys/backup.txt /mnt/nas/box/`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := a.openBackup(args[0], o)
			if err != nil {
				return err
			}
			return a.fillVolumes(cmd.Context(), b)
		},
	}
	o.flags(cmd)
	return cmd
}

func (a *app) restoreStatus(ctx context.Context) (*capsulev1.RestoreStatusResponse, error) {
	return call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.RestoreStatusResponse, error) {
		return c.backups.RestoreStatus(ctx, &capsulev1.RestoreStatusRequest{})
	})
}

// fillVolumes gives all volumes that wait what a backup has for them.
func (a *app) fillVolumes(ctx context.Context, b savedBackup) error {
	status, err := a.restoreStatus(ctx)
	if err != nil {
		return err
	}
	waiting := status.GetWaiting()
	if len(waiting) == 0 {
		a.ui.printf("no volume waits for its data\n")
		return nil
	}
	chain, done, err := b.open()
	if err != nil {
		return err
	}
	defer done()
	if !bytes.Equal(chain.Header().GetId(), status.GetId()) {
		a.ui.warn("the capsule was restored from another backup, and the data is of " + stampOf(chain.Header()))
	}
	f := &filler{app: a, bar: a.ui.progress()}
	defer f.bar.end()
	for {
		rec, err := chain.Next()
		if isEOF(err) {
			break
		}
		if err != nil {
			return b.explain(b.path, err)
		}
		if v := rec.GetVolume(); v != nil {
			if err := f.end(ctx); err != nil {
				return err
			}
			if slices.Contains(waiting, v.GetName()) {
				if err := f.begin(ctx, v); err != nil {
					return err
				}
			}
		}
		if c := rec.GetChunk(); c != nil {
			if err := f.chunk(ctx, c); err != nil {
				return err
			}
		}
	}
	if err := f.end(ctx); err != nil {
		return err
	}
	f.bar.done()
	a.ui.printf("%s\n", filledText(f.filled))
	for _, name := range waiting {
		if !slices.Contains(f.filled, name) {
			a.ui.warn(fmt.Sprintf("the backup has no data of volume %q, which goes on waiting", name))
		}
	}
	return nil
}

func filledText(names []string) string {
	if len(names) == 1 {
		return "1 volume has its data"
	}
	return fmt.Sprintf("%d volumes have their data", len(names))
}

// filler sends the data of one volume after the other.
type filler struct {
	app    *app
	bar    *progress
	stream capsulev1.BackupService_FillVolumeClient // nil between two
	stop   context.CancelFunc
	volume *capsulev1.BackupVolume
	sent   uint64
	filled []string
}

func (f *filler) begin(ctx context.Context, v *capsulev1.BackupVolume) error {
	c, err := f.app.dial()
	if err != nil {
		return err
	}
	ctx, f.stop = context.WithCancel(ctx)
	if f.stream, err = c.backups.FillVolume(ctx); err != nil {
		f.stop()
		return err
	}
	f.volume, f.sent = v, 0
	return f.send(ctx, &capsulev1.FillVolumeRequest{Part: &capsulev1.FillVolumeRequest_Volume{Volume: v}})
}

func (f *filler) chunk(ctx context.Context, c *capsulev1.BackupChunk) error {
	if f.stream == nil {
		return nil
	}
	f.sent++
	f.bar.set("fill "+f.volume.GetName(), int64(f.sent)<<18, int64(f.volume.GetUsed())) //nolint:gosec // bounded by the reader
	return f.send(ctx, &capsulev1.FillVolumeRequest{Part: &capsulev1.FillVolumeRequest_Chunk{Chunk: c}})
}

// send gives the capsule's own error where it ended the call.
func (f *filler) send(ctx context.Context, req *capsulev1.FillVolumeRequest) error {
	err := f.stream.Send(req)
	if isEOF(err) {
		_, err = f.stream.CloseAndRecv()
	}
	if err != nil {
		f.stop()
		return f.cut(ctx, err)
	}
	return nil
}

func (f *filler) cut(ctx context.Context, err error) error {
	return f.app.cutOff(ctx, fmt.Sprintf("the filling of volume %q", f.volume.GetName()), int64(f.sent)<<18, err) //nolint:gosec // bounded by the reader
}

// end is of the volume under way, if there is one.
func (f *filler) end(ctx context.Context) error {
	if f.stream == nil {
		return nil
	}
	defer f.stop()
	if err := f.send(ctx, &capsulev1.FillVolumeRequest{Part: &capsulev1.FillVolumeRequest_Filled{Filled: &capsulev1.BackupFilled{Chunks: f.sent}}}); err != nil {
		return err
	}
	if _, err := f.stream.CloseAndRecv(); err != nil {
		return f.cut(ctx, err)
	}
	f.stream, f.filled = nil, append(f.filled, f.volume.GetName())
	return nil
}
