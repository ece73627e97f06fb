package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"

	"capsule/internal/await"
	"capsule/internal/cgroup"
	"capsule/internal/instance"
	"capsule/internal/logs"
	"capsule/internal/process"
	"capsule/internal/workload"
)

// killLimit bounds the wait for the end after SIGKILL.
const killLimit = 10 * time.Second

// Start runs the instance's program with a logger beside it.
func (d *Driver) Start(ctx context.Context, in workload.Instance) error {
	done, err := d.turn(ctx, in.Name)
	if err != nil {
		return err
	}
	defer done()
	defer d.records.Lock(instance.RecordID(in.ID))()
	c, err := d.load(ctx, in.ID)
	if err != nil {
		return err
	}
	old, err := c.Task(ctx, nil)
	switch {
	case errdefs.IsNotFound(err):
	case err != nil:
		return fmt.Errorf("start workload %q: %w", in.Name, err)
	default:
		st, err := old.Status(ctx)
		if err == nil && st.Status == containerd.Running {
			return nil
		}
		if err := d.end(ctx, c, old); err != nil {
			return fmt.Errorf("start workload %q: clear away its last run: %w", in.Name, err)
		}
	}
	if err := d.start(ctx, c, in); err != nil {
		return fmt.Errorf("start workload %q: %w", in.Name, err)
	}
	return nil
}

func (d *Driver) start(ctx context.Context, c containerd.Container, in workload.Instance) (err error) {
	if err := os.MkdirAll(in.LogDir, 0o750); err != nil {
		return err
	}
	labels, err := c.Labels(ctx)
	if err != nil {
		return err
	}
	runs := false
	defer func() {
		if !runs {
			err = errors.Join(err, d.clear(c.ID()))
		}
	}()
	if err := d.lay(c.ID(), in, instance.Owners(labels)); err != nil {
		return err
	}
	if err := d.remount(ctx, in); err != nil {
		return err
	}
	began := time.Now()
	task, err := d.newTask(ctx, c, in)
	if err != nil {
		return err
	}
	started := time.Now()
	// Before the program prints.
	_ = logs.Mark(in.LogDir, "started generation "+strconv.FormatUint(in.Generation, 10))
	err = d.limit(ctx, in)
	if err == nil {
		err = task.Start(ctx)
	}
	if err != nil {
		_, deleteErr := task.Delete(context.WithoutCancel(ctx), containerd.WithProcessKill)
		_ = logs.Mark(in.LogDir, "could not start")
		return errors.Join(err, deleteErr)
	}
	runs = true
	// create holds the shim, when it is the first, the logger and runc's create.
	slog.Info("started workload", "name", in.Name, "generation", in.Generation,
		"create", took(began, started), "start", took(started, time.Now()))
	return d.records.Started(ctx, c.ID(), started, in.LogDir)
}

const (
	// shimTries and shimPause: the shim that all share ends with the last of
	// its instances, and may do so under a new one.
	shimTries = 50
	shimPause = 200 * time.Millisecond
)

// newTask creates the instance's first process, which waits, and its logger.
func (d *Driver) newTask(ctx context.Context, c containerd.Container, in workload.Instance) (task containerd.Task, err error) {
	for range shimTries {
		task, err = c.NewTask(ctx, cio.BinaryIO(d.opts.Logger, map[string]string{in.LogDir: ""}), d.withOptions(in))
		if err == nil || !shimGone(err) {
			return task, err
		}
		if await.Pause(ctx, shimPause) != nil {
			return nil, ctx.Err()
		}
	}
	return nil, err
}

// withOptions are those of this start.
func (d *Driver) withOptions(in workload.Instance) containerd.NewTaskOpts {
	return func(_ context.Context, _ *containerd.Client, task *containerd.TaskInfo) error {
		task.Options = d.runcOptions(in)
		return nil
	}
}

// shimGone tells that the shim ended while it was asked.
func shimGone(err error) bool {
	if errdefs.IsUnavailable(err) {
		return true
	}
	for _, text := range []string{
		"ttrpc: closed", "connection refused", "broken pipe", "connection reset", "shim.sock", "server closed",
		"pre-existing socket", "new shim socket", // two took the same socket: the ending one, and the next one
	} {
		if strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}

// Stop ends a running instance, by the signal or after the grace by force.
func (d *Driver) Stop(ctx context.Context, id workload.ID, signal int, grace time.Duration) error {
	defer d.records.Lock(instance.RecordID(id))()
	c, err := d.load(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	task, err := c.Task(ctx, nil)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err == nil {
		err = d.stop(ctx, id.Name, task, syscall.Signal(signal), grace)
	}
	if err == nil {
		err = d.end(ctx, c, task)
	}
	if err != nil {
		return fmt.Errorf("stop workload %q: %w", id.Name, err)
	}
	return nil
}

// stop returns when the task's processes are gone.
func (d *Driver) stop(ctx context.Context, name string, task containerd.Task, signal syscall.Signal, grace time.Duration) error {
	ended := d.wait(ctx, task)
	if grace > 0 {
		if err := task.Kill(ctx, signal); err != nil && !gone(err) {
			return err
		}
		if done, err := await.Done(ctx, ended, grace); done || err != nil {
			return err
		}
	}
	if err := d.kill(ctx, name, task); err != nil {
		return err
	}
	done, err := await.Done(ctx, ended, killLimit)
	if !done && err == nil {
		err = fmt.Errorf("its processes do not end, a device may not answer: %w", errdefs.ErrUnavailable)
	}
	return err
}

// kill ends all processes at once, however many there are: the kernel does, and needs
// no shim, which others wait for. What they wrote has to be taken before they end, so
// that no limit of that holds any more.
func (d *Driver) kill(ctx context.Context, name string, task containerd.Task) error {
	group := d.cgroup(name)
	if err := group.FreeIO(); err != nil {
		return err
	}
	err := group.Kill()
	if errors.Is(err, fs.ErrNotExist) {
		if err = task.Kill(ctx, syscall.SIGKILL, containerd.WithKillAll); gone(err) {
			return nil
		}
	}
	return err
}

// gone tells that there is nothing left to kill.
func gone(err error) bool { return errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) }

// end keeps how a task ended and deletes it. One that only was created is
// deleted without a trace.
func (d *Driver) end(ctx context.Context, c containerd.Container, task containerd.Task) error {
	info, err := c.Info(ctx)
	if err != nil {
		return err
	}
	st, err := task.Status(ctx)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	how := instance.Ending{Code: int(st.ExitStatus), At: st.ExitTime}
	how.OOM = how.Code == process.Killed && d.cgroup(info.Labels[instance.LabelName]).OutOfMemory()
	fresh := st.Status == containerd.Stopped && info.Labels[instance.LabelEnd] != how.String()
	if fresh {
		if err := d.records.Ended(ctx, c.ID(), how); err != nil {
			return err
		}
	}
	// Deleting waits until the logger has written all that was printed.
	if _, err := task.Delete(ctx, containerd.WithProcessKill); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if fresh {
		how.Mark(info.Labels[instance.LabelLogDir])
	}
	return d.clear(c.ID())
}

// cgroup of a workload's instance, which exists until the task is deleted.
func (d *Driver) cgroup(name string) cgroup.Group {
	return cgroup.Group(filepath.Join(cgroup.Root, d.opts.Cgroup, name))
}

// Remove kills what runs and removes the container with its snapshot.
func (d *Driver) Remove(ctx context.Context, id workload.ID) error {
	defer d.records.Lock(instance.RecordID(id))()
	c, err := d.load(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := d.remove(ctx, id, c); err != nil {
		return fmt.Errorf("remove workload %q: %w", id.Name, err)
	}
	return nil
}

func (d *Driver) remove(ctx context.Context, id workload.ID, c containerd.Container) error {
	task, err := c.Task(ctx, nil)
	if err == nil {
		if err := d.stop(ctx, id.Name, task, syscall.SIGKILL, 0); err != nil {
			return err
		}
		if err := d.end(ctx, c, task); err != nil {
			return err
		}
	} else if !errdefs.IsNotFound(err) {
		return err
	}
	return errors.Join(d.records.Delete(ctx, id), d.clear(c.ID()))
}
