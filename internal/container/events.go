package container

import (
	"context"
	"log/slog"
	"time"

	"github.com/containerd/containerd/api/events"
	coreevents "github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/typeurl/v2"

	"capsule/internal/await"
	"capsule/internal/instance"
)

const (
	// eventsPause is before the next attempt after the stream broke.
	eventsPause = time.Second
	// eventsQueue is how many names may wait; more are dropped, since they are
	// hints and the next full pass sees all.
	eventsQueue = 256
)

// Events sends the names of workloads whose task changed. After the stream
// from containerd broke it sends "", for all.
func (d *Driver) Events(ctx context.Context) <-chan string {
	names := make(chan string, eventsQueue)
	go func() {
		defer close(names)
		for ctx.Err() == nil {
			d.relay(ctx, names)
			if await.Pause(ctx, eventsPause) == nil {
				send(names, "")
			}
		}
	}()
	return names
}

// relay until the stream breaks.
func (d *Driver) relay(ctx context.Context, names chan<- string) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, broken := d.client.EventService().Subscribe(ctx, `topic~="^/tasks/(exit|oom|delete|start)"`)
	for {
		select {
		case e := <-stream:
			if name := eventName(e); name != "" {
				send(names, name)
			}
		case err := <-broken:
			if err != nil && ctx.Err() == nil {
				slog.Warn("events of containerd broke off", "error", err)
			}
			return
		case <-ctx.Done():
			return
		}
	}
}

func send(names chan<- string, name string) {
	select {
	case names <- name:
	default:
	}
}

// eventName is the workload that an event is about, "" when it is none's.
func eventName(e *coreevents.Envelope) string {
	if e == nil || e.Event == nil {
		return ""
	}
	v, err := typeurl.UnmarshalAny(e.Event)
	if err != nil {
		return ""
	}
	switch v := v.(type) {
	case *events.TaskExit:
		if v.ID != v.ContainerID { // a command in the instance
			return ""
		}
		return instance.WorkloadName(v.ContainerID)
	case *events.TaskOOM:
		return instance.WorkloadName(v.ContainerID)
	case *events.TaskStart:
		return instance.WorkloadName(v.ContainerID)
	case *events.TaskDelete:
		return instance.WorkloadName(v.ContainerID)
	}
	return ""
}
