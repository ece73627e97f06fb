package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"golang.org/x/time/rate"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/uplink"
	"capsule/internal/version"
)

// machineEvery is between looks at what is told of the machine itself.
const machineEvery = 10 * time.Second

// A link that comes and goes for weeks must not drive all else out of the ring of
// events: after uplinkBurst changes one is told after each uplinkAgain.
const (
	uplinkAgain = 15 * time.Minute
	uplinkBurst = 20
)

// capsuleObject stands for the machine in events.
func (d *daemon) capsuleObject() *capsulev1.Object {
	return &capsulev1.Object{Meta: &capsulev1.Meta{Kind: "Capsule", Name: d.machine.called()}}
}

// note keeps an event of the machine's. In recovery mode there is nowhere to.
func (d *daemon) note(kind, text string) {
	if !d.machine.normal() {
		return
	}
	if err := d.store.Note(d.capsuleObject(), kind, text); err != nil {
		slog.Error("keep event", "error", err)
	}
}

// noteStart tells a boot from a service that was started again.
func (d *daemon) noteStart() {
	if n := d.machine.starts; n > 1 {
		d.note("service-started", fmt.Sprintf("its service was started again, %d times since the boot", n-1))
		return
	}
	d.note("booted", fmt.Sprintf("booted version %s from %s", version.Version, d.machine.boot.Slot))
}

// noteStep tells why times of events may not be in the order of their numbers.
func (d *daemon) noteStep(offset time.Duration, server string) {
	d.note("clock-set", clockText(offset, server))
}

func clockText(offset time.Duration, server string) string {
	way := "forward"
	if offset < 0 {
		way = "back"
	}
	return fmt.Sprintf("its clock was set %s by %v, by time server %s", way, offset.Abs().Round(time.Millisecond), server)
}

// watchMachine tells of the machine's addresses and of the space for its state.
func (d *daemon) watchMachine(ctx context.Context) {
	tick := time.NewTicker(machineEvery)
	defer tick.Stop()
	var uplinks uplinkNews
	var fill permFill
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if text := uplinkText(d.machine.uplink()); uplinks.turn(text, time.Now()) {
			if err := d.store.NoteChange(d.capsuleObject(), "uplink", text); err != nil {
				slog.Error("keep event", "error", err)
			}
		}
		if kind, text := fill.turn(permSpace()); kind != "" {
			d.note(kind, text)
		}
	}
}

// uplinkNews is what was last told of the uplinks.
type uplinkNews struct {
	said string
	left *rate.Limiter
}

// turn tells whether a sentence is to be told; one that is not is asked for again.
func (u *uplinkNews) turn(text string, now time.Time) bool {
	if u.left == nil {
		u.left = rate.NewLimiter(rate.Every(uplinkAgain), uplinkBurst)
	}
	if text == u.said || !u.left.AllowN(now, 1) {
		return false
	}
	u.said = text
	return true
}

func uplinkText(s uplink.State) string {
	if len(s.Addresses) == 0 {
		return strings.TrimSuffix("has no address: "+s.Message, ": ")
	}
	var list []string
	for _, a := range s.Addresses {
		list = append(list, a.String())
	}
	return "has " + strings.Join(list, ", ")
}

// permLevels are told when so many percent of /perm are used, the worst first.
var permLevels = []struct {
	percent uint64
	kind    string
}{{97, "perm-full"}, {90, "perm-critical"}, {80, "perm-warn"}}

// permCalm is how many points below a level it counts as left: what is written to
// at the level would tell of it for ever.
const permCalm = 2

// permFill is the level of /perm that was told last, "" for none.
type permFill string

// turn is the event of a level that changed; "" for none.
func (f *permFill) turn(total, free uint64) (kind, text string) {
	if total == 0 {
		return "", ""
	}
	used := (total - min(free, total)) * 100 / total
	now := ""
	for _, l := range permLevels {
		if used >= l.percent || string(*f) == l.kind && used+permCalm >= l.percent {
			now = l.kind
			break
		}
	}
	if now == string(*f) {
		return "", ""
	}
	*f = permFill(now)
	text = fmt.Sprintf("/perm, which holds the state, images and logs, is %d %% full (%d of %d MiB)", used, (total-min(free, total))>>20, total>>20)
	if now == "" {
		return "perm-ok", text + ": enough is free again"
	}
	return now, text + "; \"capsulectl image prune\" frees what no workload uses"
}
