package workload

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/health"
)

// trial is what the wanted generation has to pass: to be healthy within a time from
// its first start, or what was healthy before is gone back to.
type trial struct {
	// On tells that it has a check, and is to be gone back from.
	On bool
	// Same tells that it is no other than what was healthy before, spec and image:
	// nothing is to be had by going back.
	Same   bool
	Window time.Duration
	// Lasts is how long it is since the first start that this daemon knows of. That
	// goes by no clock that may be set, and what a loss of power cuts begins anew.
	Lasts time.Duration
}

// rollsBack tells whether a spec whose check is resolved is gone back from.
func rollsBack(spec *v1.WorkloadSpec) bool {
	_, checked := health.Of(spec.GetHealth())
	return checked && spec.GetRestart() != restartNever && (spec.Rollback == nil || spec.GetRollback())
}

// window is the time that a check takes to find a start unhealthy.
func window(c health.Check) time.Duration {
	return c.StartPeriod + time.Duration(c.Retries)*c.Interval + c.Timeout
}

// fallback is the instance that is gone back to when the wanted generation is not
// well, nil for none.
func (d *decider) fallback() *seen {
	if !d.Trial.On || d.Trial.Same {
		return nil
	}
	return d.healthyOld()
}

// healthyOld is the older instance that was healthy last, nil when it is gone.
func (d *decider) healthyOld() *seen {
	for i := range d.old {
		if d.old[i].Generation == d.Healthy {
			return &d.old[i]
		}
	}
	return nil
}

// needless is an older instance that is of no use once the wanted generation was
// started, nil for none.
func (d *decider) needless() *seen {
	back := d.fallback()
	for i := range d.old {
		if back == nil || d.old[i].Generation != back.Generation {
			return &d.old[i]
		}
	}
	return nil
}

// proven tells that what runs is to be gone back to from now on.
func (d *decider) proven() bool {
	switch {
	case d.Healthy == d.current.Generation:
		return false
	case d.Trial.Same: // ill, it would not be better off with the older one
		return true
	case d.Health.Checked:
		return d.status.Health == v1.HealthState_HEALTH_STATE_HEALTHY
	}
	return d.Now.Sub(d.current.StartedAt) >= goodRun
}

// prove makes the wanted generation the one that is gone back to.
func (d *decider) prove() decision {
	next := d.do(stepTrust, d.current)
	next.Step.Digest = d.current.ImageDigest
	return next
}

// fails says why what runs has failed its trial, "" while it may pass.
func (d *decider) fails() string {
	switch {
	case d.fallback() == nil, d.status.Health == v1.HealthState_HEALTH_STATE_HEALTHY:
	case d.status.Health == v1.HealthState_HEALTH_STATE_UNHEALTHY:
		return unhealthy(d.status)
	case d.Trial.Lasts >= d.Trial.Window:
		return d.late(d.lately())
	}
	return ""
}

// lately is what was last known of its health or, when that is nothing yet as it was
// just started again, how it ended before.
func (d *decider) lately() string {
	text := firstLine(d.status.HealthMessage)
	if text == "" && d.status.Failures > 0 && d.status.ExitCode != nil {
		text = fmt.Sprintf("exited with code %d", d.status.GetExitCode())
	}
	return text
}

// late is that the time is over, and what was last known.
func (d *decider) late(known string) string {
	text := fmt.Sprintf("not healthy within %v", d.Trial.Window)
	if known != "" {
		text += ": " + known
	}
	return text
}

// left is how much of the trial is left; a wait of 0 would have no end.
func (t trial) left() time.Duration { return max(t.Window-t.Lasts, time.Millisecond) }

// giveUp gives the wanted generation up. That is in the status before anything is
// done, so that a cut after it leads to the same end.
func (d *decider) giveUp(why string) decision {
	d.status.RolledBack = why
	return d.rolledBack()
}

// rolledBack keeps up what was healthy before, until another generation is declared.
func (d *decider) rolledBack() decision {
	d.status.NextStartAt, d.status.OnTrial = nil, false
	text := goneBack(d.status)
	if d.Served != d.Healthy {
		d.show(v1.Phase_PHASE_STOPPING, reasonRollback, text)
		return d.do(stepBack, d.healthyOld())
	}
	if d.current != nil && d.current.State == Running {
		d.show(v1.Phase_PHASE_STOPPING, reasonRollback, text)
		return d.do(stepStop, d.current)
	}
	next := d.orOld(0)
	switch {
	case next.Step.Do == stepStartOld:
		d.show(v1.Phase_PHASE_STARTING, reasonRollback, text)
		return next
	case d.runningOld() == nil:
		text += "; that does not run now"
	}
	d.show(v1.Phase_PHASE_FAILED, reasonRollback, text)
	if next.Step.Do != stepWait {
		return next
	}
	if d.current != nil {
		return d.do(stepRemove, d.current)
	}
	for i := range d.old {
		if d.old[i].State != Running && d.old[i].Generation != d.Served {
			return d.do(stepRemove, &d.old[i])
		}
	}
	return next
}

// goneBack is a rollback in a sentence.
func goneBack(status *v1.WorkloadStatus) string {
	return fmt.Sprintf("rolled back to generation %d: %s", status.HealthyGeneration, status.RolledBack)
}

// startFailed is the status after a start on trial that failed: it took the older
// generation down, and would again.
func startFailed(status *v1.WorkloadStatus, why string) *v1.WorkloadStatus {
	status = proto.CloneOf(status)
	status.RolledBack = why
	status.Phase, status.Reason, status.Message = v1.Phase_PHASE_STOPPING, reasonRollback, goneBack(status)
	return status
}

// trial gathers what the wanted generation has to pass. before and healthy are the
// generations that were started last and healthy last.
func (l *Loop) trial(ctx context.Context, obj, before, healthy *v1.Object, m *memory, found []seen) trial {
	started := before.GetMeta().GetGeneration() == obj.Meta.Generation
	other := m.tried != obj.Meta.Generation
	switch {
	case !started, held(obj.GetWorkload().GetStatus()), // what waits for others is not to blame
		other && !begun(obj.Meta, found):
		m.tried, m.trying = 0, time.Time{}
	case other:
		m.tried, m.trying = obj.Meta.Generation, time.Now()
	}
	if healthy == nil || healthy.Meta.Generation == obj.Meta.Generation {
		return trial{}
	}
	wanted := before
	if !started {
		wanted = l.resolved(ctx, obj)
	}
	spec := wanted.GetWorkload().GetSpec()
	t := trial{On: rollsBack(spec) && !isDone(healthy), Same: same(wanted, healthy, found)}
	if check, ok := health.Of(spec.GetHealth()); ok {
		t.Window = window(check)
	}
	if !m.trying.IsZero() {
		t.Lasts = time.Since(m.trying)
	}
	return t
}

// begun tells that the wanted generation runs, or ran since the machine came up: what
// a boot takes before it starts again is not its own time.
func begun(wanted *v1.Meta, found []seen) bool {
	return slices.ContainsFunc(found, func(s seen) bool {
		return s.UID == wanted.Uid && s.Generation == wanted.Generation && (s.State == Running || !s.FinishedAt.IsZero())
	})
}

// isDone tells that what was healthy has done its work, which is not to be done again.
func isDone(healthy *v1.Object) bool {
	w := healthy.GetWorkload()
	return w.GetSpec().GetRestart() == restartNever || w.GetStatus().GetPhase() == v1.Phase_PHASE_EXITED
}

// same tells whether the wanted generation is what was healthy before: its instance
// has the same image, whatever that is called.
func same(wanted, healthy *v1.Object, found []seen) bool {
	if wanted.Meta.Kind != healthy.Meta.Kind || !proto.Equal(wanted.GetWorkload().GetSpec(), healthy.GetWorkload().GetSpec()) {
		return false
	}
	for _, s := range found {
		if s.UID == wanted.Meta.Uid && s.Generation == wanted.Meta.Generation {
			return s.ImageDigest == healthy.GetWorkload().GetStatus().GetImageDigest()
		}
	}
	return false
}

// trust has a generation be gone back to from now on.
func (l *Loop) trust(ctx context.Context, obj *v1.Object, d decision) error {
	// A cut after its start may have left that to do.
	if err := l.serves(ctx, obj); err != nil {
		return err
	}
	before, err := l.served.get(obj.Meta)
	if err != nil || before == nil {
		return err
	}
	return l.served.trust(before, d.Step.Digest, d.Status.Phase)
}

// back has what was healthy before serve again.
func (l *Loop) back(obj *v1.Object, m *memory) error {
	m.oldFailures, m.oldRetry = 0, time.Time{}
	return l.served.back(obj.Meta)
}

// noCheck tells whoever asks for a rollback that there is nothing to tell by.
const noCheck = "rollback has no effect: neither the manifest nor the image has a check of its health"
