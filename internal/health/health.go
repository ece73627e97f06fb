// Package health tells whether what runs also works: it makes the checks that
// workloads declare, again and again, and draws the conclusions. It never changes
// anything; what becomes of an unhealthy workload is decided by others.
//
//	           success                    failures as many as retries
//	STARTING ────────────▶ HEALTHY ────────────────────────────▶ UNHEALTHY
//	   │                      ▲            (each counts)            ▲  │
//	   │                      └──────────────success────────────────┼──┘
//	   └──failures as many as retries, counted once an interval─────┘
//
// STARTING: no check succeeded yet. It is looked at every start interval, so that
// a quick start is seen quickly; failures count when the start period is over, and
// at most one an interval, so that a slow start gets as much time as the interval
// and the retries say. HEALTHY: the last check succeeded, or not as many as
// retries failed since. UNHEALTHY: they did; a success ends it.
//
// A check that could not be made (the runtime is away, the workload has just
// ended) says nothing and changes nothing.
package health

import (
	"time"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

// A Check is what is looked at, and when: exactly one of Exec, HTTP and TCP.
type Check struct {
	Exec []string // program and arguments
	HTTP *HTTP
	TCP  uint16 // port

	Interval      time.Duration
	Timeout       time.Duration
	StartPeriod   time.Duration
	StartInterval time.Duration
	Retries       uint32
}

// HTTP is a GET request.
type HTTP struct {
	Port   uint16
	Path   string // with its query
	Scheme string
}

// Of gives the check that a spec declares, with defaults filled in; ok is false
// when there is none.
func Of(h *v1.Health) (c Check, ok bool) {
	if h == nil || h.GetNone() {
		return Check{}, false
	}
	c = Check{
		Exec: h.GetExec(), TCP: uint16(h.GetTcp().GetPort()),
		Interval:      or(h.GetInterval().AsDuration(), manifest.HealthInterval),
		Timeout:       or(h.GetTimeout().AsDuration(), manifest.HealthTimeout),
		StartInterval: or(h.GetStartInterval().AsDuration(), manifest.HealthStartInterval),
		StartPeriod:   h.GetStartPeriod().AsDuration(),
		Retries:       h.GetRetries(),
	}
	c.StartInterval = min(c.StartInterval, c.Interval)
	if c.Retries == 0 {
		c.Retries = manifest.HealthRetries
	}
	if web := h.GetHttp(); web != nil {
		c.HTTP = &HTTP{Port: uint16(web.GetPort()), Path: web.GetPath(), Scheme: web.GetScheme()}
	}
	return c, len(c.Exec) > 0 || c.HTTP != nil || c.TCP != 0
}

func or(d, absent time.Duration) time.Duration {
	if d <= 0 {
		return absent
	}
	return d
}

// Result of one check.
type Result struct {
	OK bool
	// Void tells that the check could not be made; the text says why.
	Void bool
	// Text is what it said: "exit code 1: …"; at most TextMax bytes.
	Text string
}

// Progress is where a workload stands after the checks so far.
type Progress struct {
	State v1.HealthState
	// Failures in a row that count.
	Failures uint32
	// Looked is how many checks were made while starting.
	Looked int
	// Counted is when the last failure counted while starting.
	Counted time.Time
}

// After is the progress after one more check, at now, of what was started at a
// time.
func (p Progress) After(c Check, started, now time.Time, r Result) Progress {
	if p.State == v1.HealthState_HEALTH_STATE_UNSPECIFIED {
		p.State = v1.HealthState_HEALTH_STATE_STARTING
	}
	starting := p.State == v1.HealthState_HEALTH_STATE_STARTING
	if starting {
		p.Looked++
	}
	switch {
	case r.Void:
		return p
	case r.OK:
		return Progress{State: v1.HealthState_HEALTH_STATE_HEALTHY}
	case p.State == v1.HealthState_HEALTH_STATE_UNHEALTHY:
		return p
	case starting:
		last := p.Counted
		if end := started.Add(c.StartPeriod); last.Before(end) {
			last = end
		}
		if now.Sub(last) < c.Interval {
			return p
		}
		p.Counted = now
	}
	if p.Failures++; p.Failures >= c.Retries {
		return Progress{State: v1.HealthState_HEALTH_STATE_UNHEALTHY, Failures: p.Failures}
	}
	return p
}

// firstLook is when the first check of a start is made; the next ones come after
// twice the time each, up to the start interval.
const firstLook = 500 * time.Millisecond

// Next is how long to wait for the next check.
func (p Progress) Next(c Check) time.Duration {
	switch p.State {
	case v1.HealthState_HEALTH_STATE_HEALTHY, v1.HealthState_HEALTH_STATE_UNHEALTHY:
		return c.Interval
	}
	return min(c.StartInterval, firstLook<<min(p.Looked, 10))
}
