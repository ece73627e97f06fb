package pid1

import (
	"context"
	"errors"
	"time"

	"capsule/internal/await"
	"capsule/internal/lastboot"
	"capsule/internal/slot"
	"capsule/internal/version"
)

const (
	lookEach   = 10 * time.Second // while the boot partition can't be read
	lookMax    = 20 * time.Second
	condemnMax = 20 * time.Second
	reasonMax  = 10 * time.Second
)

// lookStanding finds out whether the running system is tentative, as often as it
// takes. Until then nothing is blessed and nothing given up.
func (m *machine) lookStanding(ctx context.Context) {
	for said := false; ; said = true {
		is, err := slot.Tentative(m.boot)
		if err == nil {
			found := settled
			if is {
				found = tentative
				m.log.important("this version is tentative: it's rolled back unless it's confirmed")
			}
			m.tell(ctx, found)
			return
		}
		if !said {
			m.log.important("look whether this version is tentative: %v", err)
			if counted, _ := slot.Counted(); counted {
				m.tell(ctx, doubtful)
			}
		}
		if await.Pause(ctx, lookEach) != nil {
			return
		}
	}
}

// tell brings the main loop what was found out.
func (m *machine) tell(ctx context.Context, found standing) {
	select {
	case m.found <- found:
	case <-ctx.Done():
	}
}

// judge acts on the trial; true when the machine has to restart.
func (m *machine) judge() bool {
	now := uptime()
	if m.trial.hung(now) {
		m.log.important("the API has not answered for %v: starting it again", silenceMax)
		m.serve.abort()
	}
	why := m.trial.givenUp(now)
	if why == "" {
		return false
	}
	if m.confirmedMeanwhile() {
		m.trial.standing = settled
		m.log.important("this version stays, for it is confirmed, although %s", why)
		return false
	}
	m.log.important("rolling back: %s", why)
	if err := m.giveUp(why); errors.Is(err, slot.ErrConfirmed) {
		m.trial.standing = settled
		m.log.important("this version stays, for it was confirmed in the last moment")
		return false
	}
	m.going(lastboot.Restart, "version %s was on trial and is given up: %s", version.Version, why)
	return true
}

// confirmedMeanwhile asks the boot entry itself: a serve that confirmed, or gave the
// system up, may have died before it could say so.
func (m *machine) confirmedMeanwhile() bool {
	still := false
	err := m.attend(task{limit: lookMax, do: func() error {
		is, err := slot.Tentative(m.boot)
		if err != nil || is {
			still = is
			return err
		}
		return slot.Bless(m.boot) // nothing to do, or the entry is gone
	}})
	if err != nil {
		m.log.important("look whether this version is confirmed: %v", err)
	}
	return err == nil && !still
}

// giveUp leaves the other slot alone to be started. Without the boot partition the
// loader's own count has the last word: each restart takes one try. ErrConfirmed says
// that it was confirmed meanwhile; a reason that was left means nothing to a system
// that runs on.
func (m *machine) giveUp(why string) (err error) {
	for _, t := range []task{
		{name: "note why", limit: reasonMax, do: func() error { return m.noteReason(slot.ReasonFile, why) }},
		{name: "give up the boot entry", limit: condemnMax, do: func() error { return slot.GiveUp(m.boot) }},
	} {
		if err = m.attend(t); err != nil {
			m.log.important("%s: %v", t.name, err)
		}
	}
	return err
}

// noteReason is for the next version's history. Without /perm there's no place for
// it, and in recovery mode nothing is written there.
func (m *machine) noteReason(file, why string) error {
	if m.reason != "" {
		return nil
	}
	return slot.Reason{Slot: m.boot.Slot, Version: version.Version, Reason: why, Time: time.Now().UTC()}.Leave(file)
}
