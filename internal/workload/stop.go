package workload

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
)

// endMax is how long StopAll waits for steps that are under way.
const endMax = 5 * time.Second

// StopAll ends the loop and then stops every instance at once, each with its
// own signal and grace, for a shutdown. Intents stay: all are started again by
// the next boot. Nothing is started after it. ctx bounds it.
func (l *Loop) StopAll(ctx context.Context) error {
	l.mu.Lock()
	l.stopping = true
	cancel, done := l.cancel, l.done
	l.mu.Unlock()
	if done != nil {
		cancel()
		select {
		case <-done:
		case <-time.After(endMax): // a driver that hangs must not keep the others up
		case <-ctx.Done():
		}
	}
	running, err := l.allRunning(ctx)
	errs := []error{err}
	var mu sync.Mutex
	var stops sync.WaitGroup
	for _, s := range running {
		stops.Go(func() {
			if err := l.halt(ctx, s); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	stops.Wait()
	for _, s := range running {
		errs = append(errs, l.haltedByUs(ctx, s.ID))
	}
	return errors.Join(errs...)
}

func (l *Loop) allRunning(ctx context.Context) (running []seen, err error) {
	for kind, lister := range l.listers {
		all, listErr := lister.list(ctx, l.fresh.now())
		if listErr != nil {
			err = errors.Join(err, fmt.Errorf("list instances of kind %s: %w", kind, listErr))
		}
		for _, found := range all {
			for _, s := range found {
				if s.State == Running {
					running = append(running, s)
				}
			}
		}
	}
	return running, err
}

func (l *Loop) halt(ctx context.Context, s seen) error {
	signal, grace := signalDefault, graceDefault
	if obj, err := l.opts.Store.Get("", s.Name); err == nil {
		signal, grace = l.stopOf(ctx, obj, s.ID)
	}
	l.mark(s.Name, "stopping with the capsule")
	return l.opts.Drivers[s.Kind].Stop(ctx, s.ID, signal, grace)
}

// haltedByUs writes down that an end was ours: the next boot starts the
// workload at once, whatever its exit code was, unless its policy is never.
func (l *Loop) haltedByUs(ctx context.Context, id ID) error {
	obj, err := l.opts.Store.Get("", id.Name)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if obj.Meta.Uid != id.UID || obj.Meta.Generation != id.Generation {
		return nil // replaced: decide does not look at this end
	}
	status, err := l.endedByUs(ctx, obj, id)
	if err != nil || status == nil {
		return err
	}
	status.Phase, status.Reason, status.Message = v1.Phase_PHASE_BACK_OFF, reasonMachine, "stopped with the capsule"
	if obj.GetWorkload().GetSpec().GetRestart() == restartNever {
		status.Phase = v1.Phase_PHASE_EXITED
	}
	return l.opts.Store.PutStatus(id.UID, status)
}

// endedByUs is the status with an end in it that decide need not judge; nil when
// the instance has not ended.
func (l *Loop) endedByUs(ctx context.Context, obj *v1.Object, id ID) (*v1.WorkloadStatus, error) {
	found, err := l.observe(ctx, id.Name)
	if err != nil {
		return nil, err
	}
	for _, s := range found {
		if s.ID != id || s.State != Ended {
			continue
		}
		d := &decider{world: world{Object: obj}, status: fresh(obj)}
		d.recordEnd(s)
		d.status.RunningGeneration, d.status.NextStartAt = 0, nil
		return d.status, nil
	}
	return nil, nil
}
