package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
)

// importBytes of an archive go in one message.
const importBytes = 256 << 10

// VolumeImportOptions of "volume import".
type VolumeImportOptions struct {
	Size string
}

func newVolumeImportCommand(a *app) *cobra.Command {
	var o VolumeImportOptions
	cmd := &cobra.Command{
		Use: "import FILE|- NAME", Short: "Make a new volume of an archive",
		Long: `Makes a new volume of an archive that "volume export" wrote. "-" reads the standard
input. The volume is there whole or not at all: an archive that was cut short or
damaged is refused.

The size is that of the volume that was exported, unless --size asks for another.`,
		Example: `  capsulectl volume import photos.tar.zst photos
  ssh nas "cat photos.tar.zst" | capsulectl volume import - photos --size 20GiB`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			target := &capsulev1.ImportTarget{Name: args[1]}
			if cmd.Flags().Changed("size") {
				var err error
				if target.Size, err = volumeSizeArgument(o.Size); err != nil {
					return usage(cmd, err)
				}
			}
			return runVolumeImport(cmd.Context(), a, args[0], target)
		},
	}
	cmd.Flags().StringVar(&o.Size, "size", "", "size of the volume, such as 10GiB (default that of the one exported)")
	return cmd
}

func runVolumeImport(ctx context.Context, a *app, file string, target *capsulev1.ImportTarget) error {
	if strings.HasSuffix(file, partialSuffix) {
		return &failure{exitFailed, fmt.Errorf("%q is an export that was broken off", file), "export the volume again"}
	}
	archive, total, err := openArchive(a, file, "name an archive that \"capsulectl volume export\" wrote")
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
	stream, err := c.volumes.Import(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&capsulev1.ImportRequest{Part: &capsulev1.ImportRequest_Target{Target: target}}); err != nil && !errors.Is(err, io.EOF) {
		return err // on EOF the answer says why
	}
	i := &importer{stream: stream, file: file, meter: newArchiveMeter()}
	bar := a.ui.progress()
	defer bar.end()
	answer, err := i.sendArchive(readChunks(ctx, archive), func(done int64) { bar.set("import "+target.GetName(), done, total) })
	if err != nil {
		return a.cutOff(ctx, fmt.Sprintf("the import of volume %q", target.GetName()), i.meter.bytes, err)
	}
	bar.done()
	a.ui.note("%d files", answer.GetFiles())
	return showMade(a, answer.GetObject())
}

// chunk is a piece of a file, or the error that its reading ended with.
type chunk struct {
	data []byte
	err  error
}

// readChunks reads beside what else goes on: a pipe may say nothing for long.
func readChunks(ctx context.Context, r io.Reader) <-chan chunk {
	chunks := make(chan chunk)
	go func() {
		for {
			data := make([]byte, importBytes)
			n, err := io.ReadFull(r, data)
			if errors.Is(err, io.ErrUnexpectedEOF) { // the last and shorter one
				err = nil
			}
			select {
			case <-ctx.Done():
				return
			case chunks <- chunk{data[:n], err}:
			}
			if err != nil {
				return
			}
		}
	}()
	return chunks
}

// importer is an import under way.
type importer struct {
	stream capsulev1.VolumeService_ImportClient
	file   string
	meter  *archiveMeter
}

// sendArchive sends the chunks up to their end, and gives the answer. One that
// comes before is a refusal.
func (i *importer) sendArchive(chunks <-chan chunk, moved func(done int64)) (*capsulev1.ImportResponse, error) {
	defer i.meter.pipe.Close()
	answer := &capsulev1.ImportResponse{}
	answered := make(chan error, 1)
	go func() { answered <- i.stream.RecvMsg(answer) }()
	for {
		select {
		case err := <-answered:
			return answer, err
		case c := <-chunks:
			more, err := i.take(c)
			if err != nil {
				return nil, err
			}
			if !more {
				chunks = nil // only the answer is left to come
			}
			moved(i.meter.bytes)
		}
	}
}

// take sends one chunk. Without an error, no more means that the answer comes.
func (i *importer) take(c chunk) (more bool, err error) {
	switch {
	case errors.Is(c.err, io.EOF):
		if err := i.meter.end(); err != nil {
			return false, i.refuse(err)
		}
		end := &capsulev1.ArchiveEnd{Sha256: i.meter.sum.Sum(nil), Bytes: i.meter.bytes}
		if i.stream.Send(&capsulev1.ImportRequest{Part: &capsulev1.ImportRequest_End{End: end}}) == nil {
			return false, i.stream.CloseSend()
		}
		return false, nil
	case c.err != nil:
		return false, readError(i.file, c.err)
	}
	if _, err := i.meter.Write(c.data); err != nil {
		return false, i.refuse(err)
	}
	return i.stream.Send(&capsulev1.ImportRequest{Part: &capsulev1.ImportRequest_Data{Data: c.data}}) == nil, nil
}

// refuse tells of an archive that no volume can be made of.
func (i *importer) refuse(err error) error {
	name := fmt.Sprintf("%q", i.file)
	if i.file == "-" {
		name = "what came through the pipe"
	}
	return &failure{exitFailed, fmt.Errorf("%s is %w", name, err), "no volume was made; export it again"}
}
