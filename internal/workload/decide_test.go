package workload

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "capsule/api/capsule/v1"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// declared is workload "web", uid "u", at a generation.
func declared(generation uint64, change ...func(*v1.Object)) *v1.Object {
	obj := &v1.Object{
		Meta: &v1.Meta{Kind: "Container", Name: "web", Uid: "u", Generation: generation},
		Kind: &v1.Object_Workload{Workload: &v1.Workload{Spec: &v1.WorkloadSpec{Image: "web:1"}}},
	}
	for _, c := range change {
		c(obj)
	}
	return obj
}

func stoppedByOperator(o *v1.Object) { o.GetWorkload().Intent = &v1.Intent{Stopped: true} }
func deletedByOperator(o *v1.Object) { o.Meta.DeletedAt = timestamppb.New(noon) }
func isMicroVM(o *v1.Object)         { o.Meta.Kind = "MicroVM" }
func restart(policy string) func(*v1.Object) {
	return func(o *v1.Object) { o.GetWorkload().Spec.Restart = policy }
}

// status sets the last status, of the object's own generation.
func status(phase v1.Phase, change ...func(*v1.WorkloadStatus)) func(*v1.Object) {
	return func(o *v1.Object) {
		s := &v1.WorkloadStatus{Generation: o.Meta.Generation, Phase: phase}
		for _, c := range change {
			c(s)
		}
		o.GetWorkload().Status = s
	}
}

func tries(n uint32, reason string, next time.Duration) func(*v1.WorkloadStatus) {
	return func(s *v1.WorkloadStatus) {
		s.Failures, s.Reason, s.NextStartAt = n, reason, timestamppb.New(noon.Add(next))
	}
}

func because(reason string) func(*v1.WorkloadStatus) {
	return func(s *v1.WorkloadStatus) { s.Reason = reason }
}

func known(state v1.HealthState) func(*v1.WorkloadStatus) {
	return func(s *v1.WorkloadStatus) {
		s.Health, s.HealthMessage = state, "exit code 1: no"
		s.RunningGeneration, s.StartedAt = 1, timestamppb.New(noon.Add(-time.Hour))
	}
}

func says(message string) func(*v1.WorkloadStatus) {
	return func(s *v1.WorkloadStatus) { s.Message = message }
}

func ranBefore(s *v1.WorkloadStatus) { s.StartedAt = timestamppb.New(noon.Add(-2 * time.Hour)) }

func longRun(s *seen) { s.StartedAt = s.FinishedAt.Add(-time.Hour) }

const (
	starting = v1.HealthState_HEALTH_STATE_STARTING
	healthy  = v1.HealthState_HEALTH_STATE_HEALTHY
	unwell   = v1.HealthState_HEALTH_STATE_UNHEALTHY
)

func instance(generation uint64, state State, change ...func(*seen)) seen {
	s := seen{Kind: "Container", Observed: Observed{
		ID: ID{Name: "web", UID: "u", Generation: generation}, State: state, ImageDigest: "sha256:1", StartedAt: noon.Add(-time.Hour),
	}}
	for _, c := range change {
		c(&s)
	}
	return s
}

// exit is an end d ago, after a run of one second unless changed.
func exit(code int, ago time.Duration) func(*seen) {
	return func(s *seen) {
		s.ExitCode, s.FinishedAt = code, noon.Add(-ago)
		s.StartedAt = s.FinishedAt.Add(-time.Second)
	}
}

func TestDecide(t *testing.T) {
	const image, none = true, false
	other := func(s *seen) { s.UID = "before" }
	microVM := func(s *seen) { s.Kind = "MicroVM" }
	held := func(w *world) { w.Held = "waits for volume \"v\"" }
	freed := func(w *world) { w.Freed = true }
	waits := func(w *world) { w.Waits = "waits for workload \"db\", which is not declared" }
	lacks := func(w *world) { w.Lacks = "waits, as secret \"db\" is not declared" }
	verdict := func(state v1.HealthState, heals bool) func(*world) {
		return func(w *world) { w.Health = checked{Checked: true, Heals: heals, State: state, Text: "exit code 1: no"} }
	}
	sick, well, fresh := verdict(unwell, true), verdict(healthy, true), verdict(0, true)
	// Generation 1 was healthy, and 2 is on trial; served is what was started last.
	trying := func(served uint64, lasts time.Duration, change ...func(*world)) func(*world) {
		return func(w *world) {
			w.Health = checked{Checked: true, Heals: true, State: starting, Text: "exit code 1: no"}
			w.Served, w.Healthy, w.Trial = served, 1, trial{On: true, Window: time.Minute, Lasts: lasts}
			for _, c := range change {
				c(w)
			}
		}
	}
	forward := func(w *world) { w.Trial.On = false }
	same := func(w *world) { w.Trial.Same = true }
	onlyTold := func(w *world) { w.Health.Heals = false }
	nothingToldYet := func(w *world) { w.Health.State, w.Health.Text = 0, "" }
	givenUp := func(s *v1.WorkloadStatus) { s.RolledBack = "no good" }
	backFrom := func(generation uint64) func(*v1.Object) {
		return status(v1.Phase_PHASE_FAILED, because(reasonRollback), givenUp, func(s *v1.WorkloadStatus) { s.Generation = generation })
	}
	old, newer := instance(1, Ended, exit(143, time.Minute)), instance(2, Running)
	halt := func(w *world) { w.Halt = "volume \"v\" can't be written to" }
	tests := []struct {
		name  string
		obj   *v1.Object
		local bool
		seen  []seen
		tweak func(*world)
		want  string // step, phase, reason, wait
	}{
		// Making.
		{"new, image absent → pull", declared(1), none, nil, nil, "pull 1 PULLING"},
		{"new, image there → prepare", declared(1), image, nil, nil, "prepare 1 STARTING"},
		{"prepared → start", declared(1), image, []seen{instance(1, Prepared)}, nil, "start 1 STARTING"},
		{"started → running", declared(1), image, []seen{instance(1, Running)}, nil, "wait RUNNING"},
		{"kind without driver", declared(1, isMicroVM), none, nil, func(w *world) { w.Available = false }, "wait FAILED config"},

		// Failing.
		{"pull failed → wait", declared(1, status(v1.Phase_PHASE_FAILED, tries(3, reasonImage, 4*time.Second))), none, nil, nil, "wait FAILED image 4s"},
		{"wait over → pull", declared(1, status(v1.Phase_PHASE_FAILED, tries(3, reasonImage, 0))), none, nil, nil, "pull 1 PULLING"},
		{"image pushed meanwhile → no wait", declared(1, status(v1.Phase_PHASE_FAILED, tries(9, reasonImage, time.Minute))), image, nil, nil, "prepare 1 STARTING"},
		{"prepare failed → wait", declared(1, status(v1.Phase_PHASE_FAILED, tries(1, reasonConfig, 30*time.Second))), image, nil, nil, "wait FAILED config 30s"},
		{"start failed → wait", declared(1, status(v1.Phase_PHASE_FAILED, tries(1, reasonStart, time.Second))), image, []seen{instance(1, Prepared)}, nil, "wait FAILED start 1s"},
		{"start failed and left an ended one → wait", declared(2, status(v1.Phase_PHASE_FAILED, tries(1, reasonStart, time.Second))), image, []seen{instance(2, Ended), instance(1, Running)}, nil, "wait FAILED start 1s (1 runs)"},
		{"clock went back: the wait is over", declared(1, status(v1.Phase_PHASE_FAILED, tries(1, reasonImage, 400*24*time.Hour))), none, nil, nil, "pull 1 PULLING"},
		{"new generation forgets failures", declared(2, func(o *v1.Object) {
			o.GetWorkload().Status = &v1.WorkloadStatus{Generation: 1, Failures: 9, Restarts: 9, NextStartAt: timestamppb.New(noon.Add(time.Hour))}
		}), image, nil, nil, "prepare 2 STARTING"},

		// Replacing.
		{"old serves while the image is pulled", declared(2), none, []seen{instance(1, Running)}, nil, "pull 2 PULLING (1 runs)"},
		{"old serves while the new is prepared", declared(2), image, []seen{instance(1, Running)}, nil, "prepare 2 STARTING (1 runs)"},
		{"old serves while the pull waits", declared(2, status(v1.Phase_PHASE_FAILED, tries(1, reasonImage, time.Second))), none, []seen{instance(1, Running)}, nil, "wait FAILED image 1s (1 runs)"},
		{"new prepared → stop old", declared(2), image, []seen{instance(1, Running), instance(2, Prepared)}, nil, "stop 1 STARTING (1 runs)"},
		{"old stopped → start new", declared(2), image, []seen{instance(1, Ended, exit(143, 0)), instance(2, Prepared)}, nil, "start 2 STARTING"},
		{"new runs → remove old", declared(2), image, []seen{instance(1, Ended, exit(143, 0)), instance(2, Running)}, nil, "remove 1 RUNNING (2 runs)"},
		{"two run → stop old", declared(2), image, []seen{instance(1, Running), instance(2, Running)}, nil, "stop 1 PENDING (2 runs)"},
		{"kind flipped: the container serves until the microVM is prepared", declared(2, isMicroVM), image, []seen{instance(1, Running)}, nil, "prepare 2 STARTING (1 runs)"},
		{"kind flipped without driver: the container serves", declared(2, isMicroVM), none, []seen{instance(1, Running)}, func(w *world) { w.Available = false }, "wait FAILED config (1 runs)"},
		{"kind flipped, the microVM is prepared: the container stops first", declared(2, isMicroVM), image, []seen{instance(1, Running), instance(2, Prepared, microVM)}, nil, "stop 1 STARTING (1 runs)"},
		{"kind flipped, the container stopped: the microVM starts", declared(2, isMicroVM), image, []seen{instance(1, Ended, exit(143, 0)), instance(2, Prepared, microVM)}, nil, "start 2 STARTING"},
		{"kind flipped back: the microVM serves until the container is prepared", declared(3), image, []seen{instance(2, Running, microVM)}, nil, "prepare 3 STARTING (2 runs)"},
		{"kind flipped back, the container is prepared: the microVM stops first", declared(3), image, []seen{instance(2, Running, microVM), instance(3, Prepared)}, nil, "stop 2 STARTING (2 runs)"},
		{"kind flipped back, both run: the microVM stops", declared(3), image, []seen{instance(3, Running), instance(2, Running, microVM)}, nil, "stop 2 PENDING (3 runs)"},
		{"old ended while the pull waits → start old", declared(2, status(v1.Phase_PHASE_FAILED, tries(1, reasonImage, time.Second))), none, []seen{instance(1, Ended)}, func(w *world) { w.Served = 1 }, "start old 1 FAILED image"},
		{"old failed again → wait", declared(2, status(v1.Phase_PHASE_FAILED, tries(1, reasonImage, 4*time.Second))), none, []seen{instance(1, Ended)}, func(w *world) { w.Served, w.OldRetry = 1, noon.Add(2*time.Second) }, "wait FAILED image 2s"},
		{"old that never served is not started", declared(3, status(v1.Phase_PHASE_FAILED, tries(1, reasonImage, time.Second))), none, []seen{instance(2, Prepared), instance(1, Ended)}, func(w *world) { w.Served = 7 }, "wait FAILED image 1s"},

		// Ends.
		{"ended → back-off", declared(1, status(v1.Phase_PHASE_RUNNING)), image, []seen{instance(1, Ended, exit(1, 0))}, nil, "wait BACK_OFF exit 100ms"},
		{"end seen before → same wait", declared(1, status(v1.Phase_PHASE_BACK_OFF, tries(4, reasonExit, 300*time.Millisecond), func(s *v1.WorkloadStatus) { s.FinishedAt = timestamppb.New(noon) })), image, []seen{instance(1, Ended, exit(1, 0))}, nil, "wait BACK_OFF exit 300ms"},
		{"back-off over → start", declared(1, status(v1.Phase_PHASE_BACK_OFF, tries(4, reasonExit, 0), func(s *v1.WorkloadStatus) { s.FinishedAt = timestamppb.New(noon) })), image, []seen{instance(1, Ended, exit(1, 0))}, nil, "start again 1 STARTING exit"},
		{"good run resets", declared(1, status(v1.Phase_PHASE_RUNNING, tries(9, "", -time.Hour))), image, []seen{instance(1, Ended, exit(1, 0), func(s *seen) { s.StartedAt = noon.Add(-5 * time.Minute) })}, nil, "wait BACK_OFF exit 100ms"},
		{"short runs grow to the cap", declared(1, status(v1.Phase_PHASE_RUNNING, tries(40, "", -time.Hour))), image, []seen{instance(1, Ended, exit(1, 0))}, nil, "wait BACK_OFF exit 5m0s"},
		{"out of memory", declared(1, status(v1.Phase_PHASE_RUNNING)), image, []seen{instance(1, Ended, exit(137, 0), func(s *seen) { s.OOM = true })}, nil, "wait BACK_OFF oom 100ms"},
		{"killed by a signal", declared(1, status(v1.Phase_PHASE_RUNNING)), image, []seen{instance(1, Ended, exit(139, 0))}, nil, "wait BACK_OFF signal 100ms"},
		{"on-failure, exit 0 → exited", declared(1, restart("on-failure"), status(v1.Phase_PHASE_RUNNING)), image, []seen{instance(1, Ended, exit(0, 0))}, nil, "wait EXITED exit"},
		{"on-failure, exit 3 → back-off", declared(1, restart("on-failure"), status(v1.Phase_PHASE_RUNNING)), image, []seen{instance(1, Ended, exit(3, 0))}, nil, "wait BACK_OFF exit 100ms"},
		{"never → exited", declared(1, restart("never"), status(v1.Phase_PHASE_RUNNING)), image, []seen{instance(1, Ended, exit(3, 0))}, nil, "wait EXITED exit"},
		{"exited stays", declared(1, restart("never"), status(v1.Phase_PHASE_EXITED)), image, []seen{instance(1, Ended)}, nil, "wait EXITED"},
		{"exited, then applied anew → prepare", declared(2, restart("never")), image, []seen{instance(1, Ended, exit(0, 0))}, nil, "prepare 2 STARTING"},
		{"running for a while yet, failures are kept", declared(1, status(v1.Phase_PHASE_RUNNING, tries(2, "", 0))), image, []seen{instance(1, Running, func(s *seen) { s.StartedAt = noon.Add(-4 * time.Second) })}, nil, "wait RUNNING 6s"},
		{"old leftovers go after an end, too", declared(2, status(v1.Phase_PHASE_RUNNING)), image, []seen{instance(1, Ended), instance(2, Ended, exit(1, 0))}, nil, "remove 1 RUNNING"},

		// Machine went down.
		{"lost while running → start at once", declared(1, status(v1.Phase_PHASE_RUNNING, tries(5, "", -time.Hour))), image, []seen{instance(1, Ended)}, nil, "start again 1 STARTING machine"},
		{"lost while running, listed as prepared → start at once", declared(1, status(v1.Phase_PHASE_RUNNING)), image, []seen{instance(1, Prepared)}, nil, "start again 1 STARTING machine"},
		{"lost, never → exited", declared(1, restart("never"), status(v1.Phase_PHASE_RUNNING)), image, []seen{instance(1, Ended)}, nil, "wait EXITED machine"},
		{"lost after its end, listed as prepared → exited stays", declared(1, restart("on-failure"), status(v1.Phase_PHASE_EXITED)), image, []seen{instance(1, Prepared)}, nil, "wait EXITED"},
		{"lost in back-off → rest of the wait", declared(1, status(v1.Phase_PHASE_BACK_OFF, tries(9, reasonExit, 20*time.Second))), image, []seen{instance(1, Ended)}, nil, "wait BACK_OFF exit 20s"},
		{"lost in start → start", declared(1, status(v1.Phase_PHASE_STARTING)), image, []seen{instance(1, Prepared)}, nil, "start 1 STARTING"},

		// Volumes.
		{"held: the image is fetched first", declared(1), none, nil, held, "pull 1 PULLING"},
		{"held", declared(1), image, nil, held, "wait PENDING volume"},
		{"held, prepared", declared(1), image, []seen{instance(1, Prepared)}, held, "wait PENDING volume"},
		{"held no more", declared(1, status(v1.Phase_PHASE_PENDING, because(reasonVolume))), image, nil, nil, "prepare 1 STARTING"},
		{"held: the old serves", declared(2), image, []seen{instance(1, Running)}, held, "wait PENDING volume (1 runs)"},
		{"held, prepared: the old serves", declared(2), image, []seen{instance(2, Prepared), instance(1, Running)}, held, "wait PENDING volume (1 runs)"},
		{"held, kind flipped: the container serves", declared(2, isMicroVM), image, []seen{instance(2, Prepared, microVM), instance(1, Running)}, held, "wait PENDING volume (1 runs)"},
		{"held: the old is started again", declared(2), image, []seen{instance(1, Ended)}, func(w *world) { held(w); w.Served = 1 }, "start old 1 PENDING volume"},
		{"held, and the old is held", declared(2), image, []seen{instance(1, Ended)}, func(w *world) { held(w); w.Served, w.OldHeld = 1, true }, "wait PENDING volume"},
		{"image fails, and the old is held", declared(2, status(v1.Phase_PHASE_FAILED, tries(1, reasonImage, time.Second))), none, []seen{instance(1, Ended)}, func(w *world) { w.Served, w.OldHeld = 1, true }, "wait FAILED image 1s"},
		{"held after an end", declared(1, status(v1.Phase_PHASE_BACK_OFF, tries(1, reasonExit, 0), func(s *v1.WorkloadStatus) { s.FinishedAt = timestamppb.New(noon) })), image, []seen{instance(1, Ended, exit(1, 0))}, held, "wait PENDING volume"},
		{"held no more after an end", declared(1, status(v1.Phase_PHASE_PENDING, because(reasonVolume), func(s *v1.WorkloadStatus) { s.FinishedAt = timestamppb.New(noon) })), image, []seen{instance(1, Ended, exit(1, 0))}, nil, "start again 1 STARTING volume"},
		{"held after a loss of power", declared(1, status(v1.Phase_PHASE_RUNNING)), image, []seen{instance(1, Ended)}, held, "wait PENDING volume"},
		{"held, never ran: a first start", declared(1, restart("never"), status(v1.Phase_PHASE_PENDING, because(reasonVolume))), image, []seen{instance(1, Ended)}, nil, "start 1 STARTING"},
		{"held, ended for good stays", declared(1, restart("never"), status(v1.Phase_PHASE_EXITED)), image, []seen{instance(1, Ended)}, held, "wait EXITED"},
		{"its volume is damaged → wait", declared(1, status(v1.Phase_PHASE_PENDING, tries(1, reasonVolume, 30*time.Second))), image, []seen{instance(1, Prepared)}, nil, "wait PENDING volume 30s"},
		{"its volume is damaged, and the end is lost with the machine → same wait", declared(1, status(v1.Phase_PHASE_PENDING, tries(1, reasonVolume, 30*time.Second))), image, []seen{instance(1, Ended)}, func(w *world) { w.Served = 1 }, "wait PENDING volume 30s"},
		{"its volume is whole again → start", declared(1, status(v1.Phase_PHASE_PENDING, tries(1, reasonVolume, 30*time.Second))), image, []seen{instance(1, Prepared)}, freed, "start 1 STARTING"},
		{"a volume is whole again, but that was not it", declared(1, status(v1.Phase_PHASE_FAILED, tries(1, reasonStart, 30*time.Second))), image, []seen{instance(1, Prepared)}, freed, "wait FAILED start 30s"},
		{"its volume went read-only → stop", declared(1), image, []seen{instance(1, Running)}, halt, "stop 1 STOPPING volume (1 runs)"},
		{"its volume went read-only, the old runs → stop that", declared(2), none, []seen{instance(1, Running)}, halt, "stop 1 STOPPING volume (1 runs)"},
		{"its volume went read-only, deleted", declared(1, deletedByOperator), image, []seen{instance(1, Running)}, halt, "stop 1 STOPPING (1 runs)"},
		{"stopped for its volume → wait, whatever the code", declared(1, restart("on-failure"), status(v1.Phase_PHASE_PENDING, tries(1, reasonVolume, time.Second), func(s *v1.WorkloadStatus) { s.FinishedAt = timestamppb.New(noon) })), image, []seen{instance(1, Ended, exit(0, 0))}, nil, "wait PENDING volume 1s"},

		// Health.
		{"checked, nothing known → starting", declared(1), image, []seen{instance(1, Running)}, fresh, "wait RUNNING"},
		{"healthy", declared(1), image, []seen{instance(1, Running)}, well, "wait RUNNING"},
		{"unhealthy → stop", declared(1), image, []seen{instance(1, Running)}, sick, "stop 1 STOPPING unhealthy (1 runs)"},
		{"unhealthy, only told", declared(1), image, []seen{instance(1, Running)}, verdict(unwell, false), "wait RUNNING unhealthy"},
		{"unhealthy, known from before", declared(1, status(v1.Phase_PHASE_RUNNING, known(unwell))), image, []seen{instance(1, Running)}, fresh, "stop 1 STOPPING unhealthy (1 runs)"},
		{"unhealthy was the run before", declared(1, status(v1.Phase_PHASE_RUNNING, known(unwell), ranBefore)), image, []seen{instance(1, Running)}, fresh, "wait RUNNING"},
		{"stopped since it is unhealthy → back-off", declared(1, status(v1.Phase_PHASE_STOPPING, because(reasonUnhealthy), known(unwell))), image, []seen{instance(1, Ended, exit(143, 0))}, nil, "wait BACK_OFF unhealthy 100ms"},
		{"… whatever its code", declared(1, restart("on-failure"), status(v1.Phase_PHASE_STOPPING, because(reasonUnhealthy), known(unwell))), image, []seen{instance(1, Ended, exit(0, 0))}, nil, "wait BACK_OFF unhealthy 100ms"},
		{"… ever more rarely", declared(1, status(v1.Phase_PHASE_STOPPING, tries(3, reasonUnhealthy, -time.Hour), known(unwell))), image, []seen{instance(1, Ended, exit(143, 0), longRun)}, nil, "wait BACK_OFF unhealthy 800ms"},
		{"… and then start", declared(1, status(v1.Phase_PHASE_BACK_OFF, tries(1, reasonUnhealthy, 0), func(s *v1.WorkloadStatus) { s.FinishedAt = timestamppb.New(noon) })), image, []seen{instance(1, Ended, exit(143, 0))}, nil, "start again 1 STARTING unhealthy"},
		{"restarted says why", declared(1, status(v1.Phase_PHASE_STARTING, because(reasonUnhealthy), says("restarted: unhealthy"))), image, []seen{instance(1, Running)}, fresh, "wait RUNNING unhealthy"},
		{"until it is healthy", declared(1, status(v1.Phase_PHASE_RUNNING, because(reasonUnhealthy), says("restarted: unhealthy"))), image, []seen{instance(1, Running)}, well, "wait RUNNING"},
		{"stopped since it is unhealthy, lost with the machine → start", declared(1, status(v1.Phase_PHASE_STOPPING, because(reasonUnhealthy), known(unwell))), image, []seen{instance(1, Ended)}, nil, "start again 1 STARTING machine"},
		{"a long run that was never healthy is no good run", declared(1, status(v1.Phase_PHASE_RUNNING, tries(3, "", -time.Hour), known(starting))), image, []seen{instance(1, Ended, exit(1, 0), longRun)}, nil, "wait BACK_OFF exit 800ms"},
		{"a long run that was healthy is", declared(1, status(v1.Phase_PHASE_RUNNING, tries(3, "", -time.Hour), known(healthy))), image, []seen{instance(1, Ended, exit(1, 0), longRun)}, nil, "wait BACK_OFF exit 100ms"},
		{"failures are kept while it starts", declared(1, status(v1.Phase_PHASE_RUNNING, tries(3, "", -time.Hour))), image, []seen{instance(1, Running)}, fresh, "wait RUNNING"},
		{"the old serves and is unhealthy → stop", declared(2, status(v1.Phase_PHASE_FAILED, tries(1, reasonImage, time.Second))), none, []seen{instance(1, Running)}, sick, "stop 1 FAILED image (1 runs)"},
		{"unhealthy, stopped by an operator", declared(2, stoppedByOperator), image, []seen{instance(1, Running)}, sick, "stop 1 STOPPING operator (1 runs)"},

		// Trial.
		{"well for the first time → trust", declared(1), image, []seen{instance(1, Running)}, func(w *world) { well(w); w.Healthy = 0 }, "trust 1 RUNNING (1 runs)"},
		{"not yet well", declared(1), image, []seen{instance(1, Running)}, func(w *world) { fresh(w); w.Healthy = 0 }, "wait RUNNING"},
		{"no check: trusted after a good run", declared(1), image, []seen{instance(1, Running, func(s *seen) { s.StartedAt = noon.Add(-3 * time.Second) })}, func(w *world) { w.Healthy = 0 }, "wait RUNNING 7s"},
		{"no check: a good run → trust", declared(1), image, []seen{instance(1, Running)}, func(w *world) { w.Healthy = 0 }, "trust 1 RUNNING (1 runs)"},
		{"ended well → trust", declared(1, restart("never"), status(v1.Phase_PHASE_RUNNING)), image, []seen{instance(1, Ended, exit(0, 0))}, func(w *world) { w.Healthy = 0 }, "trust 1 EXITED exit"},
		{"ended ill → no trust", declared(1, restart("never"), status(v1.Phase_PHASE_RUNNING)), image, []seen{instance(1, Ended, exit(1, 0))}, func(w *world) { w.Healthy = 0 }, "wait EXITED exit"},
		{"to be tried: started once", declared(2), image, []seen{old, instance(2, Prepared)}, trying(1, 0), "start once 2 STARTING"},
		{"not to be gone back from: started as ever", declared(2), image, []seen{old, instance(2, Prepared)}, trying(1, 0, forward), "start 2 STARTING"},
		{"on trial: the old is kept", declared(2), image, []seen{old, newer}, trying(2, 15*time.Second), "wait RUNNING 45s (trial)"},
		{"on trial: what is older goes", declared(3), image, []seen{old, instance(2, Ended), instance(3, Running)}, trying(3, 0), "remove 2 RUNNING (3 runs) (trial)"},
		{"passed → trust", declared(2), image, []seen{old, newer}, trying(2, 15*time.Second, well), "trust 2 RUNNING (2 runs) (trial)"},
		{"passed late → trust", declared(2), image, []seen{old, newer}, trying(2, time.Hour, well), "trust 2 RUNNING (2 runs) (trial)"},
		{"the same as what was healthy → trust", declared(2), image, []seen{old, newer}, trying(2, 0, same), "trust 2 RUNNING (2 runs)"},
		{"not to be gone back from: the old goes", declared(2), image, []seen{old, newer}, trying(2, 0, forward), "remove 1 RUNNING (2 runs)"},
		{"nothing is left to go back to", declared(2), image, []seen{newer}, trying(2, time.Hour), "wait RUNNING"},
		{"too late → back", declared(2), image, []seen{old, newer}, trying(2, time.Minute), "back 1 STOPPING rollback (2 runs)"},
		{"nothing was ever told, too late → back", declared(2), image, []seen{old, newer}, trying(2, time.Minute, nothingToldYet), "back 1 STOPPING rollback (2 runs)"},
		{"unhealthy → back", declared(2), image, []seen{old, newer}, trying(2, 0, sick), "back 1 STOPPING rollback (2 runs)"},
		{"unhealthy, only told → back", declared(2), image, []seen{old, newer}, trying(2, 0, sick, onlyTold), "back 1 STOPPING rollback (2 runs)"},
		{"unhealthy, not to be gone back from → heal", declared(2), image, []seen{newer}, trying(2, 0, sick, forward), "stop 2 STOPPING unhealthy (2 runs)"},
		{"ended on trial → back-off", declared(2, status(v1.Phase_PHASE_RUNNING)), image, []seen{old, instance(2, Ended, exit(1, 0))}, trying(2, 0), "wait BACK_OFF exit 100ms (trial)"},
		{"… at most until it is over", declared(2, status(v1.Phase_PHASE_RUNNING, tries(9, "", -time.Hour))), image, []seen{old, instance(2, Ended, exit(1, 0))}, trying(2, 50*time.Second), "wait BACK_OFF exit 10s (trial)"},
		{"… and starts", declared(2, status(v1.Phase_PHASE_BACK_OFF, tries(1, reasonExit, 0), func(s *v1.WorkloadStatus) { s.FinishedAt = timestamppb.New(noon) })), image, []seen{old, instance(2, Ended, exit(1, 0))}, trying(2, time.Second), "start again once 2 STARTING exit (trial)"},
		{"ends until it is over → back", declared(2, status(v1.Phase_PHASE_RUNNING)), image, []seen{old, instance(2, Ended, exit(1, 0))}, trying(2, time.Minute), "back 1 STOPPING rollback"},
		{"ended well on trial → trust", declared(2, restart("on-failure"), status(v1.Phase_PHASE_RUNNING)), image, []seen{old, instance(2, Ended, exit(0, 0))}, trying(2, 0), "trust 2 EXITED exit"},
		{"held on trial: the time is not its fault", declared(2, status(v1.Phase_PHASE_PENDING, because(reasonVolume), func(s *v1.WorkloadStatus) { s.FinishedAt = timestamppb.New(noon) })), image, []seen{old, instance(2, Ended, exit(1, 0))}, trying(2, time.Hour, held), "wait PENDING volume (trial)"},
		{"lost with the machine on trial → start", declared(2, status(v1.Phase_PHASE_RUNNING)), image, []seen{old, instance(2, Ended)}, trying(2, 0), "start again once 2 STARTING machine (trial)"},

		// Going back.
		{"given up → back", declared(2, backFrom(2)), image, []seen{old, newer}, trying(2, 0), "back 1 STOPPING rollback (2 runs)"},
		{"given up → stop", declared(2, backFrom(2)), image, []seen{old, newer}, trying(1, 0), "stop 2 STOPPING rollback (2 runs)"},
		{"stopped → start the old", declared(2, backFrom(2)), image, []seen{old, instance(2, Ended, exit(143, 0))}, trying(1, 0), "start old 1 STARTING rollback"},
		{"the old runs → remove what failed", declared(2, backFrom(2)), image, []seen{instance(1, Running), instance(2, Ended, exit(143, 0))}, trying(1, 0), "remove 2 FAILED rollback (1 runs)"},
		{"the old runs", declared(2, backFrom(2)), none, []seen{instance(1, Running)}, trying(1, 0), "wait FAILED rollback (1 runs)"},
		{"the old runs, and is unhealthy → heal", declared(2, backFrom(2)), none, []seen{instance(1, Running)}, trying(1, 0, sick), "stop 1 FAILED rollback (1 runs)"},
		{"the old does not start → wait", declared(2, backFrom(2)), none, []seen{old}, trying(1, 0, func(w *world) { w.OldRetry = noon.Add(4 * time.Second) }), "wait FAILED rollback 4s"},
		{"the old waits for its volume", declared(2, backFrom(2)), none, []seen{old}, trying(1, 0, func(w *world) { w.OldHeld = true }), "wait FAILED rollback"},
		{"the old waits for another", declared(2, backFrom(2)), none, []seen{old}, trying(1, 0, func(w *world) { w.OldWaits = true }), "wait FAILED rollback"},
		{"rolled back, and the machine went down → start the old", declared(2, backFrom(2)), none, []seen{instance(1, Prepared)}, trying(1, 0), "start old 1 STARTING rollback"},
		{"rolled back, and the runtime lost it → what is declared", declared(2, backFrom(2)), image, nil, trying(1, 0), "prepare 2 STARTING"},
		{"rolled back, then stopped", declared(3, stoppedByOperator, backFrom(2)), image, []seen{instance(1, Running)}, trying(1, 0), "stop 1 STOPPING operator (1 runs)"},
		{"rolled back, then deleted", declared(3, deletedByOperator, backFrom(2)), image, []seen{instance(1, Running)}, trying(1, 0), "stop 1 STOPPING (1 runs)"},
		{"rolled back, another spec: the old serves", declared(3, backFrom(2)), none, []seen{instance(1, Running)}, trying(1, 0), "pull 3 PULLING (1 runs)"},
		{"going back, another spec: the old serves while it is pulled", declared(3, backFrom(2)), none, []seen{old, instance(2, Ended)}, trying(1, 0), "start old 1 PENDING"},
		{"on trial, another spec that fails: what was healthy serves", declared(3, status(v1.Phase_PHASE_FAILED, tries(1, reasonImage, time.Second))), none, []seen{old, instance(2, Ended)}, trying(2, 0), "back 1 FAILED image"},
		{"stopped on trial: both are kept", declared(3, stoppedByOperator), image, []seen{old, instance(2, Ended, exit(143, 0))}, trying(2, 0), "wait STOPPED operator"},
		{"stopped on trial, after the machine went down", declared(3, stoppedByOperator), image, []seen{instance(1, Prepared), instance(2, Ended)}, trying(2, 0), "wait STOPPED operator"},

		// Dependencies.
		{"depends: prepared meanwhile", declared(1), image, nil, waits, "prepare 1 STARTING"},
		{"depends: waits", declared(1), image, []seen{instance(1, Prepared)}, waits, "wait PENDING dependency"},
		{"depends no more → start", declared(1, status(v1.Phase_PHASE_PENDING, because(reasonDependency))), image, []seen{instance(1, Prepared)}, nil, "start 1 STARTING"},
		{"depends: the old serves", declared(2), image, []seen{instance(2, Prepared), instance(1, Running)}, waits, "wait PENDING dependency (1 runs)"},
		{"depends: what runs goes on", declared(1), image, []seen{instance(1, Running)}, waits, "wait RUNNING"},
		{"depends after an end", declared(1, status(v1.Phase_PHASE_BACK_OFF, tries(1, reasonExit, 0), func(s *v1.WorkloadStatus) { s.FinishedAt = timestamppb.New(noon) })), image, []seen{instance(1, Ended, exit(1, 0))}, waits, "wait PENDING dependency"},
		{"depends no more after an end", declared(1, status(v1.Phase_PHASE_PENDING, because(reasonDependency), func(s *v1.WorkloadStatus) { s.FinishedAt = timestamppb.New(noon) })), image, []seen{instance(1, Ended, exit(1, 0))}, nil, "start again 1 STARTING dependency"},
		{"depends after a loss of power", declared(1, status(v1.Phase_PHASE_RUNNING)), image, []seen{instance(1, Ended)}, waits, "wait PENDING dependency"},
		{"still depends after it", declared(1, status(v1.Phase_PHASE_PENDING, because(reasonDependency))), image, []seen{instance(1, Ended)}, func(w *world) { waits(w); w.Served = 1 }, "wait PENDING dependency"},

		// Secrets.
		{"lacks a secret: prepared meanwhile", declared(1), image, nil, lacks, "prepare 1 STARTING"},
		{"lacks a secret: waits", declared(1), image, []seen{instance(1, Prepared)}, lacks, "wait PENDING secret"},
		{"lacks none any more → start", declared(1, status(v1.Phase_PHASE_PENDING, because(reasonSecret))), image, []seen{instance(1, Prepared)}, nil, "start 1 STARTING"},
		{"lacks a secret: the old serves", declared(2), image, []seen{instance(2, Prepared), instance(1, Running)}, lacks, "wait PENDING secret (1 runs)"},
		{"lacks a secret: what runs goes on", declared(1), image, []seen{instance(1, Running)}, lacks, "wait RUNNING"},
		{"lacks a secret after an end", declared(1, status(v1.Phase_PHASE_BACK_OFF, tries(1, reasonExit, 0), func(s *v1.WorkloadStatus) { s.FinishedAt = timestamppb.New(noon) })), image, []seen{instance(1, Ended, exit(1, 0))}, lacks, "wait PENDING secret"},
		{"lacks none any more after an end", declared(1, status(v1.Phase_PHASE_PENDING, because(reasonSecret), func(s *v1.WorkloadStatus) { s.FinishedAt = timestamppb.New(noon) })), image, []seen{instance(1, Ended, exit(1, 0))}, nil, "start again 1 STARTING secret"},
		{"lacks a secret after a loss of power", declared(1, status(v1.Phase_PHASE_RUNNING)), image, []seen{instance(1, Ended)}, lacks, "wait PENDING secret"},
		{"still lacks it after that", declared(1, status(v1.Phase_PHASE_PENDING, because(reasonSecret))), image, []seen{instance(1, Ended)}, func(w *world) { lacks(w); w.Served = 1 }, "wait PENDING secret"},

		// Operator.
		{"stop → stop what runs", declared(2, stoppedByOperator), image, []seen{instance(1, Running)}, nil, "stop 1 STOPPING operator (1 runs)"},
		{"stopped stays", declared(2, stoppedByOperator, restart("always")), image, []seen{instance(1, Ended, exit(143, 0))}, nil, "wait STOPPED operator"},
		{"stopped stays after a reboot", declared(2, stoppedByOperator, status(v1.Phase_PHASE_STOPPED)), image, []seen{instance(1, Ended)}, nil, "wait STOPPED operator"},
		{"stopped in back-off", declared(2, stoppedByOperator), image, []seen{instance(1, Ended, exit(1, 0))}, nil, "wait STOPPED operator"},
		{"stopped, what never ran is removed", declared(3, stoppedByOperator), image, []seen{instance(2, Prepared), instance(1, Ended)}, nil, "remove 2 STOPPING operator"},
		{"stopped, older files are removed", declared(3, stoppedByOperator), image, []seen{instance(1, Ended), instance(2, Ended)}, nil, "remove 1 STOPPING operator"},
		{"start → prepare anew", declared(3), image, []seen{instance(1, Ended, exit(143, 0))}, nil, "prepare 3 STARTING"},
		{"delete → stop", declared(2, deletedByOperator), image, []seen{instance(1, Running)}, nil, "stop 1 STOPPING (1 runs)"},
		{"delete → remove", declared(2, deletedByOperator), image, []seen{instance(1, Ended), instance(2, Prepared)}, nil, "remove 2 STOPPING"},
		{"delete, nothing left → forget", declared(2, deletedByOperator), image, nil, nil, "forget 2 STOPPING"},
		{"another object's instance runs → stop it first", declared(1), image, []seen{instance(4, Running, other)}, nil, "stop 4 STOPPING"},
		{"another object's instance → remove it first", declared(1), image, []seen{instance(1, Ended, other)}, nil, "remove 1 STOPPING"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := world{Object: test.obj, Seen: test.seen, ImageLocal: test.local, Available: true, Healthy: test.obj.Meta.Generation, Now: noon}
			if test.tweak != nil {
				test.tweak(&w)
			}
			if diff := cmp.Diff(test.want, show(decide(w))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// show is a decision as text.
func show(d decision) string {
	text := string(d.Step.Do)
	if d.Step.Again {
		text += " again"
	}
	if d.Step.Once {
		text += " once"
	}
	if d.Step.Do != stepWait {
		text += fmt.Sprint(" ", d.Step.ID.Generation)
	}
	text += " " + strings.TrimPrefix(d.Status.Phase.String(), "PHASE_")
	if d.Status.Reason != "" {
		text += " " + d.Status.Reason
	}
	if d.After > 0 {
		text += " " + d.After.String()
	}
	if run := d.Status.RunningGeneration; run > 0 && (d.Step.Do != stepWait || run != d.Status.Generation) {
		text += fmt.Sprintf(" (%d runs)", run)
	}
	if d.Status.OnTrial {
		text += " (trial)"
	}
	return text
}

// Each step that leads to a start needs the volumes of what is to start.
func TestDecideNamesVolumes(t *testing.T) {
	for _, test := range []struct {
		obj  *v1.Object
		seen []seen
		step verb
		want volumesOf
	}{
		{declared(1), nil, stepPrepare, ofWanted},
		{declared(1), []seen{instance(1, Prepared)}, stepStart, ofWanted},
		{declared(2), []seen{instance(1, Running), instance(2, Prepared)}, stepStop, ofWanted},
		{declared(1, status(v1.Phase_PHASE_RUNNING)), []seen{instance(1, Ended)}, stepStart, ofWanted},
		{declared(2, status(v1.Phase_PHASE_FAILED, tries(1, reasonConfig, time.Second))), []seen{instance(1, Ended)}, stepStartOld, ofServed},
		{declared(2), []seen{instance(1, Running), instance(2, Running)}, stepStop, ofNone},
		{declared(2, stoppedByOperator), []seen{instance(1, Running)}, stepStop, ofNone},
		{declared(1), []seen{instance(1, Running)}, stepWait, ofNone},
	} {
		d := decide(world{Object: test.obj, Seen: test.seen, ImageLocal: true, Available: true, Served: 1, Healthy: test.obj.Meta.Generation, Now: noon})
		if d.Step.Do != test.step || d.Volumes != test.want {
			t.Errorf("%s with volumes %d, want %s with %d", d.Step.Do, d.Volumes, test.step, test.want)
		}
	}
}

// What waits for a volume says what serves meanwhile.
func TestStatusWhileHeld(t *testing.T) {
	const why = "waits for volume \"photos\", which workload \"blog\" holds"
	for want, found := range map[string][]seen{why: nil, why + "; generation 1 keeps running": {instance(1, Running)}} {
		d := decide(world{Object: declared(2), Seen: found, ImageLocal: true, Available: true, Held: why, Now: noon})
		if d.Status.Message != want || d.Status.NextStartAt != nil {
			t.Errorf("%v, want %q", d.Status, want)
		}
	}
}

func TestStatusOfAnEnd(t *testing.T) {
	ended := instance(1, Ended, exit(137, 0), func(s *seen) { s.OOM = true })
	s := decide(world{Object: declared(1, status(v1.Phase_PHASE_RUNNING)), Seen: []seen{ended}, Available: true, Now: noon}).Status
	if s.GetExitCode() != 137 || !s.FinishedAt.AsTime().Equal(noon) || s.NextStartAt == nil ||
		s.Message != "killed at its memory limit (exit code 137)" || s.RunningGeneration != 0 {
		t.Error(s)
	}
}

// What a driver knows of an end, or of a run, stands in the message.
func TestStatusShowsNote(t *testing.T) {
	note := func(s *seen) { s.Note = "the guest's kernel panicked: out of ideas" }
	obj := declared(1, status(v1.Phase_PHASE_RUNNING))
	for want, i := range map[string]seen{
		"the guest's kernel panicked: out of ideas (exit code 137)": instance(1, Ended, exit(137, 0), note),
		"the guest's kernel panicked: out of ideas":                 instance(1, Running, note),
		"running": instance(1, Running),
	} {
		if s := decide(world{Object: obj, Seen: []seen{i}, Available: true, Now: noon}).Status; s.Message != want {
			t.Errorf("%q, want %q", s.Message, want)
		}
	}
}

func TestDelay(t *testing.T) {
	for failures, want := range map[uint32]time.Duration{0: 0, 1: 100 * time.Millisecond, 2: 200 * time.Millisecond, 5: 1600 * time.Millisecond, 20: backoffMax, 1 << 31: backoffMax} {
		if got := delay(backoffMin, failures); got != want {
			t.Errorf("after %d failures: %v, want %v", failures, got, want)
		}
	}
}

func TestFailed(t *testing.T) {
	s := failed(&v1.WorkloadStatus{Failures: 2}, reasonImage, "no", false, noon)
	if s.Failures != 3 || s.NextStartAt.AsTime() != noon.Add(4*time.Second) || s.Phase != v1.Phase_PHASE_FAILED {
		t.Error(s)
	}
	if s = failed(s, reasonConfig, "no user", true, noon); s.NextStartAt.AsTime() != noon.Add(4*time.Minute) {
		t.Error(s)
	}
}
