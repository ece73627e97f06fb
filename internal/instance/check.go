package instance

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"capsule/internal/image"
	"capsule/internal/process"
	"capsule/internal/workload"
)

// Check looks into an instance's image for its user, its program and
// where its volumes go.
func (r *Records) Check(ctx context.Context, in workload.Instance) (who process.Account, err error) {
	err = image.View(ctx, r.client, r.snapshotter, RecordID(in.ID)+".view", in.Image.ChainID, func(dir string) error {
		root, err := process.OpenFS(dir)
		if err != nil {
			return err
		}
		defer root.Close()
		if who, err = root.Account(in.User); err != nil {
			return err
		}
		search, _ := process.Lookup(process.Environment(in.Env, who), "PATH")
		if err := root.Program(in.Args[0], search, in.Cwd, who); err != nil {
			return err
		}
		for _, name := range outermost(in.Mounts) {
			if err := root.MountPoint(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return who, fmt.Errorf("image %q: %w", in.Image.Name, err)
	}
	return who, nil
}

// outermost are the paths of mounts that lie in no other: there, and only there,
// the image is below.
func outermost(mounts []workload.Mount) []string {
	var names []string
	for _, m := range mounts {
		if !slices.ContainsFunc(mounts, func(o workload.Mount) bool { return within(m.Path, o.Path) }) {
			names = append(names, m.Path)
		}
	}
	return names
}

// within tells that a path is below a folder.
func within(name, dir string) bool {
	name, dir = path.Clean(name), path.Clean(dir)
	return name != dir && strings.HasPrefix(name, strings.TrimSuffix(dir, "/")+"/")
}
