package container

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"

	"capsule/internal/await"
	"capsule/internal/instance"
	"capsule/internal/process"
	"capsule/internal/workload"
)

// List returns every instance. One whose task has ended gets that written down
// and its task deleted, unless somebody is at work on it.
func (d *Driver) List(ctx context.Context) ([]workload.Observed, error) {
	all, err := d.records.List(ctx)
	if err != nil {
		return nil, err
	}
	reply, err := d.client.TaskService().List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", errgrpc.ToNative(err))
	}
	states := map[string]*tasktypes.Process{}
	for _, p := range reply.Tasks {
		states[p.ID] = p
	}
	var list []workload.Observed
	for _, c := range all {
		o, ok := instance.Observed(c.Labels)
		if !ok {
			continue
		}
		p := states[c.ID]
		if p == nil && o.State == workload.Ended && o.FinishedAt.IsZero() {
			if o, p, err = d.again(ctx, o); errdefs.IsNotFound(err) {
				continue // removed meanwhile
			} else if err != nil {
				return nil, err
			}
		}
		if p != nil {
			if o, err = d.observeTask(ctx, o, c, p); errdefs.IsNotFound(err) {
				continue // removed meanwhile
			} else if err != nil {
				return nil, err
			}
		}
		list = append(list, o)
	}
	return list, nil
}

// again looks for the task of an instance that ran and has none in a list:
// containerd leaves out one whose shim is slow to answer, and one that ended since
// the records were read has its ending there by now.
func (d *Driver) again(ctx context.Context, o workload.Observed) (workload.Observed, *tasktypes.Process, error) {
	id := instance.RecordID(o.ID)
	reply, err := d.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
	err = errgrpc.ToNative(err)
	if err == nil {
		return o, reply.Process, nil
	}
	if ctx.Err() == nil && errdefs.IsDeadlineExceeded(err) { // nobody saw it end
		return o, &tasktypes.Process{ID: id, Status: tasktypes.Status_RUNNING}, nil
	}
	c, err := d.records.Get(ctx, o.ID)
	if err != nil {
		return o, nil, err
	}
	o, _ = instance.Observed(c.Labels)
	return o, nil, nil
}

// observeTask completes o by the state of the instance's task.
func (d *Driver) observeTask(ctx context.Context, o workload.Observed, c containers.Container, p *tasktypes.Process) (workload.Observed, error) {
	switch p.Status {
	case tasktypes.Status_RUNNING, tasktypes.Status_PAUSED, tasktypes.Status_PAUSING:
		o.State = workload.Running
		o.ExitCode, o.FinishedAt, o.OOM = 0, time.Time{}, false
		return o, nil
	case tasktypes.Status_STOPPED:
	default: // being created, or by a start that was cut off
		return o, nil
	}
	ended := o
	ended.State = workload.Ended
	ended.ExitCode, ended.FinishedAt = int(p.ExitStatus), p.ExitedAt.AsTime()
	unlock := d.records.TryLock(c.ID)
	if unlock == nil {
		return ended, nil
	}
	defer unlock()
	limited, cancel := context.WithTimeout(ctx, settleMax)
	defer cancel()
	settled, err := d.settle(limited, o.ID)
	if err == nil || errdefs.IsNotFound(err) || errdefs.IsUnavailable(err) || ctx.Err() != nil {
		return settled, err
	}
	// One that can't be cleared away must not hide all others; its own next
	// start, or removal, meets the same error and shows it.
	slog.Warn("clear away an ended run", "workload", o.Name, "error", err)
	ended.OOM = ended.ExitCode == process.Killed && d.cgroup(o.Name).OutOfMemory()
	return ended, nil
}

// settleMax bounds what one instance may take of a list of all.
const settleMax = 10 * time.Second

// settle ends the task of an instance and reads it again.
func (d *Driver) settle(ctx context.Context, id workload.ID) (workload.Observed, error) {
	c, err := d.load(ctx, id)
	if err != nil {
		return workload.Observed{}, err
	}
	task, err := c.Task(ctx, nil)
	if err == nil {
		var st containerd.Status
		if st, err = task.Status(ctx); err == nil && st.Status == containerd.Stopped {
			err = d.end(ctx, c, task)
		}
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return workload.Observed{}, fmt.Errorf("settle workload %q: %w", id.Name, err)
	}
	info, err := c.Info(ctx)
	if err != nil {
		return workload.Observed{}, err
	}
	o, _ := instance.Observed(info.Labels)
	return o, nil
}

// wait is closed when the task's first process has ended, whatever happens to
// containerd meanwhile.
func (d *Driver) wait(ctx context.Context, task containerd.Task) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		if _, err := d.exit(ctx, task.ID(), ""); err == nil {
			close(done)
		}
	}()
	return done
}

// retryPause is between two attempts to reach containerd.
const retryPause = 200 * time.Millisecond

// exit waits for the end of a process, also over a restart of containerd.
func (d *Driver) exit(ctx context.Context, container, exec string) (code int, err error) {
	for {
		r, err := d.client.TaskService().Wait(ctx,
			&tasks.WaitRequest{ContainerID: container, ExecID: exec}, grpc.WaitForReady(true))
		err = errgrpc.ToNative(err)
		switch {
		case err == nil:
			return int(r.ExitStatus), nil
		case errdefs.IsNotFound(err): // it ended, and was deleted by somebody
			return process.Killed, nil
		case !errdefs.IsUnavailable(err) || ctx.Err() != nil:
			return 0, err
		}
		if await.Pause(ctx, retryPause) != nil {
			return 0, ctx.Err()
		}
	}
}
