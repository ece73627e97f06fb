package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"

	"capsule/internal/filecopy"
	"capsule/internal/process"
	"capsule/internal/workload"
)

// Stats reads the cgroup of a running instance.
func (d *Driver) Stats(ctx context.Context, id workload.ID) (workload.Stats, error) {
	if _, _, err := d.running(ctx, id); err != nil {
		return workload.Stats{}, err
	}
	use, err1 := d.cgroup(id.Name).Use()
	read, written, err2 := d.cgroup(id.Name).IO()
	if err := errors.Join(err1, err2); err != nil {
		return workload.Stats{}, fmt.Errorf("read use of workload %q: %w", id.Name, err)
	}
	return workload.Stats{MemoryBytes: use.Memory, CPUTime: use.CPU, PIDs: use.PIDs, DiskRead: read, DiskWritten: written}, nil
}

// root opens the file system of a running instance as its processes see it.
func (d *Driver) root(ctx context.Context, id workload.ID) (process.FS, error) {
	_, task, err := d.running(ctx, id)
	if err != nil {
		return process.FS{}, err
	}
	root, err := process.OpenFS(fmt.Sprintf("/proc/%d/root", task.Pid()))
	if errors.Is(err, os.ErrNotExist) {
		return process.FS{}, fmt.Errorf("workload %q is not running: %w", id.Name, errdefs.ErrFailedPrecondition)
	}
	return root, err
}

// CopyTo unpacks a tar stream at path in a running instance.
func (d *Driver) CopyTo(ctx context.Context, id workload.ID, path, source string, tar io.Reader) (files, bytes uint64, err error) {
	root, err := d.root(ctx, id)
	if err != nil {
		return 0, 0, err
	}
	defer root.Close()
	return filecopy.Unpack(root.Root, path, source, tar)
}

// CopyFrom writes path of a running instance as a tar stream.
func (d *Driver) CopyFrom(ctx context.Context, id workload.ID, path string, tar io.Writer) error {
	root, err := d.root(ctx, id)
	if err != nil {
		return err
	}
	defer root.Close()
	return filecopy.Pack(root.Root, path, tar)
}
