package workload

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/image"
	"capsule/internal/volume"
)

// Volumes lends volumes to workloads.
type Volumes interface {
	// Claim gives a workload the volumes of its mounts, all or none, without
	// mounting any. A *volume.HeldError says what it has to wait for.
	Claim(ctx context.Context, c volume.Claimant, mounts []*v1.Mount) error
	// Mount claims them and makes them ready.
	Mount(ctx context.Context, c volume.Claimant, mounts []*v1.Mount, img image.Image) ([]volume.Mounted, error)
	// Release takes all but those in keep away from a workload. None of its
	// instances that mounts one may run.
	Release(ctx context.Context, workload string, keep []string) error
}

// mountMax bounds the mounting of a workload's volumes: a first mount copies
// what the image has, and one after a crash may check a whole file system.
const mountMax = 30 * time.Minute

func claimant(obj *v1.Object) volume.Claimant {
	return volume.Claimant{Workload: obj.GetMeta().GetName(), VM: obj.GetMeta().GetKind() == manifest.KindMicroVM}
}

func mountsOf(obj *v1.Object) []*v1.Mount { return obj.GetWorkload().GetSpec().GetMounts() }

// next decides, and has the workload hold the volumes that the step needs. When
// it can't have them, it decides anew.
func (l *Loop) next(ctx context.Context, m *memory, w world) (decision, error) {
	for {
		d := decide(w)
		held, err := l.claim(ctx, m, d, w)
		switch {
		case err != nil || held == "":
			return d, err
		case d.Volumes == ofServed:
			w.OldHeld = true
		default:
			w.Held = held
		}
	}
}

// claim gives a workload the volumes for a step, or says what it has to wait
// for.
func (l *Loop) claim(ctx context.Context, m *memory, d decision, w world) (held string, err error) {
	if d.Volumes == ofNone {
		return "", nil
	}
	before, err := l.served.get(w.Object.Meta)
	if err != nil {
		return "", err
	}
	who, mounts := claims(d.Volumes, w.Object, before, w.Seen)
	if len(mounts) == 0 {
		return "", nil
	}
	m.kept = nil
	err = l.opts.Volumes.Claim(ctx, who, mounts)
	if wait := (*volume.HeldError)(nil); errors.As(err, &wait) {
		return wait.Error(), nil
	}
	if errdefs.IsUnavailable(err) { // the capsule starts
		return plain(err, w.Object.Meta.Name), nil
	}
	return "", err
}

// claims are what a step has to be sure of. While an older generation runs, its
// volumes stay as exclusive as it has them.
func claims(of volumesOf, obj, before *v1.Object, found []seen) (volume.Claimant, []*v1.Mount) {
	if of == ofServed {
		return claimant(before), mountsOf(before)
	}
	who, mounts := claimant(obj), mountsOf(obj)
	if before == nil || !runs(found, before.Meta) {
		return who, mounts
	}
	wanted := names(mounts)
	for _, m := range mountsOf(before) {
		if slices.Contains(wanted, m.Volume) {
			mounts = append(slices.Clip(mounts), m)
			who.VM = who.VM || claimant(before).VM
		}
	}
	return who, mounts
}

// runs tells that an instance of the object runs.
func runs(found []seen, meta *v1.Meta) bool {
	return slices.ContainsFunc(found, func(s seen) bool {
		return s.State == Running && s.UID == meta.Uid && s.Generation == meta.Generation
	})
}

// names of the volumes of mounts, each once, sorted.
func names(mounts []*v1.Mount) []string {
	var list []string
	for _, m := range mounts {
		list = append(list, m.GetVolume())
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// mount makes the volumes of an object ready for a start. The limit is its own:
// it may take far longer than a driver's step.
func (l *Loop) mount(ctx context.Context, obj *v1.Object, m *memory, img image.Image) ([]Mount, error) {
	if len(mountsOf(obj)) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, mountMax)
	defer cancel()
	m.kept = nil
	m.freed.Store(false)
	mounted, err := l.opts.Volumes.Mount(ctx, claimant(obj), mountsOf(obj), img)
	if err != nil {
		return nil, err
	}
	var mounts []Mount
	for _, v := range mounted {
		mounts = append(mounts, Mount{Volume: v.Volume, Source: v.Source, Folder: v.Folder, Path: v.Path, ReadOnly: v.ReadOnly})
	}
	return inOrder(mounts), nil
}

// planned are an object's mounts before there is anything to show in them.
func planned(obj *v1.Object) []Mount {
	var mounts []Mount
	for _, m := range mountsOf(obj) {
		mounts = append(mounts, Mount{Volume: m.GetVolume(), Path: m.GetPath(), ReadOnly: m.GetReadOnly()})
	}
	return inOrder(mounts)
}

// inOrder sorts mounts so that a folder comes before those in it.
func inOrder(mounts []Mount) []Mount {
	slices.SortFunc(mounts, func(a, b Mount) int { return strings.Compare(path.Clean(a.Path), path.Clean(b.Path)) })
	return mounts
}

// release gives back the volumes that a workload at rest needs no more.
func (l *Loop) release(ctx context.Context, obj *v1.Object, m *memory, d decision, found []seen) error {
	standing, err := StandingNow(l.opts.Store, obj.Meta)
	if err != nil {
		return err
	}
	keep, known := keeps(d.Status, obj, standing, found)
	if !known || m.kept != nil && slices.Equal(m.kept, keep) {
		return nil
	}
	err = l.opts.Volumes.Release(ctx, obj.Meta.Name, keep)
	if errdefs.IsUnavailable(err) { // the capsule starts; the next pass does it
		return nil
	}
	if err == nil {
		m.kept = keep
	}
	return err
}

// releaseAll gives back all volumes of a workload that is to be gone. What is kept
// of volumes may be not to be had for long; that holds up only who has some.
func (l *Loop) releaseAll(ctx context.Context, name string, some bool) error {
	err := l.opts.Volumes.Release(ctx, name, nil)
	if errdefs.IsUnavailable(err) && !some {
		return nil // claims of workloads that are gone go when volumes are recovered
	}
	return err
}

// keeps are the volumes that a workload at rest goes on holding: none when it is
// stopped or has ended for good, else those that it wants, unless it waits for
// one, and those of the generations that serve, or are kept to serve again. They
// are not known while something runs whose volumes are not.
func keeps(status *v1.WorkloadStatus, obj *v1.Object, standing []*v1.Object, found []seen) (keep []string, known bool) {
	var kept []*v1.Mount
	for _, s := range found {
		of := slices.IndexFunc(standing, func(o *v1.Object) bool { return s.UID == o.Meta.Uid && s.Generation == o.Meta.Generation })
		ofWanted := s.UID == obj.Meta.Uid && s.Generation == obj.Meta.Generation
		if s.State == Running && of < 0 && !ofWanted {
			return nil, false
		}
		if of >= 0 {
			kept = append(kept, mountsOf(standing[of])...)
		}
	}
	keep = []string{}
	if status.Phase == v1.Phase_PHASE_STOPPED || status.Phase == v1.Phase_PHASE_EXITED {
		return keep, true
	}
	var mounts []*v1.Mount
	if waits := heldByVolume(status) && status.NextStartAt == nil; !waits {
		mounts = append(mounts, mountsOf(obj)...)
	}
	return append(keep, names(append(mounts, kept...))...), true
}

// Freed has the workloads looked at that mount a volume, or any when the name is
// "": it may be to be had now, or be whole again.
func (l *Loop) Freed(name string) {
	// Who calls may be within a transaction of the store.
	go func() {
		objs, err := l.opts.Store.List("")
		if err != nil {
			slog.Error("list workloads that wait for a volume", "volume", name, "error", err)
			return // the full pass goes on
		}
		for _, obj := range objs {
			if obj.GetWorkload() != nil && l.mounts(obj, name) {
				l.remember(obj.Meta.Name).freed.Store(true)
				l.Wake(obj.Meta.Name)
			}
		}
	}()
}

// mounts tells whether a generation of a workload that is, or was, to run mounts
// a volume, or any when the name is "".
func (l *Loop) mounts(obj *v1.Object, name string) bool {
	standing, err := StandingNow(l.opts.Store, obj.Meta)
	if err != nil {
		return true // to be on the safe side
	}
	return slices.ContainsFunc(append(standing, obj), func(o *v1.Object) bool {
		return slices.ContainsFunc(mountsOf(o), func(m *v1.Mount) bool { return name == "" || m.GetVolume() == name })
	})
}

// Freeze holds the writes of a workload to its volumes, as a Driver does. One
// that does not run writes nothing.
func (l *Loop) Freeze(ctx context.Context, name string, limit time.Duration) (thaw func(), err error) {
	id, driver, err := l.Running(ctx, name)
	if errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) {
		return func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	return driver.Freeze(ctx, id, limit)
}

// Grown has a workload use all of a volume that has become sizeBytes large. One
// that does not run does so when it starts.
func (l *Loop) Grown(ctx context.Context, name, volume string, sizeBytes int64) error {
	id, driver, err := l.Running(ctx, name)
	if errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) {
		return nil
	}
	if err != nil {
		return err
	}
	obj, err := l.generation(name, id)
	if err != nil {
		return err
	}
	for _, m := range mountsOf(obj) {
		if m.GetVolume() == volume {
			return driver.Grown(ctx, id, m.GetPath(), sizeBytes)
		}
	}
	return nil
}

// generation gives the object that an instance was made of: the wanted one, or
// the one that serves.
func (l *Loop) generation(name string, id ID) (*v1.Object, error) {
	obj, err := l.opts.Store.Get("", name)
	if err != nil || obj.Meta.Generation == id.Generation {
		return obj, err
	}
	before, err := l.served.get(obj.Meta)
	if err == nil && before.GetMeta().GetGeneration() != id.Generation {
		err = fmt.Errorf("workload %q: nothing is known of generation %d, which runs: %w", name, id.Generation, errdefs.ErrNotFound)
	}
	return before, err
}

// Hold has a workload stopped because of a volume, soon. It is started again as
// after a failure; its policy "never" holds.
func (l *Loop) Hold(_ context.Context, name, reason string) error {
	if _, err := l.opts.Store.Get("", name); err != nil {
		return err
	}
	l.remember(name).halt(reason)
	l.Wake(name)
	return nil
}

// halt notes why what runs is to be stopped.
func (m *memory) halt(reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.halting = reason
}

// toHalt gives that reason. When nothing runs, it is settled.
func (m *memory) toHalt(found []seen) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.ContainsFunc(found, func(s seen) bool { return s.State == Running }) {
		m.halting = ""
	}
	return m.halting
}

// halted writes down that an end was ours, because of a volume: it is started
// again after a while, whatever its exit code was.
func (l *Loop) halted(ctx context.Context, obj *v1.Object, m *memory, d decision) error {
	m.halt("")
	if d.Step.ID.Generation != obj.Meta.Generation {
		m.oldFailures++
		m.oldRetry = time.Now().Add(delay(retryMin, m.oldFailures))
		return nil
	}
	status, err := l.endedByUs(ctx, obj, d.Step.ID)
	if err != nil || status == nil {
		return err
	}
	m.freed.Store(false) // what was freed before says nothing of why it ended
	status = heldUp(status, d.Status.Message, false, time.Now())
	if obj.GetWorkload().GetSpec().GetRestart() == restartNever {
		status.Phase, status.NextStartAt = v1.Phase_PHASE_EXITED, nil
	}
	return l.save(obj, m, status)
}
