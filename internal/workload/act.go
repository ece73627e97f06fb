package workload

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/image"
	"capsule/internal/secret"
	"capsule/internal/volume"
)

// Stop of an instance of which nothing is known any more.
const (
	signalDefault = 15 // SIGTERM
	graceDefault  = 10 * time.Second
)

// act does one step. What can't be made or started becomes the status and is
// tried again by decide; other errors are the queue's.
func (l *Loop) act(ctx context.Context, obj *v1.Object, m *memory, d decision) error {
	driver := l.opts.Drivers[d.Step.Kind]
	switch d.Step.Do {
	case stepPull:
		return l.outcome(ctx, obj, m, d, reasonImage, l.pull(ctx, obj, m, d.Status))
	case stepPrepare:
		return l.outcome(ctx, obj, m, d, reasonStart, l.prepare(ctx, obj, m))
	case stepStart:
		return l.outcome(ctx, obj, m, d, reasonStart, l.start(ctx, obj, m, d))
	case stepStartOld:
		return l.startOld(ctx, obj, m, d)
	case stepStop:
		signal, grace := l.stopOf(ctx, obj, d.Step.ID)
		why := d.Status.Message
		if d.Step.Heal {
			why = unhealthy(d.Status)
		}
		l.mark(obj.Meta.Name, fmt.Sprintf("stopping generation %d: %s", d.Step.ID.Generation, why))
		ctx, cancel := context.WithTimeout(ctx, grace+driver.StepMax())
		defer cancel()
		if err := driver.Stop(ctx, d.Step.ID, signal, grace); err != nil {
			return l.stuck(obj, m, d, err)
		}
		if d.Step.Halt {
			return l.halted(ctx, obj, m, d)
		}
		if d.Step.Heal {
			return l.healed(obj, m, d)
		}
		m.replaced = d.Step.ID.Generation != obj.Meta.Generation
	case stepRemove:
		ctx, cancel := context.WithTimeout(ctx, driver.StepMax())
		defer cancel()
		if err := driver.Remove(ctx, d.Step.ID); err != nil {
			return l.stuck(obj, m, d, err)
		}
		if d.Step.ID.UID != obj.Meta.Uid { // all that is in the log is of the one before
			return l.dropLog(obj.Meta.Name)
		}
	case stepForget:
		return l.drop(ctx, obj)
	case stepTrust:
		return l.trust(ctx, obj, d)
	case stepBack:
		return l.back(obj, m)
	}
	return nil
}

// outcome writes the failure of a step into the status.
func (l *Loop) outcome(ctx context.Context, obj *v1.Object, m *memory, d decision, reason string, err error) error {
	lacks := errors.As(err, new(*secret.HeldError)) // since it was looked: decide sees it, too
	if err == nil || ctx.Err() != nil || errors.Is(err, errAbandoned) || lacks {
		return nil //nolint:nilerr // a step that we cut short is no failure of the workload
	}
	if errdefs.IsUnavailable(err) && d.Step.Do != stepPull {
		return err // the runtime is away: that says nothing about the workload
	}
	if held := (*volume.HeldError)(nil); errors.As(err, &held) {
		return l.show(obj, m, heldUp(d.Status, meanwhile(held.Error(), d.Status), true, time.Now()))
	}
	if d.Step.Once {
		return l.show(obj, m, startFailed(d.Status, plain(err, obj.Meta.Name)))
	}
	permanent := errdefs.IsInvalidArgument(err) || errdefs.IsNotImplemented(err)
	if permanent && reason != reasonImage {
		reason = reasonConfig
	}
	// A start that fails takes the older generation down each time.
	slow := permanent || d.Step.Do == stepStart && m.replaced
	return l.show(obj, m, failed(d.Status, reason, sentence(err, obj.Meta.Name, d.Status), slow, time.Now()))
}

// show writes a status, and what is new in it into the workload's log.
func (l *Loop) show(obj *v1.Object, m *memory, status *v1.WorkloadStatus) error {
	if status.Message != obj.GetWorkload().GetStatus().GetMessage() {
		l.mark(obj.Meta.Name, status.Message)
	}
	return l.save(obj, m, status)
}

// stuck shows why a step that must come first does not succeed; the queue
// tries it again.
func (l *Loop) stuck(obj *v1.Object, m *memory, d decision, err error) error {
	d.Status.Message = plain(err, obj.Meta.Name)
	return errors.Join(err, l.save(obj, m, d.Status))
}

// errAbandoned: the step is of no use any more.
var errAbandoned = errors.New("abandoned for a newer generation")

func (l *Loop) pull(ctx context.Context, obj *v1.Object, m *memory, status *v1.WorkloadStatus) error {
	ctx, abandon := context.WithCancel(ctx)
	defer abandon()
	if !m.abandonable(obj.Meta, abandon) {
		return errAbandoned
	}
	defer m.abandonable(obj.Meta, nil)
	select {
	case l.pulls <- struct{}{}:
		defer func() { <-l.pulls }()
	case <-ctx.Done():
		return errAbandoned
	}
	ref := obj.GetWorkload().GetSpec().GetImage()
	_, err := l.opts.Images.Pull(ctx, ref, l.progress(obj, status, ref))
	if ctx.Err() != nil {
		return errAbandoned
	}
	return err // names the image
}

// abandonable says how to give up the pull for a generation; false when that
// is not the newest any more.
func (m *memory) abandonable(meta *v1.Meta, abandon context.CancelFunc) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.abandon = abandon
	return m.uid != meta.Uid || m.generation <= meta.Generation
}

// progress shows how far a pull is, now and then.
func (l *Loop) progress(obj *v1.Object, status *v1.WorkloadStatus, ref string) func(done, total int64) {
	last := time.Now()
	return func(done, total int64) {
		if total <= 0 || time.Since(last) < progressEvery {
			return
		}
		last = time.Now()
		status := proto.CloneOf(status)
		status.Message = fmt.Sprintf("pulling image %q: %d %% of %.1f MB", ref, done*100/total, float64(total)/1e6)
		_ = l.opts.Store.PutStatus(obj.Meta.Uid, status) // the next one may succeed
	}
}

func (l *Loop) prepare(ctx context.Context, obj *v1.Object, m *memory) error {
	driver := l.opts.Drivers[obj.Meta.Kind]
	ctx, cancel := context.WithTimeout(ctx, driver.StepMax())
	defer cancel()
	in, err := l.instance(ctx, obj, m, false)
	if err != nil {
		return err
	}
	if err := driver.Prepare(ctx, in); err != nil {
		return errors.Join(err, l.reconnectOld(ctx, obj, m))
	}
	return l.reconnectOld(ctx, obj, m)
}

func (l *Loop) start(ctx context.Context, obj *v1.Object, m *memory, d decision) error {
	if err := l.run(ctx, obj, m, l.opts.Drivers[obj.Meta.Kind]); err != nil {
		return err
	}
	m.oldFailures, m.oldRetry, m.replaced = 0, time.Time{}, false
	if d.Step.Again {
		d.Status.Restarts++
		if err := l.save(obj, m, d.Status); err != nil {
			return err
		}
	}
	return l.serves(ctx, obj)
}

// run mounts the volumes of an object and starts its instance.
func (l *Loop) run(ctx context.Context, obj *v1.Object, m *memory, driver Driver) error {
	resolving, resolved := context.WithTimeout(ctx, driver.StepMax())
	defer resolved()
	in, err := l.instance(resolving, obj, m, true)
	if err != nil {
		return err
	}
	if err := l.reveal(&in, obj); err != nil {
		return err
	}
	if in.Mounts, err = l.mount(ctx, obj, m, in.Image); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, driver.StepMax())
	defer cancel()
	if err := driver.Start(ctx, in); err != nil || modeOf(obj) != modeHost {
		return err
	}
	if err := l.opts.Network.Detach(ctx, obj.Meta.Name); err != nil {
		return fmt.Errorf("take workload %q off the bridge: %w", obj.Meta.Name, err)
	}
	return nil
}

// startOld starts the generation that served before again.
func (l *Loop) startOld(ctx context.Context, obj *v1.Object, m *memory, d decision) error {
	if time.Since(m.oldRetry) >= goodRun {
		m.oldFailures = 0
	}
	m.oldFailures++
	m.oldRetry = time.Now().Add(delay(retryMin, m.oldFailures))
	before, err := l.served.get(obj.Meta)
	if err != nil || before == nil {
		return err
	}
	err = l.run(ctx, before, m, l.opts.Drivers[d.Step.Kind])
	if errors.As(err, new(*volume.HeldError)) || errors.As(err, new(*secret.HeldError)) {
		l.mark(obj.Meta.Name, fmt.Sprintf("can't start generation %d again: %v", before.Meta.Generation, err))
		return nil // it is tried again
	}
	return err
}

// drop gives back what a deleted workload held, then forgets the object.
func (l *Loop) drop(ctx context.Context, obj *v1.Object) error {
	name := obj.Meta.Name
	if err := l.ports.set(ctx, name, nil); err != nil {
		return err
	}
	if err := l.opts.Network.Detach(ctx, name); err != nil {
		return fmt.Errorf("take workload %q off the network: %w", name, err)
	}
	if err := l.releaseAll(ctx, name, l.mounts(obj, "")); err != nil {
		return err
	}
	if err := errors.Join(l.served.drop(name), l.opts.Store.Bucket(historyTable).Delete(name)); err != nil {
		return err
	}
	if err := l.dropLog(name); err != nil {
		return err
	}
	l.forget(name)
	return l.opts.Store.Remove(obj.Meta.Uid)
}

// dropLog removes the log of a deleted workload.
func (l *Loop) dropLog(name string) error {
	if err := l.opts.DropLog(l.opts.LogDir(name)); err != nil {
		return fmt.Errorf("delete workload %q: %w", name, err)
	}
	return nil
}

// instance resolves an object to what a driver needs, with its network made.
// One that is prepared starts even when its image is gone from the cache.
func (l *Loop) instance(ctx context.Context, obj *v1.Object, m *memory, prepared bool) (Instance, error) {
	spec := obj.GetWorkload().GetSpec()
	img, err := l.opts.Images.Get(ctx, spec.GetImage())
	gone := prepared && errdefs.IsNotFound(err)
	if err != nil && !gone {
		return Instance{}, fmt.Errorf("image %q: %w", spec.GetImage(), err)
	}
	args, env, cwd, user, _, _, err := image.Process(img.Config, spec)
	if err != nil && !gone {
		return Instance{}, fmt.Errorf("workload %q: %w", obj.Meta.Name, err)
	}
	if err := l.attach(ctx, obj, m); err != nil {
		return Instance{}, err
	}
	m.warnings = append([]string{}, img.Warnings...)
	if spec.GetRollback() && spec.GetHealth() == nil && img.Health == nil && !gone {
		m.warnings = append(m.warnings, noCheck)
	}
	return Instance{
		ID:    ID{Name: obj.Meta.Name, UID: obj.Meta.Uid, Generation: obj.Meta.Generation},
		Image: img, Args: args, Env: env, Cwd: cwd, User: user,
		Resources: resourcesOf(spec.GetResources()),
		Network:   networkOf(obj, m.attachment),
		Mounts:    planned(obj),
		Files:     files(obj),
		LogDir:    l.opts.LogDir(obj.Meta.Name),
	}, nil
}

func resourcesOf(r *v1.Resources) Resources {
	return Resources{
		MemoryBytes: r.GetMemory(), CPUMillis: r.GetCpus(), PIDs: r.GetPids(), DiskBytes: r.GetDisk(),
		IO: IO{
			ReadBytes: r.GetIo().GetRead(), WriteBytes: r.GetIo().GetWrite(),
			ReadOperations: r.GetIo().GetReadOperations(), WriteOperations: r.GetIo().GetWriteOperations(),
		},
	}
}

// stopOf is the signal and the grace of an instance: those that it was started
// with, else those of what is declared now.
func (l *Loop) stopOf(ctx context.Context, obj *v1.Object, id ID) (signal int, grace time.Duration) {
	before, err := l.served.get(obj.Meta)
	if err != nil || before.GetMeta().GetGeneration() != id.Generation {
		return l.stopSpec(ctx, obj.GetWorkload().GetSpec())
	}
	spec := before.GetWorkload().GetSpec()
	if signal, err = strconv.Atoi(spec.GetStopSignal()); err != nil {
		return l.stopSpec(ctx, spec)
	}
	return signal, spec.GetStopGrace().AsDuration()
}

// stopSpec resolves the signal and the grace of a spec.
func (l *Loop) stopSpec(ctx context.Context, spec *v1.WorkloadSpec) (signal int, grace time.Duration) {
	signal, grace = signalDefault, graceDefault
	if g := spec.GetStopGrace(); g != nil {
		grace = g.AsDuration()
	}
	if img, err := l.opts.Images.Get(ctx, spec.GetImage()); err == nil {
		if _, _, _, _, s, g, err := image.Process(img.Config, spec); err == nil {
			signal, grace = s, g
		}
	}
	return signal, min(max(grace, 0), GraceMax)
}

// serves keeps what was started, with its signal, grace and check resolved: they
// hold also when its image is gone, or another has its name.
func (l *Loop) serves(ctx context.Context, obj *v1.Object) error {
	before, err := l.served.get(obj.Meta)
	if err != nil || before.GetMeta().GetGeneration() == obj.Meta.Generation {
		return err
	}
	obj = l.resolved(ctx, obj)
	return l.served.put(obj, !rollsBack(obj.GetWorkload().GetSpec()))
}

// resolved is a copy of an object with its signal, grace and check as they are now.
func (l *Loop) resolved(ctx context.Context, obj *v1.Object) *v1.Object {
	signal, grace := l.stopSpec(ctx, obj.GetWorkload().GetSpec())
	check := l.checkSpec(ctx, obj.GetWorkload().GetSpec())
	obj = proto.CloneOf(obj)
	spec := obj.GetWorkload().GetSpec()
	spec.Health = check
	spec.StopSignal, spec.StopGrace = strconv.Itoa(signal), durationpb.New(grace)
	return obj
}
