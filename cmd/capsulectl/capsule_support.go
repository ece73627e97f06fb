package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
)

func newCapsuleSupportCommand(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "support", Short: "Write all that is needed to understand a problem into one archive",
		Long: `Writes an archive (tar, gzip) of what the capsule knows of itself: what is declared
and how it is, events, the audit log, the logs of its services and of the kernel,
memory, disks, volumes, mounts, network, rules of the firewall, versions. It takes
an admin, a few seconds, and changes nothing. What could not be had is told in the
archive, beside the rest.

Secrets are removed: values of Secrets wherever they stand, values of variables,
arguments and files of workloads unless they can't be secret, logins, passwords in
addresses, private keys and tokens. What workloads print is not in it. Names and
addresses of your network are: look through it before you give it to others.

The archive is written to FILE.partial, for you alone to read, and takes its name
once it is whole. Without --output it is named by the capsule and the time; "-" is
the standard output.`,
		Example: `  capsulectl capsule support
  capsulectl capsule support -o attic.tar.gz`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runCapsuleSupport(cmd.Context(), a, file) },
	}
	// In the place of the form of output, which an archive has not.
	cmd.Flags().StringVarP(&file, "output", "o", "", "file to write to, or - for the standard output (default CAPSULE-support-TIME.tar.gz)")
	return cmd
}

func runCapsuleSupport(ctx context.Context, a *app, file string) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	if file == "" {
		name := c.context.Name
		if name == "" {
			name = "capsule"
		}
		file = fmt.Sprintf("%s-support-%s.tar.gz", name, time.Now().Format("20060102-150405"))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.support.Collect(ctx, &capsulev1.CollectRequest{})
	if err != nil {
		return err
	}
	first, err := stream.Recv() // nothing is made before the capsule has something to send
	if err != nil {
		return err
	}
	out, err := createArchive(a, file)
	if err != nil {
		return err
	}
	written, err := receiveSupport(ctx, a, stream, first, out)
	if err != nil {
		out.drop()
		return err
	}
	if err := out.keep(); err != nil {
		return err
	}
	if file != "-" {
		a.ui.note("%s, %s: look through it before you give it to others", file, size(written))
	}
	return nil
}

func receiveSupport(ctx context.Context, a *app, stream capsulev1.SupportService_CollectClient, message *capsulev1.CollectResponse, out *archiveFile) (written int64, err error) {
	line := &statusLine{ui: a.ui}
	defer line.end()
	for {
		if a.ui.errMoves { // one line a file is too much for a log
			line.set(message.GetStep())
		}
		n, err := out.Write(message.GetData())
		written += int64(n)
		if err != nil {
			return written, fileError("write", out.path, err)
		}
		if message, err = stream.Recv(); errors.Is(err, io.EOF) {
			return written, nil
		}
		if err != nil {
			return written, a.cutOff(ctx, "the archive", written, err)
		}
	}
}
