package main

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/store"
	"capsule/internal/workload"
)

// Only what an update must keep running counts, and only what the drivers see now.
func TestUnready(t *testing.T) {
	st, err := store.Open(filepath.Join(t.TempDir(), "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	declare := func(name string, required bool) *capsulev1.Object {
		results, err := st.Apply(t.Context(), []*capsulev1.Object{{
			Meta: &capsulev1.Meta{Kind: "Container", Name: name},
			Kind: &capsulev1.Object_Workload{Workload: &capsulev1.Workload{Spec: &capsulev1.WorkloadSpec{Image: "x", RequiredForUpdate: required}}},
		}}, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		o := results[0].GetObject()
		// What the version before this one left behind.
		if err := st.PutStatus(o.GetMeta().GetUid(), &capsulev1.WorkloadStatus{Generation: 1, RunningGeneration: 1, Phase: capsulev1.Phase_PHASE_RUNNING}); err != nil {
			t.Fatal(err)
		}
		return o
	}
	for _, name := range []string{"gone", "good", "old", "stopped"} {
		declare(name, true)
	}
	declare("idle", false)
	backOff := declare("restless", true)
	if err := st.PutStatus(backOff.GetMeta().GetUid(), &capsulev1.WorkloadStatus{Generation: 1, Phase: capsulev1.Phase_PHASE_BACK_OFF, Message: "ended"}); err != nil {
		t.Fatal(err)
	}
	for name, health := range map[string]capsulev1.HealthState{
		"sick": capsulev1.HealthState_HEALTH_STATE_UNHEALTHY, "slow": capsulev1.HealthState_HEALTH_STATE_STARTING, "well": capsulev1.HealthState_HEALTH_STATE_HEALTHY,
	} {
		if err := st.PutStatus(declare(name, true).GetMeta().GetUid(), &capsulev1.WorkloadStatus{
			Generation: 1, RunningGeneration: 1, Phase: capsulev1.Phase_PHASE_RUNNING, Health: health, HealthMessage: "exit code 1:\nno",
		}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := st.Mutate("stopped", "stopped", func(o *capsulev1.Object) error {
		o.GetWorkload().Intent = &capsulev1.Intent{Stopped: true}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	// What was rolled back stays so on the new system, and what runs in its place counts.
	for name, health := range map[string]capsulev1.HealthState{
		"rolled-back": capsulev1.HealthState_HEALTH_STATE_HEALTHY, "rolled-sick": capsulev1.HealthState_HEALTH_STATE_UNHEALTHY,
	} {
		declare(name, true)
		o, err := st.Mutate(name, "restarted", func(*capsulev1.Object) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		if err := st.PutStatus(o.GetMeta().GetUid(), &capsulev1.WorkloadStatus{
			Generation: 2, RunningGeneration: 1, HealthyGeneration: 1, RolledBack: "no", Phase: capsulev1.Phase_PHASE_FAILED, Health: health, HealthMessage: "no",
		}); err != nil {
			t.Fatal(err)
		}
	}
	got := unready(t.Context(), st, func(_ context.Context, name string) (workload.ID, workload.Driver, error) {
		switch name {
		case "gone", "idle", "stopped":
			return workload.ID{}, nil, errors.New(name + " is not running")
		case "old":
			return workload.ID{Name: name}, nil, nil
		}
		return workload.ID{Name: name, Generation: 1}, nil, nil
	})
	want := []string{
		"gone is not running",
		`workload "old" runs as it was declared before, not as it is now: `,
		`workload "restless" does not run yet: ended`,
		`workload "rolled-sick" is unhealthy: no`,
		`workload "sick" is unhealthy: exit code 1: no`,
		`workload "slow" is not healthy yet: exit code 1: no`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestSinceBegun(t *testing.T) {
	for begun, want := range map[string]time.Duration{"1ms": time.Millisecond, "": 0, "x": 0, "-5s": 0, "9999999h": 0} {
		if took := uptime() - sinceBegun(begun)(); took < want-time.Second || took > want+time.Second {
			t.Errorf("%q: %v before, want %v", begun, took, want)
		}
	}
}
