package workload

import (
	"fmt"
	"time"

	"golang.org/x/time/rate"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/store"
)

// What a workload does by itself, again and again for weeks, must not drive all else
// out of the ring of events: of each type it has toldBurst, then one after each
// toldAgain, and the same sentence is told once in that time.
const (
	toldAgain = time.Hour
	toldBurst = 20
)

// told is what was last made an event, by type.
type told map[string]*toldType

type toldType struct {
	text string
	at   time.Time
	left *rate.Limiter
}

// news is what of a change of status is to be told; a restart of the daemon
// changes none, and so tells nothing. What an operator has changed begins anew.
func (t told) news(old, status *v1.WorkloadStatus, now time.Time) (list []store.Happening) {
	if g := old.GetGeneration(); g != 0 && g != status.GetGeneration() {
		clear(t)
	}
	for _, h := range happened(old, status) {
		if t.allows(h, now) {
			list = append(list, h)
		}
	}
	return list
}

func (t told) allows(h store.Happening, now time.Time) bool {
	last := t[h.Type]
	if last == nil {
		last = &toldType{left: rate.NewLimiter(rate.Every(toldAgain), toldBurst)}
		t[h.Type] = last
	}
	since := now.Sub(last.at)
	if last.text == h.Text && since >= 0 && since < toldAgain || !last.left.AllowN(now, 1) {
		return false
	}
	last.text, last.at = h.Text, now
	return true
}

// happened are the turns of a workload's life, by its status before and after: it
// runs, it ended, it can't run.
func happened(old, status *v1.WorkloadStatus) (list []store.Happening) {
	if at := status.GetFinishedAt(); at != nil && !at.AsTime().Equal(old.GetFinishedAt().AsTime()) {
		list = append(list, ended(status))
	}
	runs := func(s *v1.WorkloadStatus) bool {
		return s.GetPhase() == v1.Phase_PHASE_RUNNING && s.GetRunningGeneration() == s.GetGeneration()
	}
	again := !status.GetStartedAt().AsTime().Equal(old.GetStartedAt().AsTime()) || status.GetGeneration() != old.GetGeneration()
	if runs(status) && (again || !runs(old)) {
		list = append(list, store.Happening{Type: "running", Text: fmt.Sprintf("runs, generation %d", status.GetGeneration())})
	}
	if status.GetRolledBack() != "" && (old.GetRolledBack() == "" || old.GetGeneration() != status.GetGeneration()) {
		list = append(list, store.Happening{Type: reasonRollback, Text: fmt.Sprintf("generation %d %s", status.GetGeneration(), goneBack(status))})
	}
	if broken := status.GetPhase() == v1.Phase_PHASE_FAILED && status.GetRolledBack() == ""; broken && (old.GetPhase() != v1.Phase_PHASE_FAILED || old.GetMessage() != status.GetMessage()) {
		list = append(list, store.Happening{Type: "failed", Text: status.GetMessage()})
	}
	return append(list, turned(old, status)...)
}

func ended(status *v1.WorkloadStatus) store.Happening {
	h := store.Happening{Type: "ended", Text: fmt.Sprintf("ended with exit code %d", status.GetExitCode())}
	switch status.GetPhase() {
	case v1.Phase_PHASE_BACK_OFF, v1.Phase_PHASE_EXITED: // with the cause of its end
		h.Text = status.GetMessage()
	case v1.Phase_PHASE_STOPPED, v1.Phase_PHASE_STOPPING:
		h.Text += ", as an operator stopped it"
	}
	if status.GetReason() == reasonOOM {
		h.Type = "oom"
	}
	return h
}
