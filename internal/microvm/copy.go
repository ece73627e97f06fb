package microvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"

	guestv1 "capsule/api/capsule/guest/v1"
	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/cgroup"
	"capsule/internal/workload"
)

// CopyTo unpacks a tar stream at path in a running instance.
func (d *Driver) CopyTo(ctx context.Context, id workload.ID, path, source string, tar io.Reader) (files, bytes uint64, err error) {
	m, err := d.answering(ctx, id)
	if err != nil {
		return 0, 0, err
	}
	return m.agent.copyTo(ctx, path, source, tar)
}

func (a *agent) copyTo(ctx context.Context, path, source string, tar io.Reader) (files, bytes uint64, err error) {
	caller := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := a.CopyTo(ctx)
	if err != nil {
		return 0, 0, refused(caller, err)
	}
	target := &capsulev1.CopyTarget{Path: path, Source: source}
	err = stream.Send(&capsulev1.CopyToRequest{Part: &capsulev1.CopyToRequest_Target{Target: target}})
	buf := make([]byte, chunkMax)
	for err == nil {
		var n int
		n, err = tar.Read(buf)
		if n > 0 {
			if e := stream.Send(&capsulev1.CopyToRequest{Part: &capsulev1.CopyToRequest_Data{Data: buf[:n]}}); e != nil {
				err = io.EOF // the guest has said all that it will
			}
		}
	}
	if !errors.Is(err, io.EOF) {
		return 0, 0, err
	}
	r, err := stream.CloseAndRecv()
	return r.GetFiles(), r.GetBytes(), refused(caller, err)
}

// CopyFrom writes path of a running instance as a tar stream.
func (d *Driver) CopyFrom(ctx context.Context, id workload.ID, path string, tar io.Writer) error {
	m, err := d.answering(ctx, id)
	if err != nil {
		return err
	}
	return m.agent.copyFrom(ctx, path, tar)
}

func (a *agent) copyFrom(ctx context.Context, path string, tar io.Writer) error {
	caller := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := a.CopyFrom(ctx, &capsulev1.CopyFromRequest{Path: path})
	if err != nil {
		return refused(caller, err)
	}
	for {
		msg, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return refused(caller, err)
		}
		if _, err := tar.Write(msg.GetData()); err != nil {
			return err
		}
	}
}

// Stats asks the guest for the use of its payload. What it says is cut to what
// it was given.
func (d *Driver) Stats(ctx context.Context, id workload.ID) (workload.Stats, error) {
	m, err := d.running(ctx, id)
	if err != nil {
		return workload.Stats{}, err
	}
	st, err := m.agent.stats(ctx, d.pace.call)
	if err != nil {
		return workload.Stats{}, fmt.Errorf("read use of workload %q: %w", id.Name, err)
	}
	if d.opts.Cgroup == "" {
		return st, nil
	}
	// What goes to the disks is not the guest's to tell.
	if st.DiskRead, st.DiskWritten, err = cgroup.Group(d.cgroup(id.Name)).IO(); err != nil {
		return workload.Stats{}, fmt.Errorf("read use of workload %q: %w", id.Name, err)
	}
	return st, nil
}

func (a *agent) stats(ctx context.Context, limit time.Duration) (workload.Stats, error) {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r, err := a.Stats(limited, &guestv1.StatsRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return workload.Stats{}, refused(ctx, err)
	}
	return workload.Stats{
		MemoryBytes: min(r.GetMemory(), memoryMax),
		CPUTime:     time.Duration(min(r.GetCpuUs(), uint64(timeMax/time.Microsecond))) * time.Microsecond,
		PIDs:        min(r.GetPids(), pidsMax),
	}, nil
}
