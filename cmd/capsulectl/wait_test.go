package main

import (
	"testing"

	capsulev1 "capsule/api/capsule/v1"
)

// What ends a wait for a running workload, and how.
func TestUntilRuns(t *testing.T) {
	code := func(n int32) *int32 { return &n }
	for name, tc := range map[string]struct {
		status *capsulev1.WorkloadStatus
		done   bool
		failed bool
	}{
		"of an older generation": {&capsulev1.WorkloadStatus{Generation: 1, Phase: capsulev1.Phase_PHASE_FAILED}, false, false},
		"starting":               {&capsulev1.WorkloadStatus{Generation: 2, Phase: capsulev1.Phase_PHASE_STARTING}, false, false},
		"an older one runs":      {&capsulev1.WorkloadStatus{Generation: 2, Phase: capsulev1.Phase_PHASE_RUNNING, RunningGeneration: 1}, false, false},
		"runs":                   {&capsulev1.WorkloadStatus{Generation: 2, Phase: capsulev1.Phase_PHASE_RUNNING, RunningGeneration: 2}, true, false},
		"not healthy yet":        {&capsulev1.WorkloadStatus{Generation: 2, Phase: capsulev1.Phase_PHASE_RUNNING, RunningGeneration: 2, Health: capsulev1.HealthState_HEALTH_STATE_STARTING}, false, false},
		"healthy":                {&capsulev1.WorkloadStatus{Generation: 2, Phase: capsulev1.Phase_PHASE_RUNNING, RunningGeneration: 2, Health: capsulev1.HealthState_HEALTH_STATE_HEALTHY}, true, false},
		"unhealthy":              {&capsulev1.WorkloadStatus{Generation: 2, Phase: capsulev1.Phase_PHASE_RUNNING, RunningGeneration: 2, Health: capsulev1.HealthState_HEALTH_STATE_UNHEALTHY}, false, true},
		"an older one is sick":   {&capsulev1.WorkloadStatus{Generation: 2, Phase: capsulev1.Phase_PHASE_PULLING, RunningGeneration: 1, Health: capsulev1.HealthState_HEALTH_STATE_UNHEALTHY}, false, false},
		"waits for another":      {&capsulev1.WorkloadStatus{Generation: 2, Phase: capsulev1.Phase_PHASE_PENDING, Reason: "dependency"}, false, false},
		"ended well":             {&capsulev1.WorkloadStatus{Generation: 2, Phase: capsulev1.Phase_PHASE_EXITED, ExitCode: code(0)}, true, false},
		"ended badly":            {&capsulev1.WorkloadStatus{Generation: 2, Phase: capsulev1.Phase_PHASE_EXITED, ExitCode: code(3)}, false, true},
		"crashed":                {&capsulev1.WorkloadStatus{Generation: 2, Phase: capsulev1.Phase_PHASE_BACK_OFF, Reason: "exit"}, false, true},
		// Right after a boot, the status is that of before.
		"went down with the capsule": {&capsulev1.WorkloadStatus{Generation: 2, Phase: capsulev1.Phase_PHASE_BACK_OFF, Reason: "machine"}, false, false},
	} {
		obj := &capsulev1.Object{
			Meta: &capsulev1.Meta{Kind: "Container", Name: "web", Uid: "u", Generation: 2},
			Kind: &capsulev1.Object_Workload{Workload: &capsulev1.Workload{Status: tc.status}},
		}
		done, err := untilRuns(targetOf(obj), obj, false)
		if done != tc.done || (err != nil) != tc.failed {
			t.Errorf("%s: done %v, %v", name, done, err)
		}
	}
}
