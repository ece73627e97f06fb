package microvm

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"

	"capsule/internal/instance"
	"capsule/internal/jail"
	"capsule/internal/workload"
)

// List returns every instance. It asks no guest, so a silent one holds nobody
// up. Machines that another daemon started are taken over.
func (d *Driver) List(ctx context.Context) ([]workload.Observed, error) {
	all, err := d.records.List(ctx)
	if err != nil {
		return nil, err
	}
	d.swept.Do(func() { d.sweep(ctx, all) })
	var list []workload.Observed
	for _, c := range all {
		o, ok := instance.Observed(c.Labels)
		if !ok {
			continue
		}
		m, err := d.find(c)
		if err != nil {
			// It must not hide all others; its next start meets the same and shows it.
			slog.Warn("take over a machine", "workload", o.Name, "error", err)
		}
		if o, ok = d.observe(ctx, o, m); ok {
			list = append(list, o)
		}
	}
	return list, nil
}

// observe corrects what labels tell by the machine; false when the record went
// away meanwhile.
func (d *Driver) observe(ctx context.Context, o workload.Observed, m *vm) (workload.Observed, bool) {
	o.Emulated = d.opts.Emulated != ""
	if m == nil {
		return o, true
	}
	select {
	case <-m.done:
		c, err := d.records.Get(ctx, o.ID)
		if err != nil {
			return o, false
		}
		ended, ok := instance.Observed(c.Labels)
		ended.Emulated = o.Emulated
		return ended, ok
	default:
	}
	o.State, o.StartedAt = workload.Running, m.Started
	o.ExitCode, o.FinishedAt, o.OOM, o.Note = 0, time.Time{}, false, ""
	if d.opts.Nested {
		o.Note = "emulated inside a machine that is emulated itself: all is slow"
	}
	return o, true
}

// find gives the machine of a record, taking over one that another daemon
// started; nil when none runs, or somebody is about to start or end it.
func (d *Driver) find(c containers.Container) (*vm, error) {
	if m := d.current(c.ID); m != nil {
		return m, nil
	}
	unlock := d.records.TryLock(c.ID)
	if unlock == nil {
		return d.current(c.ID), nil
	}
	defer unlock()
	return d.adopt(c.ID)
}

// adopt does so for who holds the record's lock.
func (d *Driver) adopt(record string) (*vm, error) {
	if m := d.current(record); m != nil {
		return m, nil
	}
	qemu, err := jail.Find(d.file(record, lockFile))
	if err != nil {
		return nil, err
	}
	f, err := d.facts(record)
	if qemu == nil {
		if err == nil { // it ended while no daemon was there
			d.clear(record, f)
		}
		return nil, nil
	}
	if err != nil || !f.Running {
		// It may stand still yet, and nobody was told that it runs.
		slog.Warn("end a machine whose start was cut off by the daemon's end", "record", record, "pid", qemu.PID)
		if err := d.destroy(qemu); err != nil {
			return nil, err
		}
		d.clear(record, f)
		return nil, nil
	}
	m, err := d.hold(record, qemu, f)
	if err != nil {
		return nil, err
	}
	slog.Info("took over a machine", "workload", f.ID.Name, "generation", f.ID.Generation, "pid", qemu.PID)
	return m, d.enter(m)
}

// destroy ends a QEMU that is of no use.
func (d *Driver) destroy(qemu *jail.Process) error {
	if err := qemu.Kill(); err != nil {
		return err
	}
	if !within(d.life, qemu.Done(), killMax) {
		return fmt.Errorf("QEMU (process %d) does not end, a disk may not answer: %w", qemu.PID, errdefs.ErrUnavailable)
	}
	return nil
}

// confirm notes that the payload runs.
func (m *vm) confirm(ctx context.Context) error {
	if err := m.driver.records.Started(ctx, m.record, m.Started, m.LogDir); err != nil {
		return fmt.Errorf("note the start: %w", err)
	}
	m.Running = true
	return m.driver.keep(m.record, m.facts)
}
