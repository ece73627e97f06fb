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

// Accounts are whom the program of an instance runs as, and who its files belong to.
type Accounts struct {
	Program process.Account
	Files   []process.Account
}

// Check looks into an instance's image for its users, its program and where its
// volumes and files go.
func (r *Records) Check(ctx context.Context, in workload.Instance) (who Accounts, err error) {
	err = image.View(ctx, r.client, r.snapshotter, RecordID(in.ID)+".view", in.Image.ChainID, func(dir string) error {
		root, err := process.OpenFS(dir)
		if err != nil {
			return err
		}
		defer root.Close()
		if who.Program, err = root.Account(in.User); err != nil {
			return err
		}
		search, _ := process.Lookup(process.Environment(in.Env, who.Program), "PATH")
		if err := root.Program(in.Args[0], search, in.Cwd, who.Program); err != nil {
			return err
		}
		if who.Files, err = files(root, in, who.Program); err != nil {
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

// files checks where an instance's files go, and gives their owners.
func files(root process.FS, in workload.Instance, program process.Account) ([]process.Account, error) {
	var owners []process.Account
	for _, f := range in.Files {
		owner := program
		if f.Owner != "" {
			var err error
			if owner, err = root.Account(f.Owner); err != nil {
				return nil, fmt.Errorf("owner of file %q: %w", f.Path, err)
			}
		}
		owners = append(owners, owner)
		if slices.ContainsFunc(in.Mounts, func(m workload.Mount) bool { return within(f.Path, m.Path) }) {
			continue // the volume is not to be seen yet
		}
		if err := root.FilePoint(f.Path); err != nil {
			return nil, err
		}
	}
	return owners, nil
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
