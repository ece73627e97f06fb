package pid1

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// What a tentative system is given, on the monotonic clock.
const (
	windowDefault = 10 * time.Minute    // from serve's first start, until serve names its own
	windowMax     = 31 * 24 * time.Hour // that serve may name
	daemonFirst   = 15 * time.Second    // after the window: the daemon knows better why
	readyMax      = 3 * time.Minute     // from serve's first start to READY=1
	crashesMax    = 5                   // ends of serve before READY=1, or within crashSpan
	crashSpan     = 2 * time.Minute
	silenceMax    = time.Minute // between two WATCHDOG=1
	hangsMax      = 3
	hangSpan      = 15 * time.Minute // hangs that lie further apart aren't in a row
	standstill    = 15 * time.Second // between two questions: the machine stood still, as one that is paused
)

// A trial judges the running system by what serve does and says. It has no effect
// of its own: PID 1 tells it what happened, asks it each turn, and acts.
//
//	unknown ── the other slot waits ──▶ tentative ── CAPSULE_CONFIRMED=1 ──▶ settled
//	   │   └── no other slot, or the entry isn't counted ──────────────────▶ settled
//	   └── the entry is counted, and the boot partition can't be read ──▶ doubtful, until it can
//
// Only a tentative system is given up, and a doubtful one at the end of the default
// window: nobody can confirm it, and the loader has tries left to go back by. A serve
// that hangs is ended in any.
type trial struct {
	standing standing
	window   time.Duration // 0 until serve names it
	recovery string        // why there's no normal mode

	begun   time.Duration // serve's first start
	started bool
	running bool
	ready   bool          // said in this boot
	heard   bool          // from the serve that runs
	sign    time.Duration // when it was heard last, or started
	how     string        // serve ended last
	asked   time.Duration // when it was asked last whether serve hangs

	ends, hangs []time.Duration // the last crashesMax, hangsMax
}

type standing int

const (
	unknown standing = iota
	doubtful
	tentative
	settled
)

// serveStarts is told before each start of serve.
func (t *trial) serveStarts(now time.Duration) {
	if !t.started {
		t.started, t.begun = true, now
	}
	t.running, t.heard, t.sign = true, false, now
}

func (t *trial) serveEnded(now time.Duration, how string) {
	t.running, t.how = false, how
	t.ends = lastOf(append(t.ends, now), crashesMax)
}

// hear takes what serve says; what isn't known says nothing.
func (t *trial) hear(now time.Duration, text string) {
	key, value, _ := strings.Cut(text, "=")
	switch key {
	case "READY":
		t.ready = true
		t.heard, t.sign = true, now
	case "WATCHDOG":
		t.heard, t.sign = true, now
	case "CAPSULE_WINDOW":
		if s, err := strconv.ParseFloat(value, 64); err == nil && s > 0 && s <= windowMax.Seconds() {
			t.window = time.Duration(s * float64(time.Second))
		}
	case "CAPSULE_CONFIRMED":
		t.standing = settled
	case "CAPSULE_RECOVERY":
		t.recovery = value
	}
}

// hung tells, once for each silence, that serve has to be ended. Before its first
// sign it may take as long as it likes, but for the second start of a tentative one.
// Time in which nobody could ask, nobody could answer either.
func (t *trial) hung(now time.Duration) bool {
	if gap := now - t.asked; gap > standstill {
		t.sign = min(now, t.sign+gap)
	}
	t.asked = now
	limit := silenceMax
	if !t.heard {
		if t.standing != tentative {
			return false
		}
		limit = readyMax
	}
	if !t.running || now-t.sign < limit {
		return false
	}
	t.sign = now // one that can't even be killed hangs once more
	t.hangs = lastOf(append(t.hangs, now), hangsMax)
	return true
}

// givenUp says why the system must give way to the one before; "" while it may stay.
func (t *trial) givenUp(now time.Duration) string {
	if t.standing == doubtful && t.started && now-t.begun >= windowDefault {
		return fmt.Sprintf("its boot partition could not be read for %v, so that nobody could confirm it", windowDefault)
	}
	if t.standing != tentative {
		return ""
	}
	switch {
	case t.recovery != "":
		return "it came up in recovery mode: " + t.recovery
	case !t.ready && len(t.ends) == crashesMax:
		return fmt.Sprintf("its daemon ended %d times before it was ready, at last with %q", crashesMax, t.how)
	case within(t.ends, crashesMax, crashSpan):
		return fmt.Sprintf("its daemon ended %d times within %v, at last with %q", crashesMax, crashSpan, t.how)
	case !t.ready && t.started && now-t.begun >= readyMax:
		return fmt.Sprintf("its daemon was not ready %v after it was started", readyMax)
	case within(t.hangs, hangsMax, hangSpan):
		return fmt.Sprintf("its API did not answer for %v, %d times in a row", silenceMax, hangsMax)
	case t.started && now >= t.end()+daemonFirst:
		return fmt.Sprintf("not confirmed within %v, and its daemon did not see to that", t.end()-t.begun)
	}
	return ""
}

// end of the window, which begins with serve's first start: a check of /perm that
// took its time before that is no fault of the system.
func (t *trial) end() time.Duration { return t.begun + cmp.Or(t.window, windowDefault) }

// within tells whether the last n of what happened lie within a span.
func within(times []time.Duration, n int, span time.Duration) bool {
	return len(times) >= n && times[len(times)-1]-times[len(times)-n] <= span
}

func lastOf(times []time.Duration, n int) []time.Duration {
	return slices.Clone(times[max(0, len(times)-n):])
}
