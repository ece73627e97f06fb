package drivertest

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/await"
	"capsule/internal/workload"
)

// replace: a change that does not become healthy, or can't be made, leaves what was
// healthy before, with its files (LIFE-05); one that does takes its place.
func (p *policies) replace(t *testing.T) {
	const name = "policy-replace"
	apply := func(generation uint64, command string, check string, until func(*v1.WorkloadStatus) bool) {
		t.Helper()
		p.declare(t, name, &v1.WorkloadSpec{
			Image: p.base.Name, Command: []string{command}, Args: []string{"sleep", "10h"}, Network: "none",
			Health: &v1.Health{
				Exec: []string{"/payload", check}, Interval: durationpb.New(time.Second), Timeout: durationpb.New(checkMax), Retries: 2,
				StartPeriod: durationpb.New(20 * time.Second), // an emulated machine takes its time
			},
		})
		p.until(t, name, func(status *v1.WorkloadStatus) bool { return status.GetGeneration() == generation && until(status) })
	}
	well := func(status *v1.WorkloadStatus) bool {
		return status.GetHealthyGeneration() == status.GetGeneration() && status.GetHealth() == v1.HealthState_HEALTH_STATE_HEALTHY
	}
	serves := func(status *v1.WorkloadStatus) bool {
		return status.GetPhase() == v1.Phase_PHASE_FAILED && status.GetRunningGeneration() == 1 && status.GetHealth() == v1.HealthState_HEALTH_STATE_HEALTHY
	}
	apply(1, "/payload", "true", well)
	first := p.runs(t, name)
	if code, _, errs := p.command(t, first, payload("write", "/note", "by the first")); code != 0 {
		t.Fatalf("code %d, %s", code, errs)
	}
	apply(2, "/payload", "false", func(status *v1.WorkloadStatus) bool {
		// Found unhealthy or, where a check takes long, not healthy in time.
		back := status.GetRolledBack()
		return (back == "unhealthy: exit code 1" || strings.HasPrefix(back, "not healthy within ")) && serves(status)
	})
	if now := p.runs(t, name); now != first {
		t.Fatalf("%v runs, %v was healthy", now, first)
	}
	if _, out, _ := p.command(t, first, payload("cat", "/note")); out != "by the first\n" {
		t.Errorf("its file is %q", out)
	}
	apply(3, "/nosuch", "true", serves)
	if now := p.runs(t, name); now != first {
		t.Errorf("%v runs, %v was healthy", now, first)
	}
	apply(4, "/payload", "true", well)
	p.onlyInstance(t, p.runs(t, name))
	if err := p.store.Delete("", name); err != nil {
		t.Fatal(err)
	}
	p.loop.Wake(name)
	p.until(t, name, nil)
}

// runs gives the running instance of a workload.
func (p *policies) runs(t *testing.T, name string) workload.ID {
	t.Helper()
	id, _, err := p.loop.Running(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// onlyInstance waits until nothing else is left of a workload.
func (p *policies) onlyInstance(t *testing.T, id workload.ID) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		list, err := p.driver.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(list, func(o workload.Observed) bool { return o.Name == id.Name && o.ID != id }) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("beside %v is left: %v", id, list)
		}
		if err := await.Pause(t.Context(), 200*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
}
