package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/console"
	"capsule/internal/server"
)

const (
	statusAfter  = 5 * time.Second  // of a start, which has better to do
	statusEvery  = 10 * time.Second // with a screen
	statusSeldom = 30 * time.Second // for serial lines alone
	statusGap    = time.Second      // from an event to a look, which sees those that follow it too
	statusEvents = 5
)

// watchConsole shows how the machine does on its consoles: at each event where there is
// a screen, and now and then.
func (d *daemon) watchConsole(ctx context.Context, o *server.Options) {
	for wait := statusAfter; ; {
		var happened <-chan struct{}
		if wait == statusEvery && d.store != nil {
			happened = d.store.EventAdded()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		case <-happened:
			select {
			case <-ctx.Done():
				return
			case <-time.After(statusGap):
			}
		}
		d.showStatus(o)
		if wait = statusSeldom; console.HasScreen() {
			wait = statusEvery
		}
	}
}

func (d *daemon) showStatus(o *server.Options) {
	info, objects, err := o.Overview()
	if err != nil {
		slog.Error("look at the machine for its console", "error", err)
		return
	}
	var events []*capsulev1.Event
	if d.store != nil {
		events = d.lastEvents()
	}
	console.ShowStatus(statusOf(info, objects, events))
}

func (d *daemon) lastEvents() []*capsulev1.Event {
	newest, err := d.store.NewestEvent()
	if err != nil {
		return nil
	}
	page, err := d.store.Events(newest-min(newest, statusEvents), statusEvents, nil)
	if err != nil {
		slog.Error("read events for the console", "error", err)
	}
	return page.Events
}

// told are problems that the console knows from the machine's state, and tells at once.
var told = map[string]bool{"mode": true, "network": true, "update": true}

// statusOf is what a screen shows of all that is known.
func statusOf(info *capsulev1.InfoResponse, objects []*capsulev1.Object, events []*capsulev1.Event) console.Status {
	s := console.Status{Up: info.GetTime().AsTime().Sub(info.GetBootedAt().AsTime()).Truncate(time.Minute)}
	bad := map[string]bool{}
	for _, p := range info.GetProblems() {
		name, ofWorkload := strings.CutPrefix(p.GetId(), "workload/")
		if ofWorkload {
			bad[name] = true
		}
		if p.GetSeverity() < capsulev1.Severity_SEVERITY_WARNING || told[p.GetId()] {
			continue
		}
		s.Problems = append(s.Problems, console.Problem{
			ID: p.GetId(), Critical: p.GetSeverity() == capsulev1.Severity_SEVERITY_CRITICAL, What: p.GetWhat(), Next: p.GetNext(), Loud: !ofWorkload,
		})
	}
	for i, text := range info.GetAddresses() {
		if a, err := netip.ParsePrefix(text); err == nil && i > 0 { // the first is in the state
			s.Addresses = append(s.Addresses, a.Addr().String())
		}
	}
	total, perm := info.GetMemoryTotal(), info.GetPermTotal()
	s.Fills = []console.Fill{
		{Name: "memory", Used: int64(total - min(info.GetMemoryAvailable(), total)), Size: int64(total)}, //nolint:gosec // bytes of a machine
		{Name: "storage", Used: int64(perm - min(info.GetPermFree(), perm)), Size: int64(perm)},          //nolint:gosec // as above
		{Name: "pool", Used: info.GetPool().GetUsed(), Size: info.GetPool().GetSize()},
	}
	for _, o := range objects {
		if w := o.GetWorkload(); w != nil {
			s.Workloads = append(s.Workloads, workloadOf(o, bad[o.GetMeta().GetName()], info.GetMode()))
		}
	}
	for _, e := range events {
		s.Events = append(s.Events, fmt.Sprintf("%s %s", e.GetTime().AsTime().UTC().Format("15:04"), e.GetMessage()))
	}
	return s
}

func workloadOf(o *capsulev1.Object, bad bool, mode capsulev1.Mode) console.Workload {
	status := o.GetWorkload().GetStatus()
	w := console.Workload{Name: o.GetMeta().GetName(), Bad: bad, Message: status.GetMessage()}
	if mode != capsulev1.Mode_MODE_NORMAL {
		w.State = "unknown" // a status is only a memory
		return w
	}
	w.State = strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(status.GetPhase().String(), "PHASE_"), "_", "-"))
	switch {
	case status.GetPhase() == capsulev1.Phase_PHASE_UNSPECIFIED:
		w.State = "pending"
	case status.GetHealth() == capsulev1.HealthState_HEALTH_STATE_UNHEALTHY:
		w.State, w.Message = "unhealthy", status.GetHealthMessage()
	}
	return w
}
