package workload

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
)

// waits says which of the workloads that an object depends on it has to wait for,
// "" for none, and whether the generation that served before has to.
func (l *Loop) waits(obj, before *v1.Object, m *memory) (wanted string, old bool, err error) {
	names, oldNames := obj.GetWorkload().GetSpec().GetDependsOn(), before.GetWorkload().GetSpec().GetDependsOn()
	// Whoever changes from here on has us looked at again.
	m.await(slices.Concat(names, oldNames))
	if wanted, err = l.waitsFor(names); err != nil {
		return "", false, err
	}
	oldText, err := l.waitsFor(oldNames)
	if wanted == "" && oldText == "" && err == nil {
		m.await(nil)
	}
	return wanted, oldText != "", err
}

// waitsFor says which of some workloads has to be waited for, "" for none. What
// this daemon has not looked at yet counts as not there: its status may be older
// than the machine's last start.
func (l *Loop) waitsFor(names []string) (string, error) {
	for _, name := range names {
		other, err := l.opts.Store.Get("", name)
		if err != nil && !errdefs.IsNotFound(err) {
			return "", err
		}
		if text := l.notReady(other); text != "" {
			return fmt.Sprintf("waits for workload %q, which %s", name, text), nil
		}
	}
	return "", nil
}

// await says by whose changes a workload is to be woken.
func (m *memory) await(names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dependsOn = names
}

// notReady says why others have to wait for a workload, "" when they need not.
func (l *Loop) notReady(obj *v1.Object) string {
	status := obj.GetWorkload().GetStatus()
	switch {
	case obj == nil:
		return "is not declared"
	case obj.Meta.DeletedAt != nil:
		return "is being deleted"
	case obj.GetWorkload().GetIntent().GetStopped():
		return "is stopped by an operator"
	case !l.remember(obj.Meta.Name).looked.Load():
		return "is not looked at yet"
	case status.GetPhase() == v1.Phase_PHASE_EXITED && status.GetExitCode() == 0 && status.GetGeneration() == obj.Meta.Generation:
		return "" // it has done its work
	case status.GetRunningGeneration() == 0:
		return "does not run: " + phaseText(status)
	case status.GetHealth() == v1.HealthState_HEALTH_STATE_STARTING:
		return "is not healthy yet"
	case status.GetHealth() == v1.HealthState_HEALTH_STATE_UNHEALTHY:
		return "is unhealthy"
	}
	return ""
}

// wakeDependents has those looked at again that depend on a workload.
func (l *Loop) wakeDependents(name string) {
	l.mu.Lock()
	var waiting []string
	for other, m := range l.memory {
		m.mu.Lock()
		if slices.Contains(m.dependsOn, name) {
			waiting = append(waiting, other)
		}
		m.mu.Unlock()
	}
	l.mu.Unlock()
	for _, other := range waiting {
		l.Wake(other)
	}
}

// looked notes that a workload's status is not older than this daemon.
func (l *Loop) looked(name string, m *memory) {
	if !m.looked.Swap(true) {
		l.wakeDependents(name)
	}
}
