package container

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"

	"capsule/internal/cgroup"
	"capsule/internal/ext4"
	"capsule/internal/instance"
	"capsule/internal/workload"
)

// bound limits what a new instance keeps in its writable layer. On a file system that
// was made without the means only what was asked for is missed.
func (d *Driver) bound(id string, mounts []mount.Mount, r workload.Resources) error {
	dirs := writable(mounts)
	if len(dirs) == 0 {
		return fmt.Errorf("snapshot %s has no writable layer", id)
	}
	bytes, files, err := instance.DiskBound(r, dirs[0])
	if err != nil {
		return err
	}
	err = ext4.Bound(bytes, files, dirs...)
	if errdefs.IsNotImplemented(err) && r.DiskBytes == 0 {
		return nil
	}
	return err
}

// writable are the folders of an overlay that it writes to: its upper one, and the one
// in which files are made before they are moved there.
func writable(mounts []mount.Mount) []string {
	var dirs []string
	for _, m := range mounts {
		for _, o := range m.Options {
			for _, name := range []string{"upperdir=", "workdir="} {
				if dir, ok := strings.CutPrefix(o, name); ok {
					dirs = append(dirs, dir)
				}
			}
		}
	}
	return dirs
}

// limit an instance whose cgroup is made, before its program runs, by what is known
// only now: how much memory the machine has, and the numbers of its disks.
func (d *Driver) limit(ctx context.Context, in workload.Instance) error {
	if in.Resources.MemoryBytes == 0 {
		if err := d.cgroup(in.Name).LimitMemory(cgroup.Group(filepath.Join(cgroup.Root, d.opts.Cgroup))); err != nil {
			return err
		}
	}
	if in.Resources.IO == (workload.IO{}) {
		return nil
	}
	mounts, err := d.records.Snapshots().Mounts(ctx, instance.RecordID(in.ID))
	if err != nil {
		return err
	}
	paths := writable(mounts)
	for _, m := range in.Mounts {
		paths = append(paths, m.Source)
	}
	return d.cgroup(in.Name).LimitIO(cgroup.IOLimits(in.Resources.IO), paths...)
}
