package server

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/problem"
)

// Machine is what the API asks of the machine around it.
type Machine interface {
	// Info is all but what the server counts itself: workloads.
	Info() *capsulev1.InfoResponse
	// Mode may change while the server runs, with the reason for recovery.
	Mode() (capsulev1.Mode, string)
	// Power asks for the end of this boot, and keeps why.
	Power(state PowerState, why string) error
	// RestartService kills one of the machine's services, which is started again.
	RestartService(name string) error
	// SystemLog is the folder of the services' own logs.
	SystemLog() string
	// KernelLog is the kernel's ring buffer.
	KernelLog() string
}

// PowerState that an operator asks for.
type PowerState int

// Power states.
const (
	Reboot PowerState = iota + 1
	PowerOff
)

type capsule struct {
	capsulev1.UnimplementedCapsuleServiceServer
	Options
}

func (s *capsule) Info(context.Context, *capsulev1.InfoRequest) (*capsulev1.InfoResponse, error) {
	info, _, err := s.Overview()
	return info, err
}

// Overview is the machine and how it is, with all objects that are declared. It waits
// for no part that may hang.
func (o *Options) Overview() (*capsulev1.InfoResponse, []*capsulev1.Object, error) {
	info := o.Machine.Info()
	info.Mode, info.ModeReason = o.Machine.Mode()
	m := memory()
	info.MemoryTotal, info.MemoryAvailable = m.total, m.available
	if o.Updates != nil {
		info.Tentative = o.Updates.Tentative()
	}
	if o.Secrets != nil {
		info.Secrets = o.Secrets.State()
	}
	if o.Volumes != nil {
		var err error
		if info.Pool, err = o.Volumes.Pool(); err != nil && !errdefs.IsUnavailable(err) {
			o.Log.Warn("read the pool", "error", err) // all else is worth an answer
		}
	}
	var objs []*capsulev1.Object
	if o.Store != nil {
		var err error
		if objs, err = o.Store.List(""); err != nil {
			return nil, nil, err
		}
		for _, obj := range objs {
			if obj.GetWorkload() == nil {
				continue
			}
			info.Workloads++
			// In recovery mode a status is only a memory.
			if info.Mode != capsulev1.Mode_MODE_RECOVERY && obj.GetWorkload().GetStatus().GetRunningGeneration() != 0 {
				info.WorkloadsRunning++
			}
		}
	}
	info.Problems = problem.Of(problem.Facts{Info: info, Objects: objs})
	return info, objs, nil
}

// Reboot answers first: the end of the call's context is the sign that the
// answer is on its way.
func (s *capsule) Reboot(ctx context.Context, _ *capsulev1.RebootRequest) (*capsulev1.RebootResponse, error) {
	why := "reboot, asked for by " + callerName(ctx)
	s.after(ctx, "reboot", func() error { return s.Machine.Power(Reboot, why) })
	return &capsulev1.RebootResponse{}, nil
}

func (s *capsule) Shutdown(ctx context.Context, _ *capsulev1.ShutdownRequest) (*capsulev1.ShutdownResponse, error) {
	why := "shutdown, asked for by " + callerName(ctx)
	s.after(ctx, "shut down", func() error { return s.Machine.Power(PowerOff, why) })
	return &capsulev1.ShutdownResponse{}, nil
}

// callerName is the name in the caller's certificate.
func callerName(ctx context.Context) string {
	cert, err := certificate(ctx)
	if err != nil {
		return nobody
	}
	return cert.Subject.CommonName
}

// services that can be restarted.
var services = []string{"capsuled", "containerd"}

func (s *capsule) RestartService(ctx context.Context, req *capsulev1.RestartServiceRequest) (*capsulev1.RestartServiceResponse, error) {
	if !slices.Contains(services, req.GetService()) {
		return nil, fmt.Errorf("unknown service %q, want one of %q: %w", req.GetService(), services, errdefs.ErrInvalidArgument)
	}
	s.after(ctx, "restart service", func() error { return s.Machine.RestartService(req.GetService()) })
	return &capsulev1.RestartServiceResponse{}, nil
}

func (s *capsule) after(ctx context.Context, what string, fn func() error) {
	end := ctx //nolint:contextcheck // the whole call's, which the handler's is part of
	if call, ok := ctx.Value(answered{}).(context.Context); ok {
		end = call
	}
	context.AfterFunc(end, func() {
		if err := fn(); err != nil {
			s.Log.Error(what, "error", err)
		}
	})
}
