// Package workload makes Containers and MicroVMs be as declared. It owns the
// decision what to do next (decide, a pure function), the loop that does it,
// and the Driver interface that hides the kind. It never changes a spec or an
// intent, and it keeps no truth of its own: instances are what drivers list,
// everything else is the object with its status.
//
// An instance belongs to one generation of one object. Every change that an
// operator asks for (apply, start, stop, restart) makes a new generation and so
// a new instance; its writable layer lasts until its replacement runs. A
// restart after an end or a reboot starts the same instance again.
//
// States of the wanted generation; an older one serves until "stop old":
//
//	          no image            image               prepared
//	PENDING ───(pull)──▶ PULLING ──────▶ STARTING ─────(prepare)────▶ prepared
//	   ▲                    │               │                            │
//	   │ new generation     └────error──────┴──▶ FAILED ◀────error──┐  (stop old)
//	   │                          ▲                │ wait, try again │     │
//	 any state                    └────────────────┘                 │     ▼
//	                                                                 └─(start)
//	                  wait over: (start)                                   │
//	      ┌──────────────────────────────────────────────▶ RUNNING ◀──────┘
//	   BACK_OFF ◀──ended, restart policy says again──────────┤  (remove old)
//	                                                         │
//	   EXITED ◀────ended, restart policy says no more────────┤
//	                                                         │
//	   STOPPED ◀──(stop)── STOPPING ◀──operator's stop, any state
//	   gone ◀──(forget)◀──(remove)◀──(stop)── STOPPING ◀──delete, any state
//
// PENDING: accepted, not looked at yet; or held, with the reason "volume": it
// waits for a volume, before it is prepared or started; or with the reason
// "dependency" or "secret": it waits for another workload, or for a value of a secret,
// before it is started. PULLING: its image is fetched; only
// when the reference is not local, so a moved tag needs a new reference or an
// image push. STARTING: its instance is made or started. RUNNING: it runs.
// BACK_OFF: it ended and waits for its next start. EXITED: it ended for good.
// FAILED: it can't be made or started; the message says why. STOPPING,
// STOPPED: by an operator, through restarts of daemon and machine.
//
// What runs is checked by package health, where it has a check: STARTING, HEALTHY,
// UNHEALTHY are told beside the phase, of the very run that is RUNNING. What is
// unhealthy, and is to be restarted then, is stopped, and its end judged as a
// failure:
//
//	RUNNING ──unhealthy──▶ STOPPING, reason "unhealthy" ──(stop)──▶ BACK_OFF
//
// That it was is known by that reason alone, so that a cut between the stop and
// the judgement loses nothing. A run with a check is good when it was healthy.
//
// What was healthy last is kept, ended, while another spec or image that replaces it
// is on trial, where that has a check and is to be gone back from:
//
//	RUNNING ──healthy──▶ (trust) ──▶ (remove old)
//	RUNNING ──unhealthy, or time over──┐
//	BACK_OFF ──time over───────────────┤
//	(start) ──error────────────────────┴▶ STOPPING ──(back, stop)──▶ STARTING ──(start old)──▶ FAILED
//
// all with the reason "rollback". That it was given up is in the status from then on
// and ends with the next generation. Which generation is trusted, and which serves,
// is in the store before anything is stopped or removed for it.
//
// A workload holds the volumes that it mounts from before its instance is made
// until it is stopped, has ended for good, or mounts them no more and nothing of
// it runs that does; they are mounted just before a start, when an older
// generation has ended. One that waits for a volume holds none for it.
//
// Instances of another object of the same name are stopped and removed before
// anything else. Two instances of a workload never run at once.
package workload

import (
	"math"
	"time"
)

// Bounds of time; the manual quotes them.
const (
	// backoffMin doubles with each start that did not last, up to backoffMax.
	backoffMin = 100 * time.Millisecond
	backoffMax = 5 * time.Minute
	// retryMin is the first wait after a failed pull, prepare or start: the
	// cause is outside of the workload and rarely gone at once.
	retryMin = time.Second
	// retryPermanent is the first wait when the same try can't go better: only
	// a pushed image or a new spec helps.
	retryPermanent = 30 * time.Second
	// goodRun resets the back-off. Ten seconds tell a program that serves from
	// one that dies in its start-up, and bound a program that dies after each
	// good run to six starts a minute.
	goodRun = 10 * time.Second
	// GraceMax bounds the time between the stop signal and SIGKILL.
	GraceMax = 5 * time.Minute
)

// delay is first for one failure and doubles with each more, up to backoffMax.
func delay(first time.Duration, failures uint32) time.Duration {
	if failures == 0 {
		return 0
	}
	d := float64(first) * math.Pow(2, float64(failures-1))
	return time.Duration(min(d, float64(backoffMax)))
}
