package workload

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/health"
	"capsule/internal/image"
	"capsule/internal/network"
	"capsule/internal/reconcile"
	"capsule/internal/store"
)

// Images is the image cache as workloads need it.
type Images interface {
	// Get gives an image of the cache, errdefs.NotFound when it is not there.
	Get(ctx context.Context, ref string) (image.Image, error)
	Pull(ctx context.Context, ref string, progress func(done, total int64)) (image.Image, error)
}

// Networks gives workloads their place in the network.
type Networks interface {
	Attach(ctx context.Context, name string, denyLAN bool) (network.Attachment, error)
	AttachNone(name string) (network.Attachment, error)
	HostAttachment() network.Attachment
	Detach(ctx context.Context, name string) error
	// SetStopped says whether the workload's name has no address now.
	SetStopped(name string, stopped bool) error
	Publish(ctx context.Context, ports []network.Published) error
	// Sync removes what is left of workloads other than those named.
	Sync(ctx context.Context, names []string) error
}

// LoopOptions are the parts that a loop brings together; all are needed.
type LoopOptions struct {
	Store   *store.Store
	Images  Images
	Network Networks
	Volumes Volumes
	Secrets Secrets
	Drivers map[string]Driver // by kind
	LogDir  func(name string) string
	// Mark writes a line of the capsule into a workload's log: why something
	// is stopped or can't start. Drivers mark starts and ends themselves.
	Mark func(dir, text string) error
	// DropLog removes the log of a workload that was deleted: the next one of
	// its name starts with none, and old names don't fill the disk.
	DropLog func(dir string) error
	// Workers is how many workloads are worked on at a time, default 64: most
	// of them wait for a registry, a signal or a disk.
	Workers int
}

// Bounds of the loop.
const (
	workersDefault = 64
	pullsMax       = 3  // images fetched at a time
	stepsMax       = 64 // of one call, before other keys get their turn
	listMax        = 30 * time.Second
	progressEvery  = 2 * time.Second // a status written to disk each
	// unavailableAgain is between two tries to reach a runtime: each is cheap,
	// and workloads wait for it at boot.
	unavailableAgain = 250 * time.Millisecond
	eventsAgain      = time.Second // until a lost event stream is taken up again
)

// Loop makes workloads be as declared.
type Loop struct {
	opts    LoopOptions
	queue   *reconcile.Queue
	listers map[string]*lister
	served  *served
	ports   *ports
	pulls   chan struct{}
	prober  *health.Prober
	passed  atomic.Int64 // time.Duration of the last full pass
	fresh   *freshness

	mu       sync.Mutex
	memory   map[string]*memory
	stopping bool
	cancel   context.CancelFunc // of Run
	done     chan struct{}      // closed when Run has returned
}

// memory is what the loop knows of a workload beyond its object: all of it is
// found again after a restart. Only the call of its key touches it, but for
// abandon.
type memory struct {
	uid         string
	attached    bool
	attachment  network.Attachment
	warnings    []string
	told        told // events of late
	oldRetry    time.Time
	oldFailures uint32
	replaced    bool      // an older generation was stopped for the wanted one
	tried       uint64    // generation that has been started
	trying      time.Time // when this daemon first saw that run
	settled     result    // what is kept of the wanted generation's fate
	// kept are the volumes that were left to it when others were last released;
	// nil when it may hold more since.
	kept   []string
	freed  atomic.Bool // a volume of its may be better than when a start failed
	looked atomic.Bool // its status was written, or found right, by this daemon

	mu         sync.Mutex
	halting    string             // why it is to be stopped because of a volume
	generation uint64             // newest that was declared
	abandon    context.CancelFunc // of a pull that runs
	dependsOn  []string           // workloads whose changes it is to be woken by
}

// NewLoop makes a loop; Run makes it work.
func NewLoop(opts LoopOptions) *Loop {
	if opts.Workers <= 0 {
		opts.Workers = workersDefault
	}
	l := &Loop{
		opts:    opts,
		listers: map[string]*lister{},
		served:  &served{bucket: opts.Store.Bucket("served")},
		pulls:   make(chan struct{}, pullsMax),
		memory:  map[string]*memory{},
		fresh:   &freshness{since: map[string]uint64{}},
	}
	l.ports = &ports{publish: opts.Network.Publish, want: map[string][]network.Published{}}
	for kind, driver := range opts.Drivers {
		l.listers[kind] = &lister{kind: kind, driver: driver, now: l.fresh.now}
	}
	l.prober = health.NewProber(l.Wake)
	l.queue = reconcile.New(reconcile.Options{
		Workers: opts.Workers, BackoffMin: backoffMin, BackoffMax: backoffMax, Keys: l.keys,
		Passed: func(took time.Duration) { l.passed.Store(int64(took)) },
	}, l.reconcile)
	return l
}

// Wake has a workload looked at soon.
func (l *Loop) Wake(name string) {
	l.fresh.woken(name)
	l.queue.Wake(name)
}

// LastPass is how long the last look at all workloads took, with the steps that it led
// to; 0 before the end of the first.
func (l *Loop) LastPass() time.Duration { return time.Duration(l.passed.Load()) }

// Run works until ctx ends or StopAll is called.
func (l *Loop) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.mu.Lock()
	if l.stopping || l.done != nil {
		l.mu.Unlock()
		return fmt.Errorf("the workload loop runs once: %w", errdefs.ErrFailedPrecondition)
	}
	l.cancel, l.done = cancel, make(chan struct{})
	l.mu.Unlock()
	defer close(l.done)
	defer l.prober.Close()

	if err := l.expect(ctx); err != nil {
		return err
	}
	var side sync.WaitGroup
	defer side.Wait()
	for _, driver := range l.opts.Drivers {
		side.Go(func() { l.follow(ctx, driver) })
	}
	side.Go(func() { l.watch(ctx) })
	l.queue.Run(ctx)
	return nil
}

// expect holds published ports back until each workload was looked at once: the
// rules of a former daemon serve until then. What that left in the network of
// workloads that are declared no more goes.
func (l *Loop) expect(ctx context.Context) error {
	objs, err := l.opts.Store.List("")
	if err != nil {
		return fmt.Errorf("list workloads: %w", err)
	}
	var names []string
	for _, obj := range objs {
		if obj.GetWorkload() != nil {
			names = append(names, obj.Meta.Name)
		}
	}
	l.ports.expect(names)
	if err := l.opts.Network.Sync(ctx, names); err != nil {
		slog.Error("clear the network of former workloads", "error", err) // no reason to run none
	}
	return nil
}

// keys are all names that are declared or seen.
func (l *Loop) keys(ctx context.Context) []string {
	names := map[string]bool{}
	objs, err := l.opts.Store.List("")
	if err != nil {
		slog.Error("list workloads", "error", err)
	}
	for _, obj := range objs {
		if obj.GetWorkload() != nil {
			names[obj.Meta.Name] = true
		}
	}
	l.fresh.woken(slices.Collect(maps.Keys(names))...)
	since := l.fresh.now()
	ctx, cancel := context.WithTimeout(ctx, listMax)
	defer cancel()
	for kind, lister := range l.listers {
		all, err := lister.list(ctx, since)
		if err != nil {
			slog.Error("list instances", "kind", kind, "error", err)
		}
		for name := range all {
			names[name] = true
		}
	}
	keys := make([]string, 0, len(names))
	for name := range names {
		keys = append(keys, name)
	}
	return keys
}

// follow wakes workloads on the hints of a driver.
func (l *Loop) follow(ctx context.Context, driver Driver) {
	for ctx.Err() == nil {
		for name := range driver.Events(ctx) {
			if name == "" {
				l.wakeAll(ctx)
			} else {
				l.Wake(name)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(eventsAgain):
			l.wakeAll(ctx)
		}
	}
}

// wakeAll is for when something may have been missed.
func (l *Loop) wakeAll(ctx context.Context) {
	for _, name := range l.keys(ctx) {
		l.Wake(name)
	}
}

// watch wakes workloads whose declaration changed.
func (l *Loop) watch(ctx context.Context) {
	for ctx.Err() == nil {
		changes, err := l.opts.Store.Watch(ctx, "", "")
		if err != nil {
			slog.Error("watch workloads", "error", err)
			return // the full pass goes on
		}
		for c := range changes {
			if c.Object.GetSecret() != nil && !c.Deleted {
				l.SecretChanged(c.Object.Meta.Name)
			}
			if c.Object.GetWorkload() == nil {
				continue
			}
			if c.Deleted || l.declared(c.Object.Meta) {
				l.Wake(c.Object.Meta.Name)
			}
			l.wakeDependents(c.Object.Meta.Name)
		}
		select {
		case <-ctx.Done():
		case <-time.After(eventsAgain):
		}
	}
}

// declared notes the newest generation and tells whether it is news. A pull for
// an older one is given up: the operator may just have corrected its name.
func (l *Loop) declared(meta *v1.Meta) bool {
	m := l.remember(meta.Name)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.uid == meta.Uid && m.generation == meta.Generation {
		return false
	}
	m.uid, m.generation = meta.Uid, meta.Generation
	if m.abandon != nil {
		m.abandon()
	}
	return true
}

func (l *Loop) remember(name string) *memory {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.memory[name]
	if m == nil {
		m = &memory{}
		l.memory[name] = m
	}
	return m
}

func (l *Loop) forget(name string) {
	l.prober.Drop(name)
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.memory, name)
}

func (l *Loop) isStopping() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stopping
}

// reconcile takes steps for one workload until there is nothing to do.
func (l *Loop) reconcile(ctx context.Context, name string) (time.Duration, error) {
	for range stepsMax {
		if l.isStopping() || ctx.Err() != nil {
			return 0, nil //nolint:nilerr // the end that was asked for is no failure
		}
		after, more, err := l.once(ctx, name)
		l.fresh.acted(name)
		if err != nil || !more {
			return after, err
		}
	}
	return time.Millisecond, nil
}

// once observes, decides, shows and does one step.
func (l *Loop) once(ctx context.Context, name string) (after time.Duration, more bool, err error) {
	obj, err := l.opts.Store.Get("", name)
	if errdefs.IsNotFound(err) {
		more, err := l.orphan(ctx, name)
		return 0, more, err
	}
	if err != nil {
		return 0, false, err
	}
	seen, err := l.observeSince(ctx, name, l.fresh.take(name))
	if errdefs.IsUnavailable(err) {
		return unavailableAgain, false, nil // it starts beside us, or is started again
	}
	if err != nil {
		return 0, false, err
	}
	m := l.remember(name)
	w, err := l.world(ctx, obj, m, seen)
	if err != nil {
		return 0, false, err
	}
	d, err := l.next(ctx, m, w)
	if err != nil {
		return 0, false, err
	}
	if old := obj.GetWorkload().GetStatus(); d.Status.Phase == v1.Phase_PHASE_STOPPING && old.GetPhase() == d.Status.Phase && old.GetGeneration() == d.Status.Generation {
		d.Status.Message = old.Message // it may say what the last try was stuck on
	}
	networkErr := l.connect(ctx, obj, m, d, seen)
	l.watchHealth(ctx, obj, m, d, seen)
	if networkErr != nil && d.Status.Phase == v1.Phase_PHASE_RUNNING {
		d.Status.Message = "running, but: " + plain(networkErr, obj.Meta.Name)
	}
	if d.Step.Do == stepWait {
		// Whoever reads that it has stopped finds its volumes given back.
		err := l.release(ctx, obj, m, d, seen)
		return d.After, false, errors.Join(networkErr, err, l.save(obj, m, d.Status))
	}
	if err := l.save(obj, m, d.Status); err != nil {
		return 0, false, err
	}
	return 0, true, l.act(ctx, obj, m, d)
}

// orphan removes what is left of a workload that nothing declares.
func (l *Loop) orphan(ctx context.Context, name string) (more bool, err error) {
	seen, err := l.observeSince(ctx, name, l.fresh.take(name))
	if err != nil {
		return false, err
	}
	if len(seen) == 0 {
		l.forget(name)
		if err := l.ports.set(ctx, name, nil); err != nil {
			return false, err
		}
		return false, errors.Join(l.opts.Network.Detach(ctx, name), l.releaseAll(ctx, name, false))
	}
	s := seen[0]
	driver := l.opts.Drivers[s.Kind]
	if s.State == Running {
		return true, driver.Stop(ctx, s.ID, signalDefault, graceDefault)
	}
	return true, driver.Remove(ctx, s.ID)
}

// observe gives what there is now of a workload.
func (l *Loop) observe(ctx context.Context, name string) ([]seen, error) {
	return l.observeSince(ctx, name, l.fresh.now())
}

// observeSince gives what there was of it at a moment after since.
func (l *Loop) observeSince(ctx context.Context, name string, since uint64) ([]seen, error) {
	var found []seen
	for kind, lister := range l.listers {
		all, err := lister.list(ctx, since)
		if err != nil {
			return nil, fmt.Errorf("list instances of kind %s: %w", kind, err)
		}
		found = append(found, all[name]...)
	}
	return found, nil
}

// world gathers what decide looks at.
func (l *Loop) world(ctx context.Context, obj *v1.Object, m *memory, found []seen) (world, error) {
	before, err := l.served.get(obj.Meta)
	if err != nil {
		return world{}, err
	}
	healthy, err := l.served.healthy(obj.Meta)
	if err != nil {
		return world{}, err
	}
	_, available := l.opts.Drivers[obj.Meta.Kind]
	w := world{
		Object: obj, Seen: found, Available: available,
		Served: before.GetMeta().GetGeneration(), OldRetry: m.oldRetry, Now: time.Now(),
		Freed: m.freed.Load(), Halt: m.toHalt(found),
		Healthy: healthy.GetMeta().GetGeneration(), Trial: l.trial(ctx, obj, before, healthy, m, found),
	}
	if w.Freed {
		w.OldRetry = time.Time{}
	}
	w.Health = l.health(ctx, obj, before, found)
	if w.Waits, w.OldWaits, err = l.waits(obj, before, m); err != nil {
		return world{}, err
	}
	if err := l.lacking(&w, before); err != nil {
		return world{}, err
	}
	for _, s := range found {
		if s.UID == obj.Meta.Uid && s.Generation == obj.Meta.Generation {
			w.ImageLocal = true // it was prepared from it
			if s.State == Running && w.Served != s.Generation && !store.GivenUp(obj) {
				w.Served = s.Generation
				return w, l.serves(ctx, obj)
			}
			return w, nil
		}
	}
	if obj.Meta.DeletedAt != nil || obj.GetWorkload().GetIntent().GetStopped() {
		return w, nil
	}
	_, err = l.opts.Images.Get(ctx, obj.GetWorkload().GetSpec().GetImage())
	if err == nil {
		w.ImageLocal = true
	} else if !errdefs.IsNotFound(err) {
		slog.Warn("look for image", "workload", obj.Meta.Name, "error", err)
	}
	return w, nil
}

// save writes the status when it changed.
func (l *Loop) save(obj *v1.Object, m *memory, status *v1.WorkloadStatus) error {
	if m.attached {
		status.Addresses = nil
		for _, a := range m.attachment.Addresses {
			status.Addresses = append(status.Addresses, a.String())
		}
	}
	status.Warnings = warnings(status, m.warnings)
	old := obj.GetWorkload().GetStatus()
	if proto.Equal(old, status) {
		l.looked(obj.Meta.Name, m)
		return l.settle(obj, m, status)
	}
	if status.Emulated && !old.GetEmulated() {
		if err := l.opts.Store.Note(obj, "emulated", emulatedWarning); err != nil {
			return fmt.Errorf("write event of workload %q: %w", obj.Meta.Name, err)
		}
	}
	if m.told == nil {
		m.told = told{}
	}
	if err := l.opts.Store.PutStatus(obj.Meta.Uid, status, m.told.news(old, status, time.Now())...); err != nil {
		return fmt.Errorf("write status of workload %q: %w", obj.Meta.Name, err)
	}
	l.looked(obj.Meta.Name, m)
	return l.settle(obj, m, status)
}

// emulatedWarning stands in the status and in an event.
const emulatedWarning = "runs without hardware virtualization: slow"

// warnings of an image as they are known now, nil when they are not, and of
// what it runs on.
func warnings(status *v1.WorkloadStatus, image []string) []string {
	if image == nil {
		image = status.Warnings
	}
	list := slices.DeleteFunc(slices.Clone(image), func(w string) bool { return w == emulatedWarning })
	if status.Emulated {
		list = append(list, emulatedWarning)
	}
	return list
}

func (l *Loop) mark(name, text string) {
	if err := l.opts.Mark(l.opts.LogDir(name), text); err != nil {
		slog.Warn("mark log", "workload", name, "error", err)
	}
}

// Running gives the running instance of a workload and its driver, or an error
// that tells an unknown workload from one that does not run.
func (l *Loop) Running(ctx context.Context, name string) (ID, Driver, error) {
	obj, err := l.opts.Store.Get("", name)
	if err != nil {
		return ID{}, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, listMax)
	defer cancel()
	seen, err := l.observe(ctx, name)
	if err != nil {
		return ID{}, nil, err
	}
	for _, s := range seen {
		if s.UID == obj.Meta.Uid && s.State == Running {
			return s.ID, l.opts.Drivers[s.Kind], nil
		}
	}
	status := obj.GetWorkload().GetStatus()
	return ID{}, nil, fmt.Errorf("workload %q is not running: %s: %w", name, phaseText(status), errdefs.ErrFailedPrecondition)
}

// phaseText is "stopped (stopped by an operator)".
func phaseText(status *v1.WorkloadStatus) string {
	text := phaseWords[status.GetPhase()]
	if status.GetMessage() != "" {
		text += " (" + status.GetMessage() + ")"
	}
	return text
}

var phaseWords = map[v1.Phase]string{
	v1.Phase_PHASE_UNSPECIFIED: "pending",
	v1.Phase_PHASE_PENDING:     "pending",
	v1.Phase_PHASE_PULLING:     "pulling",
	v1.Phase_PHASE_STARTING:    "starting",
	v1.Phase_PHASE_RUNNING:     "running",
	v1.Phase_PHASE_BACK_OFF:    "back-off",
	v1.Phase_PHASE_STOPPING:    "stopping",
	v1.Phase_PHASE_STOPPED:     "stopped",
	v1.Phase_PHASE_EXITED:      "exited",
	v1.Phase_PHASE_FAILED:      "failed",
}
