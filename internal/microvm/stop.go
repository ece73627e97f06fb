package microvm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	guestv1 "capsule/api/capsule/guest/v1"
	"capsule/internal/instance"
	"capsule/internal/workload"
)

// Stop ends a running instance, by the signal or after the grace by force. Its
// disks are written out, unless the guest does not do even that.
func (d *Driver) Stop(ctx context.Context, id workload.ID, signal int, grace time.Duration) error {
	record := instance.RecordID(id)
	defer d.records.Lock(record)()
	_, err := d.records.Get(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	m, err := d.adopt(record)
	if err == nil && m != nil {
		err = m.stop(ctx, signal, grace)
	}
	if err != nil {
		return fmt.Errorf("stop workload %q: %w", id.Name, err)
	}
	return nil
}

// stop returns when nothing runs and the record says how it ended.
func (m *vm) stop(ctx context.Context, signal int, grace time.Duration) error {
	asking, cancel := context.WithTimeout(ctx, grace+m.driver.pace.stop)
	defer cancel()
	answer := make(chan error, 1)
	go func() {
		_, err := m.agent.Stop(asking, &guestv1.StopRequest{Signal: int32(signal), GraceMs: grace.Milliseconds()}, grpc.WaitForReady(true))
		answer <- err
	}()
	select {
	case <-m.ended:
	case err := <-answer:
		if err != nil && ctx.Err() == nil && !m.over() {
			slog.Warn("a guest does not stop, its machine is ended", "workload", m.ID.Name, "error", refused(ctx, err))
			m.force(ctx)
		}
	case <-ctx.Done():
	}
	return m.settled(ctx)
}

// settled waits until nothing is left of a machine that ends.
func (m *vm) settled(ctx context.Context) error {
	if within(ctx, m.done, m.driver.pace.settle()) {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("its machine (process %d) does not end: %w", m.qemu.PID, errdefs.ErrUnavailable)
}

// Remove ends what runs and removes the record, the view of the image and the
// disk.
func (d *Driver) Remove(ctx context.Context, id workload.ID) error {
	record := instance.RecordID(id)
	defer d.records.Lock(record)()
	_, err := d.records.Get(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err == nil {
		err = d.remove(ctx, record, id)
	}
	if err != nil {
		return fmt.Errorf("remove workload %q: %w", id.Name, err)
	}
	return nil
}

func (d *Driver) remove(ctx context.Context, record string, id workload.ID) error {
	m, err := d.adopt(record)
	if err != nil {
		return err
	}
	if m != nil {
		if err := m.stop(ctx, int(syscall.SIGKILL), 0); err != nil {
			return err
		}
	}
	// The record last: while it is there, a remove that was cut off is repeated.
	if err := errors.Join(os.RemoveAll(d.diskDir(record)), os.RemoveAll(d.runDir(record))); err != nil {
		return err
	}
	return d.records.Delete(ctx, id)
}

// sweep removes disks that no record knows: a prepare was cut off.
func (d *Driver) sweep(ctx context.Context, all []containers.Container) {
	known := map[string]bool{}
	for _, c := range all {
		known[c.ID] = true
	}
	entries, err := os.ReadDir(d.opts.Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		slog.Warn("look for disks of former microVMs", "error", err)
	}
	for _, e := range entries {
		if known[e.Name()] {
			continue
		}
		unlock := d.records.TryLock(e.Name())
		if unlock == nil {
			continue
		}
		_, err := d.client.ContainerService().Get(ctx, e.Name())
		if errdefs.IsNotFound(err) {
			err = os.RemoveAll(filepath.Join(d.opts.Dir, e.Name()))
		}
		if err != nil {
			slog.Warn("remove the disk of a former microVM", "record", e.Name(), "error", err)
		}
		unlock()
	}
}
