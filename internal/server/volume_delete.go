package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/store"
)

// Limits of deleting a volume.
const (
	releaseLimit = 2 * time.Minute // until workloads have let go that were told to stop
	removeLimit  = 2 * time.Minute // until nothing is left of the volume
	releaseLook  = 2 * time.Second // between two looks while no object changes: who has a volume is in none
)

// Delete answers when the volume is gone, or says that it takes longer.
func (s *volumes) Delete(ctx context.Context, req *capsulev1.VolumeServiceDeleteRequest) (*capsulev1.VolumeServiceDeleteResponse, error) {
	st, err := s.state()
	if err != nil {
		return nil, err
	}
	name := req.GetName()
	obj, err := st.Get(manifest.KindVolume, name)
	if err != nil {
		return nil, err
	}
	var stopped []string
	err = s.deleteVolume(ctx, st, name)
	if req.GetForce() && errors.As(err, new(*inUseError)) {
		stopped, err = s.stopAndDelete(ctx, st, name)
	}
	if err != nil {
		return nil, err
	}
	return &capsulev1.VolumeServiceDeleteResponse{Stopped: stopped}, removed(ctx, st, obj)
}

// deleteVolume asks for the end of a volume that no workload uses.
func (o *Options) deleteVolume(ctx context.Context, st *store.Store, name string) error {
	m, err := o.manager(ctx)
	if err != nil {
		return err
	}
	err = st.DeleteIf(manifest.KindVolume, name, func(tx store.View) error {
		users, err := o.volumeUsers(tx, name)
		if err == nil && len(users) > 0 {
			err = &inUseError{volume: name, users: users}
		}
		return err
	})
	if err == nil {
		m.Wake(name)
	}
	return err
}

// inUseError: a volume is not deleted under a workload.
type inUseError struct {
	volume string
	users  []string
}

func (e *inUseError) Error() string {
	return fmt.Sprintf("volume %q is in use by %s: stop that first, or delete with --force, which does", e.volume, named(e.users))
}

func (e *inUseError) Unwrap() error { return errdefs.ErrFailedPrecondition }

// named is `workload "a"`, or `workloads "a", "b"`.
func named(workloads []string) string {
	quoted := make([]string, 0, len(workloads))
	for _, name := range workloads {
		quoted = append(quoted, fmt.Sprintf("%q", name))
	}
	word := "workload "
	if len(quoted) > 1 {
		word = "workloads "
	}
	return word + strings.Join(quoted, ", ")
}

// volumeUsers are the workloads that have a volume mounted, and those that would
// mount it at their next start: they wait for it, or fail meanwhile.
func (o *Options) volumeUsers(in interface {
	List(kind string) ([]*capsulev1.Object, error)
}, volume string) ([]string, error) {
	objs, err := in.List("")
	if err != nil {
		return nil, err
	}
	users := o.Volumes.Holders(volume)
	for _, obj := range objs {
		if wants(obj, volume) {
			users = append(users, obj.GetMeta().GetName())
		}
	}
	slices.Sort(users)
	return slices.Compact(users), nil
}

// wants tells a workload that is meant to run, and mounts a volume.
func wants(o *capsulev1.Object, volume string) bool {
	w := o.GetWorkload()
	exited := w.GetStatus().GetPhase() == capsulev1.Phase_PHASE_EXITED && w.GetStatus().GetGeneration() == o.GetMeta().GetGeneration()
	if o.GetMeta().GetDeletedAt() != nil || w.GetIntent().GetStopped() || exited {
		return false
	}
	return slices.ContainsFunc(w.GetSpec().GetMounts(), func(m *capsulev1.Mount) bool { return m.GetVolume() == volume })
}

// stopAndDelete stops whoever uses a volume, and deletes it when they have let
// go. It gives the names of those that it stopped.
func (s *volumes) stopAndDelete(ctx context.Context, st *store.Store, name string) (stopped []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, releaseLimit)
	defer cancel()
	changes, err := st.Watch(ctx, "", "")
	if err != nil {
		return nil, err
	}
	var used *inUseError
	for synced := false; ; {
		if synced {
			if err := s.deleteVolume(ctx, st, name); !errors.As(err, &used) {
				return stopped, err
			}
			now, err := s.stopAll(used.users)
			if stopped = append(stopped, now...); err != nil {
				return nil, err
			}
		}
		select {
		case c, ok := <-changes:
			if !ok {
				return nil, s.notReleased(ctx, used, stopped)
			}
			synced = synced || c.Synced
		case <-time.After(releaseLook):
		}
	}
}

// stopAll stops workloads as an operator does, but those that are stopped, on
// their way out or gone already.
func (s *volumes) stopAll(names []string) (stopped []string, err error) {
	for _, name := range names {
		_, changed, err := s.stop(name)
		switch {
		case errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err): // it is on its way out
		case err != nil:
			return stopped, err
		case changed:
			stopped = append(stopped, name)
		}
	}
	return stopped, nil
}

// notReleased is why the wait for workloads ended without success.
func (s *volumes) notReleased(ctx context.Context, used *inUseError, stopped []string) error {
	switch err := ctx.Err(); {
	case errors.Is(err, context.Canceled):
		return err
	case err == nil || used == nil:
		return fmt.Errorf("the capsule stops or is overloaded; try again: %w", errdefs.ErrUnavailable)
	}
	told := ""
	if len(stopped) > 0 {
		told = "; stopped for it: " + named(stopped)
	}
	return fmt.Errorf("volume %q is not deleted: %s did not let go of it within %v%s: %w",
		used.volume, named(used.users), releaseLimit, told, errdefs.ErrUnavailable)
}

// removed waits until nothing is left of an object that is being deleted.
func removed(ctx context.Context, st *store.Store, obj *capsulev1.Object) error {
	ctx, cancel := context.WithTimeout(ctx, removeLimit)
	defer cancel()
	changes, err := st.Watch(ctx, obj.GetMeta().GetKind(), obj.GetMeta().GetName())
	if err != nil {
		return err
	}
	last, here := obj, false
	for c := range changes {
		same := c.Object.GetMeta().GetUid() == obj.GetMeta().GetUid()
		if same && c.Deleted || c.Synced && !here {
			return nil
		}
		if same {
			last, here = c.Object, true
		}
	}
	if err := ctx.Err(); errors.Is(err, context.Canceled) {
		return err
	}
	why := last.GetVolume().GetStatus().GetMessage()
	if why != "" {
		why = ": " + why
	}
	return fmt.Errorf("volume %q is being deleted, which takes longer than %v%s: %w", obj.GetMeta().GetName(), removeLimit, why, errdefs.ErrUnavailable)
}
