package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/bundle"
	"capsule/internal/disk"
	"capsule/internal/server"
	"capsule/internal/store"
	"capsule/internal/update"
	"capsule/internal/version"
	"capsule/internal/workload"
)

const (
	begunVar    = "CAPSULE_BEGUN" // from when on a tentative system's time counts, since the kernel's start
	showEvery   = 10 * time.Second
	unreadyMax  = 5 * time.Second // to ask what runs
	noticeBytes = 1024            // of a text for process 1
)

// newUpdates makes what replaces the system. In recovery mode it only goes back: the
// other system may read what this one can't.
func (d *daemon) newUpdates() (*update.Manager, error) {
	keys, err := bundle.LoadPublicKeys(bundle.KeysDir)
	if err != nil {
		slog.Error("read the keys of releases: no update will be taken", "error", err)
	}
	var bucket *store.Bucket
	if d.machine.normal() {
		bucket = d.store.Bucket("updates")
	}
	return update.New(update.Options{
		Bucket: bucket, Machine: updated{d.machine, d}, Keys: keys,
		Version: version.Version, BuiltUnix: version.BuildTime().Unix(), Architecture: runtime.GOARCH,
		Log: slog.Default(), Event: d.noteUpdate, Uptime: sinceBegun(os.Getenv(begunVar)),
	})
}

// sinceBegun tells how long ago this role was first started in this boot: a long
// check of the disk before that takes nothing off a tentative system's time.
func sinceBegun(begun string) func() time.Duration {
	from, err := time.ParseDuration(begun)
	if err != nil || from < 0 || from > uptime() {
		from = 0
	}
	return func() time.Duration { return uptime() - from }
}

// noteUpdate keeps what became of an update where operators look for events.
func (d *daemon) noteUpdate(kind, text string) {
	slog.Info("update", "event", kind, "text", text)
	d.note(kind, text)
}

// watchUpdate watches a tentative system until it's confirmed or rolled back, and
// shows how long it has.
func (d *daemon) watchUpdate(ctx context.Context) {
	over := make(chan struct{})
	go func() {
		defer close(over)
		repeat(ctx, "watch the update", d.updates.Run)
	}()
	tick := time.NewTicker(showEvery)
	defer tick.Stop()
	for watched := true; ; {
		left := time.Duration(0)
		if t := d.updates.Tentative(); t != nil {
			left = max(t.GetLeft().AsDuration(), time.Second) // 0 means confirmed
		}
		d.machine.update(func(s *shown) { s.left = left })
		if !watched {
			return
		}
		select {
		case <-tick.C:
		case <-over:
			watched = false
		case <-ctx.Done():
			return
		}
	}
}

// updated is the machine as an update sees it.
type updated struct {
	*machine
	d *daemon
}

func (u updated) Boot() disk.Boot         { return u.boot }
func (u updated) Normal() bool            { return u.normal() }
func (u updated) Addressed() bool         { return len(u.uplink().Addresses) > 0 }
func (u updated) Reboot(why string) error { return u.Power(server.Reboot, why) }
func (u updated) Tell(text string) error  { return notify(text) }

// Unready says what doesn't run: the parts that all workloads need, the API, and
// the workloads that an update must keep running.
func (u updated) Unready() (out []string) {
	if !u.d.announced.Load() {
		return []string{"containerd does not answer yet, or the network of workloads is not made"}
	}
	if u.d.silent.Load() {
		out = append(out, "the API does not answer")
	}
	loop := u.d.loop.Load()
	if loop == nil {
		return append(out, "workloads are not taken up yet")
	}
	ctx, cancel := context.WithTimeout(context.Background(), unreadyMax)
	defer cancel()
	return append(out, unready(ctx, u.d.store, loop.Running)...)
}

// unready goes by what the drivers see: a status may be older than this boot. What
// an operator stopped, or deletes, isn't wanted.
func unready(ctx context.Context, st *store.Store, running func(context.Context, string) (workload.ID, workload.Driver, error)) (out []string) {
	objs, err := st.List("")
	if err != nil {
		return []string{fmt.Sprintf("what is declared can't be read: %v", err)}
	}
	for _, o := range objs {
		w := o.GetWorkload()
		if !w.GetSpec().GetRequiredForUpdate() || w.GetIntent().GetStopped() || o.GetMeta().GetDeletedAt() != nil {
			continue
		}
		name, status := o.GetMeta().GetName(), w.GetStatus()
		id, _, err := running(ctx, name)
		switch {
		case err != nil:
			out = append(out, strings.TrimSuffix(err.Error(), ": "+errdefs.ErrFailedPrecondition.Error()))
		case store.GivenUp(o) && id.Generation == status.GetHealthyGeneration(): // and stays so, updated or not
			out = append(out, unwell(name, status)...)
		case id.Generation != o.GetMeta().GetGeneration():
			out = append(out, fmt.Sprintf("workload %q runs as it was declared before, not as it is now: %s", name, status.GetMessage()))
		case status.GetPhase() != capsulev1.Phase_PHASE_RUNNING: // it has just been started, and may end again
			out = append(out, fmt.Sprintf("workload %q does not run yet: %s", name, status.GetMessage()))
		default:
			out = append(out, unwell(name, status)...)
		}
	}
	return out
}

// unwell says what the checks of what runs say against it.
func unwell(name string, status *capsulev1.WorkloadStatus) []string {
	is := map[capsulev1.HealthState]string{
		capsulev1.HealthState_HEALTH_STATE_STARTING:  "is not healthy yet",
		capsulev1.HealthState_HEALTH_STATE_UNHEALTHY: "is unhealthy",
	}[status.GetHealth()]
	if is == "" {
		return nil
	}
	return []string{strings.TrimSuffix(fmt.Sprintf("workload %q %s: %s", name, is, oneLine(status.GetHealthMessage())), ": ")}
}

// oneLine fits a text into a notice.
func oneLine(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	return text[:min(len(text), noticeBytes)]
}
