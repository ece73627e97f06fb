package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/grpc"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/await"
	"capsule/internal/lab"
)

// capsule is a lab machine whose API is asked for what it says of itself.
type capsule struct {
	machine *lab.Machine
	conn    *grpc.ClientConn
}

const applyWait = "20m" // of an emulated capsule that counts instructions

func dialCapsule(m *lab.Machine) (*capsule, error) {
	c, err := m.Context()
	if err != nil {
		return nil, err
	}
	conn, err := c.Dial()
	return &capsule{m, conn}, err
}

func (c *capsule) info(ctx context.Context) (*capsulev1.InfoResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, readyMax)
	defer cancel()
	return capsulev1.NewCapsuleServiceClient(c.conn).Info(ctx, &capsulev1.InfoRequest{}, grpc.WaitForReady(true))
}

// containers are all that the capsule has, by its own stamps.
func (c *capsule) containers(ctx context.Context) (map[string]container, error) {
	ctx, cancel := context.WithTimeout(ctx, readyMax)
	defer cancel()
	list, err := capsulev1.NewObjectServiceClient(c.conn).List(ctx, &capsulev1.ListRequest{Kind: "Container"}, grpc.WaitForReady(true))
	if err != nil {
		return nil, err
	}
	return fromObjects(list.GetObjects()), nil
}

// runs waits until some containers run that were started after a time; those that
// don't in time are left to be told of.
func (c *capsule) runs(ctx context.Context, since time.Time, names ...string) (map[string]container, error) {
	const runsMax = 10 * time.Minute
	for end := time.Now().Add(runsMax); ; {
		all, err := c.containers(ctx)
		if err != nil {
			return nil, err
		}
		late := func(name string) bool { return !all[name].runsSince(since) }
		if !slices.ContainsFunc(names, late) || time.Now().After(end) {
			return all, nil
		}
		if err := await.Pause(ctx, askEvery); err != nil {
			return nil, err
		}
	}
}

// restarted waits until the machine has started again, and gives that start's info.
func (c *capsule) restarted(ctx context.Context, before *capsulev1.InfoResponse) (*capsulev1.InfoResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, backMax)
	defer cancel()
	for {
		// A connection that was begun while nobody listened is tried again late.
		if next, err := dialCapsule(c.machine); err == nil {
			info, err := infoOf(ctx, next.conn)
			if err == nil && info.GetBootedAt().AsTime().Sub(before.GetBootedAt().AsTime()) > time.Second {
				_ = c.conn.Close() // it is from before
				c.conn = next.conn
				return info, nil
			}
			_ = next.conn.Close()
		}
		if err := await.Pause(ctx, askEvery); err != nil {
			return nil, fmt.Errorf("the machine does not come back: %w", err)
		}
	}
}

// manifestOf a container of the example, with further lines.
func manifestOf(name, more string) string {
	return "kind: Container\nname: " + name + "\nimage: " + exampleImage + "\n" + more
}

// applyText applies manifests and waits until all run.
func (b *bench) applyText(m *lab.Machine, name, manifests string) error {
	path := filepath.Join(b.dir, name+".yaml")
	if err := os.WriteFile(path, []byte(manifests), 0o600); err != nil {
		return err
	}
	_, err := b.ctl(m, "apply", "--wait", "--timeout", applyWait, "-f", path)
	return err
}

// withImage is a capsule that has the example's image. It is there to be discarded
// also when that fails.
func (b *bench) withImage(ctx context.Context, o lab.Options) (*capsule, error) {
	m, err := b.up(ctx, o)
	if err != nil {
		return &capsule{machine: m}, err
	}
	if err := b.push(m); err != nil {
		return &capsule{machine: m}, err
	}
	return dialCapsule(m)
}

func (b *bench) end(ctx context.Context, c *capsule) {
	if c.conn != nil {
		_ = c.conn.Close() // the machine goes next
	}
	if c.machine != nil {
		b.discard(ctx, c.machine)
	}
}
