package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"capsule/api/manifest"
	"capsule/internal/compose"
	"capsule/internal/durable"
)

// ConvertOptions of "convert".
type ConvertOptions struct {
	Output     string
	VolumeSize string
	Project    string
	Prefix     string
	Profiles   []string
}

func newConvertCommand(a *app) *cobra.Command {
	var o ConvertOptions
	cmd := &cobra.Command{
		Use:   "convert FILE|-",
		Short: "Turn a Docker Compose file into manifests",
		Long: `Turns a Docker Compose file into manifests, which are printed, or written with -o.
Each service becomes a Container, each named volume a Volume, each secret a Secret.
${NAME} is taken from the environment, else from ".env" beside the file. Nothing is
built, pulled or asked of Docker or of a capsule.

What has no equivalent, or means something else here, is told on stderr, a line
each: where it stands, what happens instead, and what can be done. The manifests are
written all the same, and the exit code is 5. Manifests hold the values of secrets.

Volumes and secrets are called PROJECT-NAME, as Docker calls them; workloads by the
name of their service, since others reach them by it. --prefix keeps those of two
projects apart.`,
		Example: `  capsulectl convert compose.yaml -o nextcloud.yaml
  capsulectl convert compose.yaml --volume-size 50GiB | capsulectl apply -f - --dry-run`,
		Args:        cobra.ExactArgs(1),
		Annotations: map[string]string{"exits": "0 all of it is carried over, 1 the file can't be read, 2 wrong usage, 5 something is lost, and the manifests are written"},
		RunE:        func(cmd *cobra.Command, args []string) error { return runConvert(cmd.Context(), a, o, args[0]) },
	}
	flags := cmd.Flags()
	flags.StringVarP(&o.Output, "output", "o", "", "FILE to write the manifests to (default the standard output)")
	flags.StringVar(&o.VolumeSize, "volume-size", manifest.FormatSize(compose.VolumeSizeDefault), "size of each volume, which a Compose file does not have")
	flags.StringVar(&o.Project, "project", "", "NAME before those of volumes and secrets (default the file's name field, else its folder)")
	flags.StringVar(&o.Prefix, "prefix", "", "TEXT before the names of workloads")
	flags.StringSliceVar(&o.Profiles, "profile", nil, "convert services of this profile too, \"*\" for all (repeatable)")
	return cmd
}

func runConvert(ctx context.Context, a *app, o ConvertOptions, file string) error {
	size, err := manifest.ParseSize(o.VolumeSize)
	if err != nil {
		return &failure{exitUsage, fmt.Errorf("--volume-size: %w", err), ""}
	}
	src, err := readCompose(a, file)
	if err != nil {
		return err
	}
	src.VolumeSize, src.Project, src.Prefix, src.Profiles = size, o.Project, o.Prefix, o.Profiles
	logrus.SetOutput(io.Discard) // what the library warns of, it says in our words or is none of ours
	result, err := compose.Convert(ctx, src)
	if err != nil {
		return err
	}
	text, err := result.Manifest()
	if err != nil {
		return err
	}
	if o.Output == "" || o.Output == "-" {
		a.ui.printf("%s", text)
	} else if err := durable.WriteFile(o.Output, text, 0o600); err != nil {
		return fileError("write", o.Output, err)
	}
	return a.tellLosses(src.Name, result)
}

// readCompose reads the file, and what its variables mean.
func readCompose(a *app, file string) (compose.Source, error) {
	src := compose.Source{Name: file, Dir: filepath.Dir(file), Env: map[string]string{}}
	in := a.ui.in
	if file == "-" {
		src.Name, src.Dir = "stdin", "."
	} else {
		f, err := os.Open(file)
		if err != nil {
			return src, readError(file, err)
		}
		defer f.Close()
		in = f
	}
	var err error
	if src.Data, err = io.ReadAll(io.LimitReader(in, compose.MaxBytes+1)); err != nil {
		return src, readError(src.Name, err)
	}
	if src.Dir, err = filepath.Abs(src.Dir); err != nil {
		return src, readError(src.Name, err)
	}
	for _, entry := range os.Environ() {
		if name, value, ok := strings.Cut(entry, "="); ok {
			src.Env[name] = value
		}
	}
	return src, nil
}

// tellLosses prints a line for each, as compilers do.
func (a *app) tellLosses(file string, r *compose.Result) error {
	for _, note := range r.Notes {
		a.ui.note("note: %s", note)
	}
	for _, l := range r.Losses {
		place := file
		if l.Line > 0 {
			place = fmt.Sprintf("%s:%d", file, l.Line)
		}
		a.ui.note("%s: %s: %s", place, l.Path, l.Message)
	}
	switch n := len(r.Losses); n {
	case 0:
		return nil
	case 1:
		a.ui.warn("1 thing is not as in the Compose file; the manifests are written")
	default:
		a.ui.warn(fmt.Sprintf("%d things are not as in the Compose file; the manifests are written", n))
	}
	return remoteExit(exitLost)
}
