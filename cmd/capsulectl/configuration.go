package main

import (
	"fmt"
	"strings"
	"time"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

// isConfiguration tells the object that the machine is configured by.
func isConfiguration(o *capsulev1.Object) bool { return o.GetMeta().GetKind() == manifest.KindCapsule }

var capsulePhaseNames = map[capsulev1.CapsulePhase]string{
	capsulev1.CapsulePhase_CAPSULE_PHASE_PENDING: "pending", capsulev1.CapsulePhase_CAPSULE_PHASE_READY: "ready",
	capsulev1.CapsulePhase_CAPSULE_PHASE_TRYING: "trying", capsulev1.CapsulePhase_CAPSULE_PHASE_RESTART: "restart",
	capsulev1.CapsulePhase_CAPSULE_PHASE_FAILED: "failed",
}

// configurationState is how far the machine is what was declared: a word, and a
// sentence.
func configurationState(o *capsulev1.Object) (state, message string) {
	s := o.GetCapsule().GetStatus()
	state, message = capsulePhaseNames[s.GetPhase()], s.GetMessage()
	if state == "" {
		state = "pending"
	}
	if s.GetGeneration() < o.GetMeta().GetGeneration() {
		message = notLookedAt(message)
	}
	return state, message
}

var configurationColumns = []string{"CAPSULE", "HOSTNAME", "NETWORK", "STATE", "AGE", "MESSAGE"}

func configurationRow(o *capsulev1.Object, now time.Time) []string {
	m, c := o.GetMeta(), o.GetCapsule()
	state, message := configurationState(o)
	hostname := c.GetStatus().GetHostname()
	if hostname == "" {
		hostname = c.GetSpec().GetHostname()
	}
	return []string{m.GetName(), hostname, networkText(c.GetSpec().GetNetwork()), state, age(m.GetCreatedAt().AsTime(), now), message}
}

// networkText is what is declared of the network in a few words.
func networkText(n *capsulev1.CapsuleNetwork) string {
	var words []string
	for _, l := range n.GetLinks() {
		words = append(words, l.GetAddresses()...)
	}
	if len(words) == 0 {
		return "automatic"
	}
	return strings.Join(words, ", ")
}

// untilConfigured wants all in force that is not for the next restart.
func untilConfigured(t target, o *capsulev1.Object, deleted bool) (bool, error) {
	s := o.GetCapsule().GetStatus()
	switch {
	case deleted || s.GetGeneration() < t.generation:
		return false, nil
	case s.GetPhase() == capsulev1.CapsulePhase_CAPSULE_PHASE_READY, s.GetPhase() == capsulev1.CapsulePhase_CAPSULE_PHASE_RESTART:
		return true, nil
	case s.GetPhase() == capsulev1.CapsulePhase_CAPSULE_PHASE_FAILED:
		return false, &failure{exitFailed, fmt.Errorf("the configuration of the capsule: %s", s.GetMessage()), "it is tried again by itself; \"capsulectl get capsule\" shows how it stands"}
	}
	return false, nil
}
