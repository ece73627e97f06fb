package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/connectivity"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/await"
	"capsule/internal/image"
	"capsule/internal/volume"
	"capsule/internal/workload"
)

// How long a call waits for a part that starts.
const (
	containerdMax = 2 * time.Minute
	loopMax       = 2 * time.Minute
	volumesMax    = 2 * time.Minute // it may have much to remove
)

// patientImages waits for a containerd that starts: after a boot the API
// answers some seconds earlier, and a push then is no mistake.
type patientImages struct {
	*image.Store
	d *daemon
}

func (p patientImages) Push(ctx context.Context, r io.Reader, name string, progress func(*capsulev1.Progress)) (*capsulev1.PushResult, error) {
	if err := p.d.awaitContainerd(ctx); err != nil {
		return nil, err
	}
	return p.Store.Push(ctx, r, name, progress)
}

func (p patientImages) List(ctx context.Context) ([]*capsulev1.Image, error) {
	if err := p.d.awaitContainerd(ctx); err != nil {
		return nil, err
	}
	return p.Store.List(ctx)
}

func (p patientImages) Prune(ctx context.Context, used map[string]bool, dryRun bool) (*capsulev1.PruneResponse, error) {
	if err := p.d.awaitContainerd(ctx); err != nil {
		return nil, err
	}
	return p.Store.Prune(ctx, used, dryRun)
}

// awaitContainerd returns when containerd can be reached.
func (d *daemon) awaitContainerd(ctx context.Context) error {
	caller := ctx
	ctx, cancel := context.WithTimeout(ctx, containerdMax)
	defer cancel()
	for {
		state := d.conn.GetState()
		if state == connectivity.Ready {
			return nil
		}
		if state == connectivity.Idle {
			d.conn.Connect()
		}
		if d.conn.WaitForStateChange(ctx, state) {
			continue
		}
		if caller.Err() == nil {
			return fmt.Errorf("containerd does not answer; \"capsulectl capsule logs\" may say why: %w", errdefs.ErrFailedPrecondition)
		}
		return caller.Err()
	}
}

// patientRuntime waits for the loop of a daemon that starts, and for containerd:
// a command or a copy right after a restart is no mistake either.
type patientRuntime struct{ d *daemon }

func (p patientRuntime) Running(ctx context.Context, name string) (workload.ID, workload.Driver, error) {
	if err := p.d.awaitContainerd(ctx); err != nil {
		return workload.ID{}, nil, err
	}
	if err := takenUp(ctx, p.d.looping, loopMax, "workloads"); err != nil {
		return workload.ID{}, nil, err
	}
	return p.d.loop.Load().Running(ctx, name)
}

// AllRunning before the loop runs are none: whoever samples asks again.
func (p patientRuntime) AllRunning(ctx context.Context) (map[string]workload.RunningInstance, error) {
	if loop := p.d.loop.Load(); loop != nil {
		return loop.AllRunning(ctx)
	}
	return nil, nil
}

// Wake before the loop runs is not lost: it looks at all workloads first.
func (p patientRuntime) Wake(name string) {
	if loop := p.d.loop.Load(); loop != nil {
		loop.Wake(name)
	}
}

// patientVolumes tells the API when volumes can be used: a start has to tidy up
// first.
type patientVolumes struct {
	*volume.Manager
	d *daemon
}

func (p patientVolumes) Ready(ctx context.Context) error {
	return takenUp(ctx, p.d.kept, volumesMax, "volumes")
}

// takenUp waits for what a start takes up.
func takenUp(ctx context.Context, done <-chan struct{}, limit time.Duration, what string) error {
	up, err := await.Done(ctx, done, limit)
	if err == nil && !up {
		err = fmt.Errorf("%s are not taken up yet; \"capsulectl capsule logs\" may say why: %w", what, errdefs.ErrFailedPrecondition)
	}
	return err
}
