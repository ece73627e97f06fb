package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

// kinds as written in commands, to those of objects.
var kinds = map[string]string{
	"container": "Container", "containers": "Container",
	"microvm": "MicroVM", "microvms": "MicroVM",
	"volume": manifest.KindVolume, "volumes": manifest.KindVolume,
	"secret": manifest.KindSecret, "secrets": manifest.KindSecret,
	"capsule": manifest.KindCapsule, "capsules": manifest.KindCapsule,
	"workload": "", "workloads": "",
}

func isVolume(o *capsulev1.Object) bool { return o.GetMeta().GetKind() == manifest.KindVolume }

// parseKind reads a kind as an operator writes it; "" is a workload of either.
func parseKind(s string) (string, error) {
	kind, ok := kinds[strings.ToLower(s)]
	if !ok {
		return "", &failure{exitUsage, fmt.Errorf("unknown kind %q", s), "kinds are container, microvm, volume, secret, capsule, and workload (a container or a microvm)"}
	}
	return kind, nil
}

// nameOf is an object in one word, as "-o name" prints it and commands take it.
func nameOf(m *capsulev1.Meta) string {
	return strings.ToLower(m.GetKind()) + "/" + m.GetName()
}

// kindAndName reads "KIND NAME" or "KIND/NAME".
func kindAndName(args []string) (kind, name string, err error) {
	if len(args) == 1 {
		k, n, ok := strings.Cut(args[0], "/")
		if !ok || n == "" {
			kind, err = parseKind(args[0])
			return kind, "", err
		}
		args = []string{k, n}
	}
	kind, err = parseKind(args[0])
	return kind, args[1], err
}

var phaseNames = map[capsulev1.Phase]string{
	capsulev1.Phase_PHASE_PENDING: "pending", capsulev1.Phase_PHASE_PULLING: "pulling",
	capsulev1.Phase_PHASE_STARTING: "starting", capsulev1.Phase_PHASE_RUNNING: "running",
	capsulev1.Phase_PHASE_BACK_OFF: "back-off", capsulev1.Phase_PHASE_STOPPING: "stopping",
	capsulev1.Phase_PHASE_STOPPED: "stopped", capsulev1.Phase_PHASE_EXITED: "exited",
	capsulev1.Phase_PHASE_FAILED: "failed",
}

// healthNames are empty for what has no check, or does not run.
var healthNames = map[capsulev1.HealthState]string{
	capsulev1.HealthState_HEALTH_STATE_STARTING:  "starting",
	capsulev1.HealthState_HEALTH_STATE_HEALTHY:   "healthy",
	capsulev1.HealthState_HEALTH_STATE_UNHEALTHY: "unhealthy",
}

// oneLine is a text of several lines as one.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

func phaseName(p capsulev1.Phase) string {
	if name := phaseNames[p]; name != "" {
		return name
	}
	return "pending"
}

// joinState is a state and what is to be said about it, in one line.
func joinState(state, message string) string {
	if message == "" || message == state {
		return state
	}
	return state + ": " + message
}

// objectView lists objects in every form: workloads, volumes, secrets, and the machine
// itself. YAML is the manifests, which can be applied again but for secrets; JSON is
// all that the capsule tells.
func objectView(objects []*capsulev1.Object, now time.Time) (view, error) {
	slices.SortStableFunc(objects, func(a, b *capsulev1.Object) int {
		return strings.Compare(a.GetMeta().GetName(), b.GetMeta().GetName())
	})
	place := func(o *capsulev1.Object) int {
		switch {
		case isVolume(o):
			return 1
		case isSecret(o):
			return 2
		case isConfiguration(o):
			return 3
		}
		return 0
	}
	slices.SortStableFunc(objects, func(a, b *capsulev1.Object) int { return place(a) - place(b) })
	v := view{columns: workloadColumns}
	tables := []*view{&v} // by place, up to the last that holds something
	if len(objects) > 0 {
		for _, columns := range [][]string{volumeColumns, secretColumns, configurationColumns}[:place(objects[len(objects)-1])] {
			below := &view{columns: columns}
			tables[len(tables)-1].below = below
			tables = append(tables, below)
		}
	}
	for _, o := range objects {
		document, err := manifest.Encode(o)
		if err != nil {
			return v, err
		}
		v.yaml = append(v.yaml, document)
		v.values = append(v.values, o)
		v.names = append(v.names, nameOf(o.GetMeta()))
		row := []func(*capsulev1.Object, time.Time) []string{workloadRow, volumeRow, secretRow, configurationRow}[place(o)]
		table := tables[place(o)]
		table.rows = append(table.rows, row(o, now))
	}
	return v, nil
}

var workloadColumns = []string{"NAME", "KIND", "IMAGE", "STATE", "HEALTH", "RESTARTS", "VOLUMES", "AGE", "MESSAGE"}

func workloadRow(o *capsulev1.Object, now time.Time) []string {
	m, w := o.GetMeta(), o.GetWorkload()
	state, message := workloadState(o)
	var volumes []string
	for _, mount := range w.GetSpec().GetMounts() {
		volumes = append(volumes, mount.GetVolume())
	}
	return []string{
		m.GetName(), m.GetKind(), w.GetSpec().GetImage(), state, healthNames[w.GetStatus().GetHealth()], fmt.Sprint(w.GetStatus().GetRestarts()),
		strings.Join(volumes, ", "), age(m.GetCreatedAt().AsTime(), now), message,
	}
}

// workloadState is where a workload stands: a word, and a sentence.
func workloadState(o *capsulev1.Object) (state, message string) {
	m, s := o.GetMeta(), o.GetWorkload().GetStatus()
	state, message = phaseName(s.GetPhase()), s.GetMessage()
	switch {
	case m.GetDeletedAt() != nil:
		state = "deleting"
	case s.GetGeneration() < m.GetGeneration():
		message = notLookedAt(message)
	case s.GetRunningGeneration() != 0 && s.GetRunningGeneration() < s.GetGeneration() && s.GetPhase() != capsulev1.Phase_PHASE_RUNNING &&
		!strings.Contains(message, "keeps running") && s.GetRolledBack() == "":
		message += " (the one before runs on)"
	}
	return state, message
}

// notLookedAt adds to the message of a status that a newer generation waits.
func notLookedAt(message string) string {
	return strings.TrimPrefix(message+"; change not looked at yet", "; ")
}

// list joins names in a sentence.
func list(names []string) string {
	slices.Sort(names)
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}

// must is for flags that were defined a line above.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
