package server

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/timestamppb"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/logs"
	"capsule/internal/store"
	"capsule/internal/workload"
)

// Runtime is what of the loop the API needs; the container and the microVM
// drivers stand behind it.
type Runtime interface {
	// Running finds the instance of a workload that runs now.
	Running(ctx context.Context, name string) (workload.ID, workload.Driver, error)
	// AllRunning gives what runs now by name; beside an error, a part of it.
	AllRunning(ctx context.Context) (map[string]workload.RunningInstance, error)
	// Wake has a workload looked at now.
	Wake(name string)
}

type workloads struct {
	capsulev1.UnimplementedWorkloadServiceServer
	Options
}

// mutate changes the intent of a workload and wakes the loop.
func (o *Options) mutate(name, event string, fn func(*capsulev1.Object) error) (*capsulev1.Object, error) {
	st, err := o.state()
	if err != nil {
		return nil, err
	}
	obj, err := st.Mutate(name, event, fn)
	if err != nil {
		return nil, err
	}
	o.wake(name)
	return obj, nil
}

// intent of a workload, made when it has none.
func intent(o *capsulev1.Object) *capsulev1.Intent {
	w := o.GetWorkload()
	if w.Intent == nil {
		w.Intent = &capsulev1.Intent{}
	}
	return w.Intent
}

// under way are the phases in which a start has nothing to hurry.
func underWay(p capsulev1.Phase) bool {
	switch p {
	case capsulev1.Phase_PHASE_PENDING, capsulev1.Phase_PHASE_PULLING, capsulev1.Phase_PHASE_STARTING, capsulev1.Phase_PHASE_RUNNING:
		return true
	}
	return false
}

func (s *workloads) Start(_ context.Context, req *capsulev1.StartRequest) (*capsulev1.StartResponse, error) {
	obj, err := s.mutate(req.GetName(), "started", func(o *capsulev1.Object) error {
		if i := intent(o); i.Stopped {
			i.Stopped = false
			return nil
		}
		if underWay(o.GetWorkload().GetStatus().GetPhase()) {
			return store.ErrUnchanged
		}
		return nil // a new generation waits for no back-off
	})
	if err != nil {
		return nil, err
	}
	return &capsulev1.StartResponse{Object: obj}, nil
}

func (s *workloads) Stop(_ context.Context, req *capsulev1.StopRequest) (*capsulev1.StopResponse, error) {
	obj, _, err := s.stop(req.GetName())
	if err != nil {
		return nil, err
	}
	return &capsulev1.StopResponse{Object: obj}, nil
}

// stop tells whether the workload was not stopped already.
func (o *Options) stop(name string) (obj *capsulev1.Object, changed bool, err error) {
	obj, err = o.mutate(name, "stopped", func(obj *capsulev1.Object) error {
		i := intent(obj)
		if i.Stopped {
			return store.ErrUnchanged
		}
		i.Stopped, changed = true, true
		return nil
	})
	return obj, changed && err == nil, err
}

// Restart of a stopped workload starts it.
func (s *workloads) Restart(_ context.Context, req *capsulev1.RestartRequest) (*capsulev1.RestartResponse, error) {
	obj, err := s.mutate(req.GetName(), "restarted", func(o *capsulev1.Object) error {
		intent(o).Stopped = false
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &capsulev1.RestartResponse{Object: obj}, nil
}

// running finds the instance that a stream goes to.
func (s *workloads) running(ctx context.Context, name string) (workload.ID, workload.Driver, error) {
	st, err := s.state()
	if err != nil {
		return workload.ID{}, nil, err
	}
	if _, err := st.Get("", name); err != nil {
		return workload.ID{}, nil, err
	}
	if s.Runtime == nil {
		return workload.ID{}, nil, fmt.Errorf("workloads do not run now: %w", errdefs.ErrFailedPrecondition)
	}
	return s.Runtime.Running(ctx, name)
}

// Logs go on through restarts, and end when the workload is deleted.
func (s *workloads) Logs(req *capsulev1.LogsRequest, out capsulev1.WorkloadService_LogsServer) error {
	st, err := s.state()
	if err != nil {
		return err
	}
	obj, err := st.Get("", req.GetName())
	if err != nil {
		return err
	}
	dir := s.LogDir(req.GetName())
	if req.GetSerial() {
		if dir, err = serialLog(obj, dir); err != nil {
			return err
		}
	}
	var since time.Time
	if req.GetSince() != nil {
		if err := req.GetSince().CheckValid(); err != nil {
			return fmt.Errorf("since: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		since = req.GetSince().AsTime()
	}
	ctx, cancel := context.WithCancel(out.Context())
	defer cancel()
	if req.GetFollow() {
		if err := onDelete(ctx, st, obj, cancel); err != nil {
			return err
		}
		// Whoever follows hears that it is let in, though nothing may be printed for days.
		if err := out.SendHeader(nil); err != nil {
			return err
		}
	}
	o := logs.Options{Follow: req.GetFollow(), Tail: req.GetTail(), Since: since}
	err = logs.Follow(ctx, dir, o, func(r logs.Record) error {
		return out.Send(&capsulev1.LogsResponse{
			Time: timestamppb.New(r.Time), Stream: capsulev1.Stream(r.Stream), Data: r.Data, Partial: r.Partial,
		})
	})
	if out.Context().Err() != nil {
		return out.Context().Err()
	}
	// Deleted while it was followed, or never started: all there is has been told.
	if ctx.Err() != nil || errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// serialLog is the folder of what a microVM's serial console says, in the
// workload's log at dir.
func serialLog(obj *capsulev1.Object, dir string) (string, error) {
	if kind := obj.GetMeta().GetKind(); kind != manifest.KindMicroVM {
		return "", fmt.Errorf("workload %q is a %s: only a MicroVM has a serial console; leave --serial out: %w",
			obj.GetMeta().GetName(), kind, errdefs.ErrFailedPrecondition)
	}
	// Whoever follows waits for the serial log in a folder that is there.
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", fmt.Errorf("make log: %w", err)
	}
	return logs.Serial(dir), nil
}

// onDelete calls done once the object is gone, or another has its name.
func onDelete(ctx context.Context, st *store.Store, obj *capsulev1.Object, done func()) error {
	changes, err := st.Watch(ctx, "", obj.GetMeta().GetName())
	if err != nil {
		return err
	}
	go func() {
		defer done()
		for c := range changes {
			// A volume may have the same name.
			if c.Object.GetWorkload() != nil && (c.Deleted || c.Object.GetMeta().GetUid() != obj.GetMeta().GetUid()) {
				return
			}
		}
	}()
	return nil
}
