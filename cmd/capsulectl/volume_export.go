package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/durable"
)

// partialSuffix is of a file that is being written.
const partialSuffix = ".partial"

func newVolumeExportCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "export NAME[@SNAPSHOT] FILE|-", Short: "Write what a volume holds to a file",
		Long: `Writes what a volume holds now, or held at a snapshot, as a tar archive compressed
with zstd, which "tar --zstd" reads too. "-" is the standard output. The volume
may be mounted and written to.

The archive is written to FILE.partial and takes its name once it is whole and
its checksum is right: a FILE of before is replaced only then. A copy that is
broken off leaves nothing.`,
		Example: `  capsulectl volume export photos photos.tar.zst
  capsulectl volume export photos@before-update - | ssh nas "cat > photos.tar.zst"`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runVolumeExport(cmd.Context(), a, args[0], args[1])
		},
	}
}

func runVolumeExport(ctx context.Context, a *app, source, file string) error {
	volume, snapshot, named := strings.Cut(source, "@")
	if volume == "" || (named && snapshot == "") {
		return &failure{exitUsage, fmt.Errorf("%q names no volume or snapshot", source), "write NAME or NAME@SNAPSHOT"}
	}
	c, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.volumes.Export(ctx, &capsulev1.ExportRequest{Volume: volume, Snapshot: snapshot})
	if err != nil {
		return err
	}
	// Nothing is made before the capsule has something to send.
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	out, err := createArchive(a, file)
	if err != nil {
		return err
	}
	e := &exporter{app: a, source: source, stream: stream, meter: newArchiveMeter(), out: out}
	end, err := e.receive(ctx, first)
	if err != nil {
		out.drop()
		return err
	}
	if err := out.keep(); err != nil {
		return err
	}
	a.ui.note("%d files, %s, SHA-256 %x", end.GetFiles(), size(end.GetBytes()), end.GetSha256())
	return nil
}

// exporter is an export under way.
type exporter struct {
	app    *app
	source string
	stream capsulev1.VolumeService_ExportClient
	meter  *archiveMeter
	out    *archiveFile
}

// receive writes what the capsule sends, up to its end, and checks it.
func (e *exporter) receive(ctx context.Context, message *capsulev1.ExportResponse) (*capsulev1.ArchiveEnd, error) {
	bar := e.app.ui.progress()
	defer bar.end()
	defer e.meter.pipe.Close()
	var total int64
	for {
		switch part := message.GetPart().(type) {
		case *capsulev1.ExportResponse_Start:
			total = part.Start.GetUsed()
		case *capsulev1.ExportResponse_Data:
			e.meter.Write(part.Data) //nolint:errcheck // its end tells
			if _, err := e.out.Write(part.Data); err != nil {
				return nil, fileError("write", e.out.path, err)
			}
		case *capsulev1.ExportResponse_End:
			if err := e.meter.check(part.End); err != nil {
				return nil, err
			}
			bar.done()
			return part.End, nil
		}
		bar.set("export "+e.source, e.meter.unpacked.Load(), total)
		var err error
		if message, err = e.stream.Recv(); err != nil {
			return nil, e.app.cutOff(ctx, fmt.Sprintf("the export of %q", e.source), e.meter.bytes, err)
		}
	}
}

// cutOff tells how far a copy had come when the connection broke.
func (a *app) cutOff(ctx context.Context, what string, bytes int64, err error) error {
	const hint = "nothing of it is kept; run it again"
	if errors.Is(err, io.EOF) {
		return &failure{exitFailed, fmt.Errorf("%s ended after %s, before its end", what, size(bytes)), hint}
	}
	f := a.explain(ctx, err)
	s, ok := fromGRPC(err)
	if !ok || s.Code() != codes.Unavailable || !broken(s.Message()) || f.code != exitFailed {
		return err
	}
	return &failure{exitFailed, fmt.Errorf("%s was cut off after %s: %w", what, size(bytes), f.err), hint}
}

// archiveFile is where an archive is written to: a file that gets its name once
// it is whole, or what can't be renamed (a pipe, a device).
type archiveFile struct {
	io.Writer
	path  string
	file  *os.File // nil for the standard output
	draft bool     // written beside path
}

func createArchive(a *app, path string) (*archiveFile, error) {
	if path == "-" {
		if a.ui.outTTY {
			return nil, &failure{exitUsage, errors.New("an archive is nothing for a terminal"), "name a file, or send it through a pipe"}
		}
		return &archiveFile{Writer: a.ui.out, path: path}, nil
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		return nil, &failure{exitFailed, fmt.Errorf("%q is a folder", path), "name a file in it"}
	}
	out := &archiveFile{path: path, draft: err != nil || info.Mode().IsRegular()}
	if out.draft {
		os.Remove(path + partialSuffix) //nolint:errcheck // of an export that was killed; the next line tells
		out.file, err = os.OpenFile(path+partialSuffix, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	} else {
		out.file, err = os.OpenFile(path, os.O_WRONLY, 0)
	}
	if err != nil {
		return nil, fileError("write", path, err)
	}
	out.Writer = out.file
	return out, nil
}

// keep brings the archive to the disk and gives it its name.
func (f *archiveFile) keep() error {
	switch {
	case f.file == nil:
		return nil
	case !f.draft:
		return f.file.Close()
	}
	if err := f.file.Sync(); err != nil {
		f.drop()
		return fileError("write", f.path, err)
	}
	if !f.mine() {
		f.drop()
		return fmt.Errorf("write %q: another export writes it at the same time", f.path)
	}
	if err := f.file.Close(); err != nil {
		return fileError("write", f.path, err)
	}
	if runtime.GOOS == "windows" { // which can't sync a folder
		return os.Rename(f.file.Name(), f.path)
	}
	return durable.Rename(f.file.Name(), f.path)
}

// mine tells that the file beside path is the one that was written here.
func (f *archiveFile) mine() bool {
	written, err := f.file.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(f.file.Name())
	return err == nil && os.SameFile(written, there)
}

// drop leaves nothing of an archive that is not whole.
func (f *archiveFile) drop() {
	if f.file == nil {
		return
	}
	if f.draft && f.mine() {
		defer os.Remove(f.file.Name())
	}
	f.file.Close()
}
