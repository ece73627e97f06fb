package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

// settle is how long a workload must go on running to count as started: many
// broken ones end within their first second.
const settle = time.Second

// watchAgain is between tries to watch a capsule that does not answer.
const watchAgain = time.Second

// target is an object at the generation that is waited for.
type target struct {
	name, uid  string
	generation uint64
	kind       string // of others than workloads, which may have the same name
}

func targetOf(o *capsulev1.Object) target {
	m := o.GetMeta()
	t := target{name: m.GetName(), uid: m.GetUid(), generation: m.GetGeneration()}
	if o.GetWorkload() == nil {
		t.kind = m.GetKind()
	}
	return t
}

// what is the target in a sentence: `workload "web"`.
func (t target) what() string {
	switch t.kind {
	case manifest.KindVolume:
		return fmt.Sprintf("volume %q", t.name)
	case manifest.KindSecret:
		return fmt.Sprintf("secret %q", t.name)
	case manifest.KindCapsule:
		return "the configuration of the capsule"
	}
	return fmt.Sprintf("workload %q", t.name)
}

// goal tells of one state of an object whether the wait is over, and how.
type goal func(t target, o *capsulev1.Object, deleted bool) (done bool, err error)

// untilReady wants a workload to run, and a volume to be there for one.
func untilReady(t target, o *capsulev1.Object, deleted bool) (bool, error) {
	switch t.kind {
	case manifest.KindVolume:
		return untilMade(t, o, deleted)
	case manifest.KindSecret:
		return true, nil // it is kept
	case manifest.KindCapsule:
		return untilConfigured(t, o, deleted)
	}
	return untilRuns(t, o, deleted)
}

// untilMade wants a volume made, and of its full size.
func untilMade(t target, o *capsulev1.Object, deleted bool) (bool, error) {
	if deleted || o.GetMeta().GetDeletedAt() != nil || (t.uid != "" && o.GetMeta().GetUid() != t.uid) {
		return false, fmt.Errorf("volume %q was deleted meanwhile", t.name)
	}
	s := o.GetVolume().GetStatus()
	if s.GetGeneration() < t.generation {
		return false, nil
	}
	switch s.GetPhase() {
	case capsulev1.VolumePhase_VOLUME_PHASE_READY, capsulev1.VolumePhase_VOLUME_PHASE_IN_USE:
		return true, nil
	case capsulev1.VolumePhase_VOLUME_PHASE_FAILED:
		return false, &failure{exitFailed, fmt.Errorf("volume %q: %s", t.name, s.GetMessage()), fmt.Sprintf("it is tried again by itself; \"capsulectl volume get %s\" shows how it stands", t.name)}
	}
	return false, nil
}

// untilRuns wants the generation to run, and to be healthy when it has a check, or
// to have ended well when its policy asks for no more.
func untilRuns(t target, o *capsulev1.Object, deleted bool) (bool, error) {
	if deleted || o.GetMeta().GetDeletedAt() != nil || (t.uid != "" && o.GetMeta().GetUid() != t.uid) {
		return false, fmt.Errorf("workload %q was deleted meanwhile", t.name)
	}
	s := o.GetWorkload().GetStatus()
	if s.GetGeneration() < t.generation {
		return false, nil
	}
	switch s.GetPhase() {
	case capsulev1.Phase_PHASE_RUNNING:
		switch {
		case s.GetRunningGeneration() < t.generation, s.GetHealth() == capsulev1.HealthState_HEALTH_STATE_STARTING, s.GetOnTrial():
			return false, nil
		case s.GetHealth() == capsulev1.HealthState_HEALTH_STATE_UNHEALTHY:
			return false, failed(t, o)
		}
		return true, nil
	case capsulev1.Phase_PHASE_EXITED:
		if s.GetExitCode() == 0 {
			return true, nil
		}
		return false, failed(t, o)
	case capsulev1.Phase_PHASE_FAILED, capsulev1.Phase_PHASE_BACK_OFF:
		// It went down with the capsule, and comes up with it, or is yet to be gone
		// back from.
		if s.GetReason() == "machine" || s.GetOnTrial() {
			return false, nil
		}
		return false, failed(t, o)
	case capsulev1.Phase_PHASE_STOPPED:
		return false, &failure{exitFailed, fmt.Errorf("workload %q is stopped by an operator", t.name), fmt.Sprintf("capsulectl workload start %s", t.name)}
	}
	return false, nil
}

// untilStopped wants nothing to run any more.
func untilStopped(t target, o *capsulev1.Object, deleted bool) (bool, error) {
	s := o.GetWorkload().GetStatus()
	return deleted || (s.GetGeneration() >= t.generation && s.GetPhase() == capsulev1.Phase_PHASE_STOPPED), nil
}

// untilGone wants the object removed with all that belonged to it.
func untilGone(t target, o *capsulev1.Object, deleted bool) (bool, error) {
	return deleted || o.GetMeta().GetUid() != t.uid, nil
}

func failed(t target, o *capsulev1.Object) error {
	s := o.GetWorkload().GetStatus()
	text := s.GetMessage()
	if text == "" {
		text = phaseName(s.GetPhase())
	}
	hint := fmt.Sprintf("see what it printed with \"capsulectl workload logs %s\"", t.name)
	switch s.GetReason() {
	case "config":
		hint = "correct the manifest or the image, then apply it again"
	case "unhealthy":
		hint = fmt.Sprintf("\"capsulectl workload get %[1]s\" shows what its check said, \"capsulectl workload logs %[1]s\" what it printed", t.name)
	case "volume":
		hint = "\"capsulectl volume list\" shows how its volumes stand"
	case "image":
		hint = fmt.Sprintf("it is tried again by itself; \"capsulectl workload start %s\" tries at once", t.name)
	}
	if s.GetRolledBack() != "" {
		hint = fmt.Sprintf("correct the manifest, then apply it again; what it printed is in \"capsulectl workload logs %s\"", t.name)
	} else if r := s.GetRunningGeneration(); r != 0 && r < t.generation {
		hint = "what ran before goes on running; apply a corrected manifest"
	}
	return &failure{exitFailed, fmt.Errorf("workload %q: %s", t.name, text), hint}
}

// waiter follows objects until each has reached the goal. Its maps are by what().
type waiter struct {
	app  *app
	goal goal
	left map[string]target
	seen map[string]bool
	last map[string]string // what each was last seen to be
	line statusLine
	errs []error
	done []target // reached the goal
}

// wait follows the targets until they have reached a goal, up to a limit.
func (a *app) wait(ctx context.Context, limit time.Duration, targets []target, until goal) error {
	return a.newWaiter(targets, until).run(ctx, limit)
}

func (a *app) newWaiter(targets []target, until goal) *waiter {
	w := &waiter{app: a, goal: until, left: map[string]target{}, last: map[string]string{}, line: statusLine{ui: a.ui}}
	for _, t := range targets {
		w.left[t.what()] = t
	}
	return w
}

// run follows the targets over breaks of the connection.
func (w *waiter) run(ctx context.Context, limit time.Duration) error {
	outer := ctx
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	defer w.line.end()
	for len(w.left) > 0 {
		err := w.watch(ctx)
		switch {
		case len(w.left) == 0:
		case outer.Err() != nil:
			return outer.Err()
		case ctx.Err() != nil, grpcstatus.Code(err) == codes.DeadlineExceeded: // the capsule's timer may be the first
			return w.late(limit)
		case err != nil && grpcstatus.Code(err) != codes.Unavailable:
			return err
		default:
			pause(ctx, watchAgain)
		}
	}
	return errors.Join(w.errs...)
}

// waitReady waits until the targets are ready, and looks again after a moment at
// workloads that ran, also when others failed: all that fail are to be told.
func (a *app) waitReady(ctx context.Context, limit time.Duration, targets []target) error {
	w := a.newWaiter(targets, untilReady)
	errs := []error{w.run(ctx, limit)}
	if ctx.Err() != nil {
		return errs[0]
	}
	ran := slices.DeleteFunc(w.done, func(t target) bool { return t.kind != "" })
	if len(ran) > 0 {
		pause(ctx, settle)
	}
	for _, t := range ran {
		o, err := fetchObject(ctx, a, "", t.name)
		if err == nil {
			_, err = untilRuns(t, o, false)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// late ends a wait that took too long, and tells where each stands.
func (w *waiter) late(limit time.Duration) error {
	w.line.end()
	names := slices.Sorted(maps.Keys(w.left))
	for _, name := range names {
		if text := w.last[name]; text != "" {
			w.app.ui.note("%s", text)
		}
	}
	late := &failure{exitNotReady, fmt.Errorf("%s not ready %s", list(names), timeoutText(limit)), "it goes on by itself; \"capsulectl get\" shows where it stands"}
	return errors.Join(append(w.errs, late)...) // what failed is told first
}

func (w *waiter) watch(ctx context.Context) error {
	c, err := w.app.dial()
	if err != nil {
		return err
	}
	// One object is watched by name; of several all are.
	request := &capsulev1.WatchRequest{}
	for _, t := range w.left {
		if len(w.left) == 1 {
			request.Name = t.name
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.objects.Watch(ctx, request, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	w.seen = map[string]bool{}
	for len(w.left) > 0 {
		event, err := stream.Recv()
		if err != nil {
			return err
		}
		w.take(event)
	}
	return nil
}

// take judges one event. Once all that exists was sent, a target that was not
// among it is gone.
func (w *waiter) take(event *capsulev1.WatchResponse) {
	if event.GetSynced() {
		for name, t := range w.left {
			if !w.seen[name] {
				w.judge(t, nil, true)
			}
		}
		return
	}
	name := targetOf(event.GetObject()).what()
	t, ok := w.left[name]
	if !ok {
		return
	}
	w.seen[name] = true
	if text := describeObject(event.GetObject(), t.generation); text != "" {
		w.last[name] = t.name + ": " + text
		w.line.set(w.last[name])
	}
	w.judge(t, event.GetObject(), event.GetDeleted())
}

// describeObject is the status of an object in one line, once it is that of a
// generation.
func describeObject(o *capsulev1.Object, generation uint64) string {
	if isVolume(o) {
		s := o.GetVolume().GetStatus()
		if s.GetGeneration() < generation {
			return ""
		}
		return joinState(volumePhaseName(s.GetPhase()), s.GetMessage())
	}
	if isSecret(o) {
		return "" // it is kept, and there is no more to say
	}
	if isConfiguration(o) {
		if o.GetCapsule().GetStatus().GetGeneration() < generation {
			return ""
		}
		return joinState(configurationState(o))
	}
	s := o.GetWorkload().GetStatus()
	if s.GetGeneration() < generation {
		return ""
	}
	text := joinState(phaseName(s.GetPhase()), s.GetMessage())
	if s.GetHealth() == capsulev1.HealthState_HEALTH_STATE_STARTING {
		text += "; " + joinState("not healthy yet", oneLine(s.GetHealthMessage()))
	}
	return text
}

func (w *waiter) judge(t target, o *capsulev1.Object, deleted bool) {
	done, err := w.goal(t, o, deleted)
	switch {
	case err != nil:
		w.errs = append(w.errs, err)
	case done:
		w.done = append(w.done, t)
	default:
		return
	}
	delete(w.left, t.what())
}

// pause waits, or less when ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
