package workload

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/secret"
)

// verb of a step.
type verb string

// The steps. Each is idempotent, so that a cut between two loses nothing.
const (
	stepWait         verb = "wait"       // nothing to do until a wake-up
	stepPull         verb = "pull"       // fetch the image
	stepPrepare      verb = "prepare"    // make the instance of the wanted generation
	stepStart        verb = "start"      // start the instance of the wanted generation
	stepStartOld     verb = "start old"  // start the generation that served before again
	stepStop         verb = "stop"       // stop an instance, gracefully
	stepRemove       verb = "remove"     // remove an instance
	stepForget       verb = "forget"     // nothing is left: give back the network, drop the object
	stepTrust        verb = "trust"      // the wanted generation is well: it is gone back to from now on
	stepBack         verb = "back"       // it is not: what was healthy before is what serves
	restartOnFail         = "on-failure" // restart policies of the spec
	restartNever          = "never"
	reasonOperator        = "operator"
	reasonOOM             = "oom"
	reasonExit            = "exit"
	reasonSignal          = "signal"
	reasonImage           = "image"
	reasonConfig          = "config"
	reasonStart           = "start"
	reasonMachine         = "machine"
	reasonVolume          = "volume"
	reasonDependency      = "dependency"
	reasonSecret          = secret.Reason
	reasonUnhealthy       = "unhealthy"
	reasonRollback        = "rollback"
)

// volumesOf tells whose volumes a step needs.
type volumesOf int

// A step that leads to a start needs those of what is to be started.
const (
	ofNone   volumesOf = iota
	ofWanted           // the wanted generation
	ofServed           // the one that served before
)

// step is the one next thing to do.
type step struct {
	Do verb
	// Again tells a start after an end, which counts as a restart.
	Again bool
	// Halt tells a stop because of a volume.
	Halt bool
	// Heal tells a stop of what is to be started again since it is unhealthy.
	Heal bool
	// Once tells a start that is given up when it fails: another is gone back to.
	Once   bool
	ID     ID     // of stop, remove and start
	Kind   string // whose driver does it
	Digest string // of trust: the image that it ran
}

// world is all that a decision looks at.
type world struct {
	Object     *v1.Object // with its last status
	Seen       []seen
	ImageLocal bool // the wanted image is in the cache
	Available  bool // the kind has a driver
	// Served is the generation that was started last; its spec is kept.
	Served uint64
	// OldRetry is when an ended older generation is started again.
	OldRetry time.Time
	// Held says what the wanted generation's volumes wait for, and OldHeld that
	// those of the one that served before do; see decision.Volumes.
	Held    string
	OldHeld bool
	// Freed tells that a volume that a start failed for may be better now.
	Freed bool
	// Halt says why what runs is to be stopped because of a volume, for now.
	Halt string
	// Health is what the checks say of what runs.
	Health checked
	// Waits says which workload the wanted generation has to wait for, and how that
	// stands; OldWaits tells that the one that served before has to.
	Waits    string
	OldWaits bool
	// Lacks says which secret the wanted generation has to wait for.
	Lacks string
	// Healthy is the generation that is gone back to: the last one that was healthy,
	// or, without a check, ran well. It is 0 for none.
	Healthy uint64
	Trial   trial
	Now     time.Time
}

// seen is an instance and the kind whose driver lists it.
type seen struct {
	Observed
	Kind string
}

// decision is the next step, the status to show before it, and how long a wait
// lasts at most (0: until a wake-up).
type decision struct {
	Step   step
	Status *v1.WorkloadStatus
	After  time.Duration
	// Volumes are those that the workload must hold before the step is done.
	Volumes volumesOf
}

// decide gives the next step towards what the object declares. It has no side
// effects and reads no clock.
func decide(w world) decision {
	d := &decider{world: w, status: fresh(w.Object)}
	d.was = d.status.Health
	d.returning = w.Object.GetWorkload().GetStatus().GetRolledBack() != "" && d.status.RolledBack == ""
	for _, s := range w.Seen {
		switch {
		case s.UID != w.Object.Meta.Uid:
			d.foreign = append(d.foreign, s)
		case s.Generation == w.Object.Meta.Generation && s.Kind == w.Object.Meta.Kind:
			d.current = &s
		default:
			d.old = append(d.old, s)
		}
	}
	// Newest first: the one most likely to serve.
	slices.SortFunc(d.old, func(a, b seen) int { return int(int64(b.Generation) - int64(a.Generation)) })
	d.observe()
	return d.next()
}

// fresh is the status to go on from; a new generation starts its counts anew.
func fresh(obj *v1.Object) *v1.WorkloadStatus {
	status := obj.GetWorkload().GetStatus()
	if status == nil {
		status = &v1.WorkloadStatus{}
	}
	status = proto.CloneOf(status)
	if status.Generation != obj.Meta.Generation {
		status.Generation = obj.Meta.Generation
		status.Phase = v1.Phase_PHASE_PENDING
		status.Message, status.Reason = "", ""
		status.Restarts, status.Failures = 0, 0
		status.NextStartAt, status.Warnings = nil, nil
		status.Emulated = false
		status.RolledBack = ""
	}
	return status
}

type decider struct {
	world
	status  *v1.WorkloadStatus
	was     v1.HealthState // as last known
	current *seen          // the wanted generation
	old     []seen
	foreign []seen
	// returning tells that the generation before the wanted one was rolled back.
	returning bool
}

// ill tells that the wanted generation is, or was, being stopped since it is
// unhealthy.
func ill(status *v1.WorkloadStatus) bool {
	return status.Phase == v1.Phase_PHASE_STOPPING && status.Reason == reasonUnhealthy
}

func (d *decider) next() decision {
	workload := d.Object.GetWorkload()
	switch {
	case len(d.foreign) > 0:
		return d.clear(d.foreign[0], "what is left of a deleted workload of this name is removed")
	case d.Object.Meta.DeletedAt != nil:
		return d.deleted()
	case workload.GetIntent().GetStopped():
		return d.stopped()
	case d.Halt != "" && d.anyRunning() != nil:
		return d.halt()
	case d.status.RolledBack != "":
		return d.rolledBack()
	case !d.Available:
		d.show(v1.Phase_PHASE_FAILED, reasonConfig, fmt.Sprintf("kind %s is not available on this capsule", d.Object.Meta.Kind))
		return d.keepOld()
	case d.current == nil:
		return d.make()
	case d.current.State == Prepared && !d.ran(), d.neverStarted():
		return d.replace()
	case d.current.State == Running:
		return d.running()
	default:
		return d.ended()
	}
}

// observe copies what can be seen into the status.
func (d *decider) observe() {
	run := d.anyRunning()
	d.observeHealth(run)
	d.status.RunningGeneration, d.status.ImageDigest = 0, ""
	d.status.HealthyGeneration, d.status.OnTrial = d.Healthy, false
	if d.healthyOld() == nil {
		d.status.RolledBack = "" // the runtime lost it: there is nothing else than what is declared
	}
	if run != nil {
		d.status.RunningGeneration = run.Generation
		d.status.ImageDigest = run.ImageDigest
		d.status.StartedAt = stamp(run.StartedAt)
		d.status.Emulated = run.Emulated
	}
	if d.current != nil && d.current.Emulated { // a first start takes long, too
		d.status.Emulated = true
	}
}

func (d *decider) show(phase v1.Phase, reason, message string) {
	d.status.Phase, d.status.Reason, d.status.Message = phase, reason, message
}

func (d *decider) do(do verb, on *seen) decision {
	s := step{Do: do, Kind: d.Object.Meta.Kind, ID: d.wanted()}
	if on != nil {
		s.ID, s.Kind = on.ID, on.Kind
	}
	return decision{Step: s, Status: d.status}
}

func (d *decider) wait(after time.Duration) decision {
	return decision{Step: step{Do: stepWait}, Status: d.status, After: after}
}

func (d *decider) wanted() ID {
	return ID{Name: d.Object.Meta.Name, UID: d.Object.Meta.Uid, Generation: d.Object.Meta.Generation}
}

// clear stops an instance that runs and removes one that does not.
func (d *decider) clear(s seen, message string) decision {
	d.show(v1.Phase_PHASE_STOPPING, "", message)
	if s.State == Running {
		return d.do(stepStop, &s)
	}
	return d.do(stepRemove, &s)
}

// halt stops what runs because of a volume; what becomes of it is written when it
// has ended.
func (d *decider) halt() decision {
	d.show(v1.Phase_PHASE_STOPPING, reasonVolume, d.Halt)
	next := d.do(stepStop, d.anyRunning())
	next.Step.Halt = true
	return next
}

func (d *decider) deleted() decision {
	d.status.NextStartAt = nil
	if d.current != nil {
		return d.clear(*d.current, "being deleted")
	}
	if len(d.old) > 0 {
		return d.clear(d.old[0], "being deleted")
	}
	d.show(v1.Phase_PHASE_STOPPING, "", "being deleted")
	return d.do(stepForget, nil)
}

// stopped stops whatever runs. The newest instance that ran is kept, so that
// its files last until the next start, and the one that is gone back to; one that
// never ran is removed.
func (d *decider) stopped() decision {
	d.status.NextStartAt = nil
	all := d.old
	if d.current != nil {
		all = append([]seen{*d.current}, d.old...)
	}
	kept := false
	for _, s := range all {
		switch {
		case s.State == Running:
			d.show(v1.Phase_PHASE_STOPPING, reasonOperator, "being stopped by an operator")
			return d.do(stepStop, &s)
		case s.Generation != d.Healthy && (kept || s.State == Prepared && s.Generation != d.Served):
			d.show(v1.Phase_PHASE_STOPPING, reasonOperator, "being stopped by an operator")
			return d.do(stepRemove, &s)
		case !kept:
			kept = true
			d.recordEnd(s)
		}
	}
	d.show(v1.Phase_PHASE_STOPPED, reasonOperator, "stopped by an operator")
	return d.wait(0)
}

// make leads from nothing to a prepared instance; older ones go on serving.
func (d *decider) make() decision {
	pushed := d.status.Reason == reasonImage && d.ImageLocal // what was missing is there now
	if after := d.pause(retryPermanent); after > 0 && !pushed {
		d.keepFailure()
		return d.orOld(after)
	}
	if !d.ImageLocal {
		if next := d.orOld(0); d.returning && next.Step.Do == stepStartOld {
			return next // a pull may take long, and nothing serves
		}
		d.show(v1.Phase_PHASE_PULLING, "", fmt.Sprintf("pulling image %q", d.Object.GetWorkload().GetSpec().GetImage()))
		return d.do(stepPull, nil)
	}
	if d.Held != "" {
		return d.hold()
	}
	d.show(v1.Phase_PHASE_STARTING, "", "preparing its instance")
	return d.with(ofWanted, d.do(stepPrepare, nil))
}

// hold waits for volumes, until a wake-up: an older generation goes on serving.
func (d *decider) hold() decision {
	d.status.NextStartAt = nil
	d.show(v1.Phase_PHASE_PENDING, reasonVolume, meanwhile(d.Held, d.status))
	return d.orOld(0)
}

// depend waits for other workloads, until a wake-up: an older generation goes on
// serving. Its own volumes stay with it: it is as good as started.
func (d *decider) depend() decision {
	d.status.NextStartAt = nil
	d.show(v1.Phase_PHASE_PENDING, reasonDependency, meanwhile(d.Waits, d.status))
	return d.orOld(0)
}

// lack waits for a secret, as depend does for a workload.
func (d *decider) lack() decision {
	d.status.NextStartAt = nil
	d.show(v1.Phase_PHASE_PENDING, reasonSecret, meanwhile(d.Lacks, d.status))
	return d.orOld(0)
}

func (d *decider) with(volumes volumesOf, next decision) decision {
	next.Volumes = volumes
	return next
}

// ran tells that the wanted generation was started before, whatever the runtime
// still knows of it after a loss of power.
func (d *decider) ran() bool {
	switch d.status.Phase {
	case v1.Phase_PHASE_RUNNING, v1.Phase_PHASE_BACK_OFF, v1.Phase_PHASE_EXITED:
		return true
	}
	return false
}

// neverStarted tells that only failed starts are known of the wanted
// generation, whatever the runtime calls what they left.
func (d *decider) neverStarted() bool {
	if d.current.State != Ended || !d.current.FinishedAt.IsZero() {
		return false
	}
	switch d.status.Phase {
	case v1.Phase_PHASE_FAILED:
		return true
	case v1.Phase_PHASE_PENDING: // held, after either
		return d.Served != d.current.Generation
	}
	return false
}

// replace leads from a prepared instance to a running one.
func (d *decider) replace() decision {
	if after := d.pause(retryPermanent); after > 0 {
		d.keepFailure()
		return d.orOld(after)
	}
	if d.Waits != "" {
		return d.depend()
	}
	if d.Lacks != "" {
		return d.lack()
	}
	if d.Held != "" {
		return d.hold()
	}
	if run := d.runningOld(); run != nil {
		d.show(v1.Phase_PHASE_STARTING, "", fmt.Sprintf("stopping generation %d", run.Generation))
		return d.with(ofWanted, d.do(stepStop, run))
	}
	d.show(v1.Phase_PHASE_STARTING, "", "starting")
	return d.start()
}

// start of the wanted generation, prepared or ended. What can be gone back from is
// not started in vain again and again.
func (d *decider) start() decision {
	next := d.with(ofWanted, d.do(stepStart, nil))
	next.Step.Once = d.fallback() != nil
	return next
}

func (d *decider) running() decision {
	if run := d.runningOld(); run != nil {
		return d.do(stepStop, run)
	}
	if why := d.fails(); why != "" {
		return d.giveUp(why)
	}
	d.status.OnTrial = d.fallback() != nil
	if d.sick() {
		d.show(v1.Phase_PHASE_STOPPING, reasonUnhealthy, unhealthy(d.status))
		return d.heal(d.current)
	}
	d.showRunning()
	d.status.NextStartAt = nil
	if d.proven() {
		return d.prove()
	}
	if old := d.needless(); old != nil {
		return d.do(stepRemove, old)
	}
	return d.wait(d.watch())
}

// watch is how long what runs can be left alone, 0 for until a wake-up. A good run
// has its failures forgotten.
func (d *decider) watch() time.Duration {
	switch {
	case d.fallback() != nil:
		return d.Trial.left()
	case d.Health.Checked && d.status.Health != v1.HealthState_HEALTH_STATE_HEALTHY:
		return 0 // it is not known to be a good run
	case d.status.Failures == 0 && d.Healthy == d.current.Generation:
		return 0
	}
	left := goodRun - d.Now.Sub(d.current.StartedAt)
	if left <= 0 {
		d.status.Failures = 0
		return 0
	}
	return min(left, goodRun)
}

// showRunning says how it runs; one that was restarted since it was unhealthy says
// so until it is healthy.
func (d *decider) showRunning() {
	restarted := d.status.Reason == reasonUnhealthy && d.status.Health == v1.HealthState_HEALTH_STATE_STARTING
	reason, text := "", "running"
	switch {
	case d.status.Health == v1.HealthState_HEALTH_STATE_UNHEALTHY:
		reason, text = reasonUnhealthy, "running, but "+unhealthy(d.status)
	case restarted && d.status.Message != "":
		reason, text = reasonUnhealthy, d.status.Message
	case d.current.Note != "":
		text = d.current.Note
	}
	d.show(v1.Phase_PHASE_RUNNING, reason, text)
}

// ended judges an end of the wanted generation.
func (d *decider) ended() decision {
	if run := d.runningOld(); run != nil {
		return d.do(stepStop, run)
	}
	if d.Trial.Same && d.Healthy != d.current.Generation {
		return d.prove()
	}
	if old := d.needless(); old != nil {
		return d.do(stepRemove, old)
	}
	d.status.OnTrial = d.fallback() != nil
	if d.unaccounted() {
		if d.current.FinishedAt.IsZero() {
			return d.lost()
		}
		d.account()
	}
	switch {
	case d.status.Phase == v1.Phase_PHASE_EXITED:
		return d.done()
	case d.status.OnTrial && d.status.Phase == v1.Phase_PHASE_BACK_OFF && d.Trial.Lasts >= d.Trial.Window:
		return d.giveUp(d.late(d.status.Message))
	}
	if after := d.pause(retryPermanent); after > 0 {
		d.keepFailure()
		if d.status.OnTrial {
			after = min(after, d.Trial.left())
		}
		return d.wait(after)
	}
	text := "starting again"
	if d.status.Reason == reasonUnhealthy {
		text = d.status.Message
	}
	d.show(v1.Phase_PHASE_STARTING, d.status.Reason, text)
	return d.again()
}

// done waits after an end for good. What ended well is well.
func (d *decider) done() decision {
	d.status.OnTrial = false
	well := d.status.Reason == reasonExit && d.status.GetExitCode() == 0
	if well && d.Healthy != d.current.Generation {
		return d.prove()
	}
	return d.wait(0)
}

// unaccounted tells that the status does not know of this end yet.
func (d *decider) unaccounted() bool {
	if !d.current.FinishedAt.IsZero() {
		return !d.current.FinishedAt.Equal(d.status.FinishedAt.AsTime()) || d.status.FinishedAt == nil
	}
	switch d.status.Phase {
	case v1.Phase_PHASE_EXITED, v1.Phase_PHASE_BACK_OFF, v1.Phase_PHASE_FAILED, v1.Phase_PHASE_STARTING:
		return false
	}
	return !held(d.status)
}

// lost starts what the machine took down with it at once: it did not fail.
// What must never be restarted is not, since it may have done its work.
func (d *decider) lost() decision {
	d.status.NextStartAt, d.status.ExitCode = nil, nil
	if d.Object.GetWorkload().GetSpec().GetRestart() == restartNever {
		d.show(v1.Phase_PHASE_EXITED, reasonMachine, "ended with the machine; its restart policy is never")
		return d.wait(0)
	}
	d.show(v1.Phase_PHASE_STARTING, reasonMachine, "starting again after the machine went down")
	return d.again()
}

func (d *decider) again() decision {
	if d.Waits != "" {
		return d.depend()
	}
	if d.Lacks != "" {
		return d.lack()
	}
	if d.Held != "" {
		return d.hold()
	}
	next := d.start()
	next.Step.Again = true
	return next
}

// account writes an end into the status and sets the next start.
func (d *decider) account() {
	c := d.current
	reason, text := cause(c.Observed)
	unwell := ill(d.status)
	if unwell {
		reason, text = reasonUnhealthy, "restarted: "+unhealthy(d.status)
	}
	good := c.FinishedAt.Sub(c.StartedAt) >= goodRun
	if d.was != v1.HealthState_HEALTH_STATE_UNSPECIFIED && d.was != v1.HealthState_HEALTH_STATE_HEALTHY {
		good = false // one that was healthy before has its failures forgotten already
	}
	d.recordEnd(*c)
	policy := d.Object.GetWorkload().GetSpec().GetRestart()
	if policy == restartNever || policy == restartOnFail && c.ExitCode == 0 && !c.OOM && !unwell {
		d.status.NextStartAt = nil
		d.show(v1.Phase_PHASE_EXITED, reason, text)
		return
	}
	if good {
		d.status.Failures = 0
	}
	d.status.Failures++
	d.status.NextStartAt = stamp(c.FinishedAt.Add(delay(backoffMin, d.status.Failures)))
	d.show(v1.Phase_PHASE_BACK_OFF, reason, text)
}

func (d *decider) recordEnd(s seen) {
	if s.FinishedAt.IsZero() {
		return
	}
	d.status.Health, d.status.HealthMessage = v1.HealthState_HEALTH_STATE_UNSPECIFIED, ""
	code := int32(s.ExitCode)
	d.status.ExitCode = &code
	d.status.StartedAt, d.status.FinishedAt = stamp(s.StartedAt), stamp(s.FinishedAt)
}

// cause of an end, as a word and a sentence: the driver's, where it has one.
func cause(o Observed) (reason, text string) {
	switch {
	case o.OOM:
		reason, text = reasonOOM, fmt.Sprintf("killed at its memory limit (exit code %d)", o.ExitCode)
	case o.ExitCode > 128 && o.ExitCode <= 128+64:
		reason, text = reasonSignal, fmt.Sprintf("ended by signal %d (exit code %d)", o.ExitCode-128, o.ExitCode)
	default:
		reason, text = reasonExit, fmt.Sprintf("exited with code %d", o.ExitCode)
	}
	if o.Note != "" {
		text = fmt.Sprintf("%s (exit code %d)", o.Note, o.ExitCode)
	}
	return reason, text
}

// pause is how long to wait yet before the next try. A wait longer than any
// that we set means that the clock was moved: it is over.
func (d *decider) pause(first time.Duration) time.Duration {
	if d.status.NextStartAt == nil || d.Freed && d.status.Reason == reasonVolume {
		return 0
	}
	left := d.status.NextStartAt.AsTime().Sub(d.Now)
	if left > delay(first, max(d.status.Failures, 1)) {
		return 0
	}
	return max(left, 0)
}

// keepFailure shows the waiting phase with the reason and message it has.
func (d *decider) keepFailure() {
	if d.status.Phase != v1.Phase_PHASE_BACK_OFF && !held(d.status) {
		d.status.Phase = v1.Phase_PHASE_FAILED
	}
}

// held tells that a workload waits for a volume, another workload or a secret.
func held(status *v1.WorkloadStatus) bool {
	waits := status.Reason == reasonDependency || status.Reason == reasonSecret
	return heldByVolume(status) || status.Phase == v1.Phase_PHASE_PENDING && waits
}

func heldByVolume(status *v1.WorkloadStatus) bool {
	return status.Phase == v1.Phase_PHASE_PENDING && status.Reason == reasonVolume
}

func (d *decider) anyRunning() *seen {
	if d.current != nil && d.current.State == Running {
		return d.current
	}
	return d.runningOld()
}

func (d *decider) runningOld() *seen {
	for i := range d.old {
		if d.old[i].State == Running {
			return &d.old[i]
		}
	}
	return nil
}

// keepOld waits for a new spec while an older generation serves.
func (d *decider) keepOld() decision { return d.orOld(0) }

// orOld waits; meanwhile the generation that served before is kept up.
func (d *decider) orOld(after time.Duration) decision {
	if run := d.runningOld(); run != nil && d.sick() {
		return d.heal(run)
	}
	if d.runningOld() != nil || d.Object.GetWorkload().GetSpec().GetRestart() == restartNever {
		return d.wait(after)
	}
	if back := d.healthyOld(); back != nil && d.Served != d.Healthy && d.Served != d.Object.Meta.Generation {
		return d.do(stepBack, back) // the one that served was on trial
	}
	for i := range d.old {
		if d.old[i].Generation != d.Served {
			continue
		}
		if left := d.OldRetry.Sub(d.Now); left > 0 && left <= backoffMax {
			if after == 0 {
				after = left
			}
			return d.wait(min(after, left))
		}
		if d.OldHeld || d.OldWaits {
			return d.wait(after)
		}
		return d.with(ofServed, d.do(stepStartOld, &d.old[i]))
	}
	return d.wait(after)
}

// heldUp is the status after a start that a volume was in the way of, or after
// such a stop: the same again is tried, ever more rarely.
func heldUp(status *v1.WorkloadStatus, message string, permanent bool, now time.Time) *v1.WorkloadStatus {
	status = failed(status, reasonVolume, message, permanent, now)
	status.Phase = v1.Phase_PHASE_PENDING
	return status
}

// failed is the status after a step that went wrong.
func failed(status *v1.WorkloadStatus, reason, message string, permanent bool, now time.Time) *v1.WorkloadStatus {
	status = proto.CloneOf(status)
	status.Failures++
	first := retryMin
	if permanent {
		first = retryPermanent
	}
	status.NextStartAt = timestamppb.New(now.Add(delay(first, status.Failures)))
	status.Phase, status.Reason, status.Message = v1.Phase_PHASE_FAILED, reason, message
	return status
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
