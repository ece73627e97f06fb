package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
)

// pushBytes of an archive go in one message.
const pushBytes = 256 << 10

// PushOptions of "image push".
type PushOptions struct {
	Name string
}

func newImagePushCommand(a *app) *cobra.Command {
	var o PushOptions
	cmd := &cobra.Command{
		Use:   "push FILE|-",
		Short: "Put an image archive on the capsule",
		Long: `Sends a docker-save or OCI archive to the capsule, plain or compressed with gzip
or zstd; its content decides, not its name. "-" reads the standard input. The
image is there whole or not at all.`,
		Example: `  capsulectl image push web.tar
  docker save web:1 | capsulectl image push -
  capsulectl image push build.tar --name web:2`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runImagePush(cmd.Context(), a, o, args[0]) },
	}
	cmd.Flags().StringVar(&o.Name, "name", "", "name of the image, when the archive has none or another")
	return cmd
}

func runImagePush(ctx context.Context, a *app, o PushOptions, file string) error {
	archive, total, err := openArchive(a, file, "pack it: tar -C "+file+" -cf image.tar .")
	if err != nil {
		return err
	}
	defer archive.Close()
	c, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.images.Push(ctx)
	if err != nil {
		return err
	}
	source := make(chan error, 1)
	go func() {
		err := sendArchive(stream, o.Name, archive)
		if err != nil {
			cancel()
		}
		source <- err
	}()
	result, err := receivePush(a, stream, total)
	if err != nil {
		cancel()
		select {
		case cause := <-source: // a file that can't be read, and not its consequence
			if cause != nil {
				return cause
			}
		default:
		}
		return err
	}
	return showPushed(a, result)
}

// openArchive gives the bytes of a file and their number; 0 is unknown.
func openArchive(a *app, file, folderHint string) (io.ReadCloser, int64, error) {
	if file == "-" {
		return io.NopCloser(a.ui.in), 0, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, 0, readError(file, err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(readError(file, err), f.Close())
	}
	if info.IsDir() {
		return nil, 0, errors.Join(&failure{exitFailed, fmt.Errorf("%q is a folder", file), folderHint}, f.Close())
	}
	return f, info.Size(), nil
}

// sendArchive gives the error of reading; one of sending comes with the answer.
func sendArchive(stream capsulev1.ImageService_PushClient, name string, archive io.Reader) error {
	options := &capsulev1.PushRequest{Part: &capsulev1.PushRequest_Options{Options: &capsulev1.PushOptions{Name: name}}}
	if stream.Send(options) != nil {
		return nil //nolint:nilerr // told above
	}
	buffer := make([]byte, pushBytes)
	for {
		n, err := io.ReadFull(archive, buffer)
		if n > 0 && stream.Send(&capsulev1.PushRequest{Part: &capsulev1.PushRequest_Data{Data: buffer[:n]}}) != nil {
			return nil //nolint:nilerr // told above
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			stream.CloseSend() //nolint:errcheck // never fails
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the archive: %w", err)
		}
	}
}

func receivePush(a *app, stream capsulev1.ImageService_PushClient, total int64) (*capsulev1.PushResult, error) {
	bar := a.ui.progress()
	defer bar.end()
	for {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil, errors.New("the capsule ended the push without a result")
		}
		if err != nil {
			return nil, err
		}
		if result := answer.GetResult(); result != nil {
			bar.done()
			return result, nil
		}
		if p := answer.GetProgress(); p != nil {
			if p.GetTotal() == 0 && p.GetStep() == "receive" {
				p.Total = total
			}
			bar.set(p.GetStep(), p.GetDone(), p.GetTotal())
		}
	}
}

func showPushed(a *app, result *capsulev1.PushResult) error {
	for _, w := range result.GetWarnings() {
		a.ui.warn(w)
	}
	return a.ui.show(a.output, imageView(result.GetImages(), "nothing was pushed"))
}
