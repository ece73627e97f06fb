// Package container is the workload driver for containers on containerd and
// runc. It keeps no state of its own: what exists is what containerd lists with
// our labels, so a new Driver carries on where the last one ended.
//
// An instance is one container in containerd, with a snapshot of its own that
// lives as long as the instance: ending and starting again keeps what was
// written. A task exists only while the instance runs; how it ended is written
// to labels before the task is deleted, so that it survives reboots:
//
//	Prepare ──▶ Prepared ──Start──▶ Running ──exit, Stop──▶ Ended
//	                                   ▲                      │
//	                                   └────────Start─────────┘
//
// Known gap: containerd forgets a task that ended while containerd itself was
// down (core/runtime/v2, "cleaning leaked shim process"). Such an instance is
// listed as ended with 137, as after a power cut, never as a success.
//
// All instances share one shim process (the group annotation), since a shim of
// their own would cost each one about 10 MiB.
//
// # Privileges
//
// no_new_privs is always set, so set-user-ID programs and file capabilities in
// an image give nothing. What they are commonly used for works without: every
// port can be bound and ping is allowed to all (sysctls of the instance's
// network namespace).
package container

import (
	"context"
	"fmt"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"

	"capsule/internal/instance"
	"capsule/internal/workload"
)

// Options of a Driver; empty fields get the defaults of our machine.
type Options struct {
	Logger      string // program that writes logs, default /usr/bin/capsule-log
	Cgroup      string // parent of the instances' cgroups, default /capsule/apps
	ShimCgroup  string // cgroup of shims and loggers, default /capsule/shims; "-" is none
	Snapshotter string // default erofs
	FIFODir     string // folder for pipes of running commands, default /run/capsule/exec
	Runc        string // program that takes the place of runc, default /usr/bin/capsule-runc
	SecretDir   string // folder in memory for files and secrets, default /run/capsule/secrets
}

// Driver runs containers.
type Driver struct {
	client  *containerd.Client
	records *instance.Records
	opts    Options
	starts  chan struct{} // places for those under way
}

var _ workload.Driver = (*Driver)(nil)

// New returns a driver that uses the client, whose default namespace holds the
// instances.
func New(client *containerd.Client, opts Options) *Driver {
	setDefault(&opts.Logger, "/usr/bin/capsule-log")
	setDefault(&opts.Cgroup, "/capsule/apps")
	setDefault(&opts.ShimCgroup, "/capsule/shims")
	setDefault(&opts.FIFODir, "/run/capsule/exec")
	setDefault(&opts.Runc, "/usr/bin/capsule-runc")
	setDefault(&opts.SecretDir, "/run/capsule/secrets")
	if opts.ShimCgroup == "-" {
		opts.ShimCgroup = ""
	}
	return &Driver{
		client: client, records: instance.Open(client, instance.Container, opts.Snapshotter), opts: opts,
		starts: make(chan struct{}, startsMax),
	}
}

// stepMax is far beyond what a step takes on a slow machine.
const stepMax = 2 * time.Minute

// StepMax bounds one step.
func (d *Driver) StepMax() time.Duration { return stepMax }

func setDefault(s *string, value string) {
	if *s == "" {
		*s = value
	}
}

// load gives the container of an instance; the error names the workload.
func (d *Driver) load(ctx context.Context, id workload.ID) (containerd.Container, error) {
	c, err := d.client.LoadContainer(ctx, instance.RecordID(id))
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("workload %q has no instance of generation %d: %w", id.Name, id.Generation, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("load workload %q: %w", id.Name, err)
	}
	return c, nil
}

// running gives the task of an instance that runs.
func (d *Driver) running(ctx context.Context, id workload.ID) (containerd.Container, containerd.Task, error) {
	c, err := d.load(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	task, err := c.Task(ctx, nil)
	if err == nil {
		var st containerd.Status
		if st, err = task.Status(ctx); err == nil && st.Status == containerd.Running {
			return c, task, nil
		}
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, nil, fmt.Errorf("load workload %q: %w", id.Name, err)
	}
	return nil, nil, fmt.Errorf("workload %q is not running: %w", id.Name, errdefs.ErrFailedPrecondition)
}
