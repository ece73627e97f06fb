package main

import (
	"context"
	"fmt"
	"log/slog"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/storage"
)

// newDisks looks after the disks of this boot.
func (d *daemon) newDisks() (*storage.Manager, error) {
	return storage.New(storage.Options{
		Store: d.store, Boot: d.machine.boot, Sysfs: "/sys", Perm: "/perm", Opened: d.poolChanged, Log: slog.Default(),
	})
}

// poolChanged has volumes and workloads looked at that waited for a disk, or for room.
func (d *daemon) poolChanged(ctx context.Context) {
	d.volumes.PoolChanged(ctx)
	d.freed("")
}

// keepDisks goes on with what was begun with disks, once volumes are usable.
func (d *daemon) keepDisks(ctx context.Context) {
	defer close(d.disksRest)
	select {
	case <-ctx.Done():
	case <-d.kept:
		repeat(ctx, "disks", d.disks.Run)
	}
}

// patientDisks tells the API when it's known which disks there are.
type patientDisks struct {
	*storage.Manager
	d *daemon
}

func (p patientDisks) Ready(ctx context.Context) error {
	return takenUp(ctx, p.d.assembled, volumesMax, "disks")
}

// Pool says first what no figure of the pool tells: that a disk of it is missing.
func (p patientVolumes) Pool() (*capsulev1.Pool, error) {
	pool, err := p.Manager.Pool()
	missing := p.d.disks.Missing()
	if len(missing) == 0 {
		return pool, err
	}
	if err != nil { // it can't be opened without the disk
		pool = &capsulev1.Pool{}
	}
	pool.Level = max(pool.GetLevel(), capsulev1.PoolLevel_POOL_LEVEL_CRITICAL)
	pool.Message = missing[0]
	if more := len(missing) - 1; more > 0 {
		pool.Message += fmt.Sprintf(" (and %d more)", more)
	}
	return pool, nil
}
