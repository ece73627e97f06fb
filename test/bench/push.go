package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"time"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/lab"
	"capsule/internal/qemu"
)

const pushMethod = `A push of the next version, of which one Go package differs, to a machine of 1 GiB and two processors, without
the restart; then the restart. The used memory is that of Memory, of the whole machine, five times a second; written
is what QEMU counts of the disk. Downtime is from the last answer of the API to the first one, asked once a second;
plain is a restart without an update before it. Seconds of this computer, so that its load counts: the share is what
to look at.`

// updated is a machine on which updates are measured, with what it is watched by.
type updated struct {
	*lab.Machine
	*watch
	monitor *qemu.Monitor
	plain   outage // of a restart without an update
}

// forUpdates starts a machine, and restarts it once for comparison.
func (b *bench) forUpdates(ctx context.Context, name string) (u *updated, err error) {
	u = &updated{}
	if u.Machine, err = b.up(ctx, lab.Options{Name: name, MemoryBytes: 1024 * mib, CPUs: 2}); err != nil {
		return u, err
	}
	if u.monitor, err = qemu.Dial(ctx, u.Sockets+"/qmp.sock"); err != nil {
		return u, err
	}
	if u.watch, err = startWatch(ctx, u.Machine, u.monitor.Events()); err != nil {
		return u, err
	}
	if _, err := b.ctl(u.Machine, "capsule", "reboot"); err != nil {
		return u, err
	}
	u.plain, err = u.back(ctx, func(*capsulev1.InfoResponse) bool { return true })
	return u, err
}

func (b *bench) endUpdates(ctx context.Context, u *updated) {
	if u.monitor != nil {
		_ = u.monitor.Close() // the machine goes next
	}
	if u.Machine != nil {
		b.discard(ctx, u.Machine)
	}
}

// sentLine is what the push says at its end.
var sentLine = regexp.MustCompile(`sent (.*) of (.*); (.*) were there already`)

func (b *bench) pushUpdate(ctx context.Context) error {
	built, err := b.built(ctx)
	if err != nil {
		return err
	}
	next, err := b.changed(ctx, built, "package", changedFile, changedSource)
	if err != nil {
		return err
	}
	u, err := b.forUpdates(ctx, "push")
	defer b.endUpdates(ctx, u)
	if err != nil {
		return err
	}
	head("What", "Measured", "Goal")
	if err := b.tellPush(ctx, u, next); err != nil {
		return err
	}
	if _, err := b.ctl(u.Machine, "capsule", "reboot"); err != nil {
		return err
	}
	down, err := u.back(ctx, func(i *capsulev1.InfoResponse) bool { return i.GetVersion() == next.Manifest.Version })
	if err != nil {
		return err
	}
	row("downtime of the update", wholeSeconds(down.down()), "one restart")
	row("the same of a plain restart", wholeSeconds(u.plain.down()), "")
	row("update's share", fmt.Sprintf("%.2f", down.down().Seconds()/u.plain.down().Seconds()), "")
	return nil
}

// tellPush installs a bundle and prints what that cost.
func (b *bench) tellPush(ctx context.Context, u *updated, s *system) error {
	idle, err := b.settled(ctx, u.Machine)
	if err != nil {
		return err
	}
	before, err := written(ctx, u.monitor)
	if err != nil {
		return err
	}
	stop, err := u.peak(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	_, notes, err := b.ctlNotes(u.Machine, "capsule", "update", "push", "--no-reboot", s.path)
	took := time.Since(began)
	peak, peakErr := stop()
	if err := errors.Join(err, peakErr); err != nil {
		return err
	}
	after, err := written(ctx, u.monitor)
	if err != nil {
		return err
	}
	sent := sentLine.FindStringSubmatch(notes)
	if sent == nil {
		return fmt.Errorf("the push does not tell what it sent: %s", notes)
	}
	row("time of the push", wholeSeconds(took), "")
	row("sent, of "+sent[2], sent[1], "")
	row("taken from what the capsule has", sent[3], "")
	row("written to the disk, all in all", fmt.Sprintf("%.1f MiB", float64(after-before)/mib), "")
	row("**used memory above idle, at most**", fmt.Sprintf("%.1f MiB", peak-idle), "≤ 64 MiB")
	return nil
}

func wholeSeconds(d time.Duration) string { return fmt.Sprintf("%.0f s", d.Seconds()) }

// written is what was written to the disk since QEMU started, in bytes.
func written(ctx context.Context, monitor *qemu.Monitor) (int64, error) {
	var all []struct {
		Device string `json:"device"`
		Stats  struct {
			Written int64 `json:"wr_bytes"`
		} `json:"stats"`
	}
	var answer json.RawMessage
	if err := monitor.Do(ctx, "query-blockstats", nil, &answer); err != nil {
		return 0, err
	}
	if err := json.Unmarshal(answer, &all); err != nil {
		return 0, fmt.Errorf("query-blockstats: %w", err)
	}
	for _, d := range all {
		if d.Device == "disk" {
			return d.Stats.Written, nil
		}
	}
	return 0, fmt.Errorf("query-blockstats tells of no disk: %s", answer)
}
