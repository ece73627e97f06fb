package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/contexts"
)

// callMax bounds a call that has an answer at once.
const callMax = 30 * time.Second

// workMax bounds a call that is answered once the capsule has done its work: as
// long as the capsule gives it.
const workMax = 5 * time.Minute

// client is a connection to one capsule.
type client struct {
	context contexts.Context
	// saved is the context's name, "" when only its keys are used, elsewhere.
	saved     string
	seek      *seeker
	conn      *grpc.ClientConn
	access    capsulev1.AccessServiceClient
	objects   capsulev1.ObjectServiceClient
	workloads capsulev1.WorkloadServiceClient
	images    capsulev1.ImageServiceClient
	volumes   capsulev1.VolumeServiceClient
	backups   capsulev1.BackupServiceClient
	updates   capsulev1.UpdateServiceClient
	capsule   capsulev1.CapsuleServiceClient
	events    capsulev1.EventServiceClient
	stats     capsulev1.StatsServiceClient
	tokens    capsulev1.TokenServiceClient
	debug     capsulev1.DebugServiceClient
	support   capsulev1.SupportServiceClient
}

// dial gives the connection to the capsule that is meant, made once.
func (a *app) dial() (*client, error) {
	if a.client != nil {
		return a.client, nil
	}
	if !a.oneOf && a.many() {
		return nil, &failure{exitUsage, fmt.Errorf("%q is for one capsule at a time", a.command), "name one with --capsule"}
	}
	store, err := contexts.Open("")
	if err != nil {
		return nil, err
	}
	named := a.named()
	c, err := store.Resolve(named)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil, &failure{exitUsage, err, contextsHint}
	}
	if err != nil {
		return nil, err
	}
	seek, err := newSeeker(c)
	if err != nil {
		return nil, err
	}
	saved := c.Name
	if host, ok := contexts.Address(named); ok && host == c.Host {
		if own, err := store.Get(saved); err != nil || own.Host != host {
			saved = ""
		}
		seek.ca, c.Name = "", "" // that address and no other
	}
	conn, err := c.Dial(append(a.heeding(), seek.options()...)...)
	if err != nil {
		return nil, err
	}
	a.client = &client{
		context: c, saved: saved, seek: seek, conn: conn,
		access:    capsulev1.NewAccessServiceClient(conn),
		objects:   capsulev1.NewObjectServiceClient(conn),
		workloads: capsulev1.NewWorkloadServiceClient(conn),
		images:    capsulev1.NewImageServiceClient(conn),
		volumes:   capsulev1.NewVolumeServiceClient(conn),
		backups:   capsulev1.NewBackupServiceClient(conn),
		updates:   capsulev1.NewUpdateServiceClient(conn),
		capsule:   capsulev1.NewCapsuleServiceClient(conn),
		events:    capsulev1.NewEventServiceClient(conn),
		stats:     capsulev1.NewStatsServiceClient(conn),
		tokens:    capsulev1.NewTokenServiceClient(conn),
		debug:     capsulev1.NewDebugServiceClient(conn),
		support:   capsulev1.NewSupportServiceClient(conn),
	}
	return a.client, nil
}

func (a *app) close() {
	if a.client != nil {
		a.client.conn.Close() //nolint:errcheck // the program ends
	}
}

// call makes one short call to the capsule.
func call[R any](ctx context.Context, a *app, do func(context.Context, *client) (R, error)) (R, error) {
	return callWithin(ctx, a, callMax, do)
}

// callWithin makes one call that takes no longer than limit.
func callWithin[R any](ctx context.Context, a *app, limit time.Duration, do func(context.Context, *client) (R, error)) (R, error) {
	c, err := a.dial()
	if err != nil {
		var none R
		return none, err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return do(ctx, c)
}

// timeoutText is a --timeout in a sentence.
func timeoutText(d time.Duration) string { return fmt.Sprintf("within %v", d) }
