package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
)

// copyBytes of a tar stream go in one message.
const copyBytes = 64 << 10

func newCopyCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "cp SOURCE DESTINATION", Short: "Copy files into a workload, or out of it",
		Long: `Copies a file or a folder by the rules of GNU "cp -a". One of the two places is
in a workload, written WORKLOAD:/PATH. A folder is copied into a folder that is
there, or takes the name of one that is not; "FOLDER/." is its contents. A
destination that ends in "/" must be a folder.`,
		Example: `  capsulectl cp site.conf web:/etc/site.conf
  capsulectl cp web:/var/log/. logs/`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error { return runCopy(cmd.Context(), a, args[0], args[1]) },
	}
}

// place is one end of a copy; workload is "" on this machine.
type place struct{ workload, path string }

var remoteForm = regexp.MustCompile(`^([a-z0-9][a-z0-9-]{0,39}):(/.*)$`)

func parsePlace(s string) place {
	m := remoteForm.FindStringSubmatch(s)
	if m == nil || (runtime.GOOS == "windows" && len(m[1]) == 1) { // c:/folder
		return place{path: filepath.ToSlash(s)}
	}
	return place{workload: m[1], path: m[2]}
}

func runCopy(ctx context.Context, a *app, source, destination string) error {
	from, to := parsePlace(source), parsePlace(destination)
	switch {
	case from.workload != "" && to.workload != "":
		return &failure{exitUsage, errors.New("both places are in workloads"), "copy to this machine first"}
	case from.workload != "":
		return copyOut(ctx, a, from, to.path)
	case to.workload != "":
		return copyIn(ctx, a, from.path, to)
	}
	return &failure{exitUsage, errors.New("neither place is in a workload"), "write WORKLOAD:/PATH, with an absolute path"}
}

func copyIn(ctx context.Context, a *app, source string, to place) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	if err := checkSource(source); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.workloads.CopyTo(ctx)
	if err != nil {
		return err
	}
	target := &capsulev1.CopyTarget{Name: to.workload, Path: to.path, Source: source}
	err = stream.Send(&capsulev1.CopyToRequest{Part: &capsulev1.CopyToRequest_Target{Target: target}})
	if err == nil {
		err = pack(source, copyWriter{stream})
	}
	if err != nil && !errors.Is(err, io.EOF) { // on EOF the answer says why
		return err
	}
	answer, err := stream.CloseAndRecv()
	if err != nil {
		return err
	}
	a.ui.note("%d files, %s", answer.GetFiles(), size(int64(answer.GetBytes()))) //nolint:gosec // bytes of files
	return nil
}

// copyWriter sends a tar stream in messages.
type copyWriter struct {
	stream capsulev1.WorkloadService_CopyToClient
}

func (w copyWriter) Write(p []byte) (int, error) {
	for sent := 0; sent < len(p); {
		n := min(copyBytes, len(p)-sent)
		if err := w.stream.Send(&capsulev1.CopyToRequest{Part: &capsulev1.CopyToRequest_Data{Data: p[sent : sent+n]}}); err != nil {
			return sent, err
		}
		sent += n
	}
	return len(p), nil
}

func copyOut(ctx context.Context, a *app, from place, destination string) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.workloads.CopyFrom(ctx, &capsulev1.CopyFromRequest{Name: from.workload, Path: from.path})
	if err != nil {
		return err
	}
	u := &unpacker{source: from.path, destination: destination}
	if err := u.run(&copyReader{stream: stream}); err != nil {
		return err
	}
	for _, w := range u.skipped {
		a.ui.warn(w)
	}
	a.ui.note("%d files, %s", u.files, size(u.bytes))
	return nil
}

// copyReader is a stream of messages as a reader. Its end without an error is
// the end of the stream.
type copyReader struct {
	stream capsulev1.WorkloadService_CopyFromClient
	rest   []byte
}

func (r *copyReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		message, err := r.stream.Recv()
		if err != nil {
			return 0, err
		}
		r.rest = message.GetData()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// below strips the name of the first entry from an entry's name; the first is ".".
func below(top, entry string) (string, error) {
	entry = strings.TrimSuffix(entry, "/")
	if entry == top {
		return ".", nil
	}
	rest := entry
	if top != "." {
		var ok bool
		if rest, ok = strings.CutPrefix(entry, top+"/"); !ok {
			return "", fmt.Errorf("the capsule sent %q outside of %q", entry, top)
		}
	}
	if !filepath.IsLocal(filepath.FromSlash(rest)) {
		return "", fmt.Errorf("the capsule sent %q outside of %q", entry, top)
	}
	return rest, nil
}
