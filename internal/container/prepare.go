package container

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"

	"capsule/internal/instance"
	"capsule/internal/workload"
)

const runtimeName = "io.containerd.runc.v2"

// Prepare makes the container of an instance. It looks into the image, so that
// one without the user or the program is refused while the old one serves.
func (d *Driver) Prepare(ctx context.Context, in workload.Instance) error {
	id := instance.RecordID(in.ID)
	defer d.records.Lock(id)()
	if _, err := d.records.Get(ctx, in.ID); !errdefs.IsNotFound(err) {
		return err
	}
	if err := d.prepare(ctx, id, in); err != nil {
		return fmt.Errorf("prepare workload %q: %w", in.Name, err)
	}
	return nil
}

func (d *Driver) prepare(ctx context.Context, id string, in workload.Instance) error {
	if len(in.Args) == 0 {
		return fmt.Errorf("no program is named, neither by the image nor by the manifest: %w", errdefs.ErrInvalidArgument)
	}
	// The lease keeps snapshots from the garbage collector until the container
	// refers to them.
	ctx, release, err := d.client.WithLease(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = release(context.WithoutCancel(ctx)) }()
	began := time.Now()
	who, err := d.records.Check(ctx, in)
	if err != nil {
		return err
	}
	checked := time.Now()
	if err := d.snapshot(ctx, id, in); err != nil {
		return err
	}
	if err := d.create(ctx, in, who); err != nil {
		return err
	}
	slog.Info("prepared workload", "name", in.Name, "generation", in.Generation,
		"check", took(began, checked), "snapshot", took(checked, time.Now()))
	return nil
}

// snapshot makes the instance's writable layer, with its bound. One that a cut left is
// empty, and bounded again.
func (d *Driver) snapshot(ctx context.Context, id string, in workload.Instance) error {
	mounts, err := d.records.Snapshots().Prepare(ctx, id, in.Image.ChainID)
	if errdefs.IsAlreadyExists(err) {
		mounts, err = d.records.Snapshots().Mounts(ctx, id)
	}
	if err != nil {
		return err
	}
	return d.bound(id, mounts, in.Resources)
}

// took is a time for the log.
func took(from, to time.Time) time.Duration { return to.Sub(from).Round(time.Millisecond) }

// create writes the container to containerd's store.
func (d *Driver) create(ctx context.Context, in workload.Instance, who instance.Accounts) error {
	spec, err := typeurl.MarshalAny(d.spec(in, who.Program))
	if err != nil {
		return err
	}
	runc, err := typeurl.MarshalAny(d.runcOptions(in))
	if err != nil {
		return err
	}
	return d.records.Create(ctx, in, containers.Container{
		Runtime: containers.RuntimeInfo{Name: runtimeName, Options: runc},
		Spec:    spec,
		Labels:  instance.OwnerLabels(who.Files),
	})
}
