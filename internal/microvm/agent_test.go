package microvm

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"

	guestv1 "capsule/api/capsule/guest/v1"
)

// idle is a guest that answers.
type idle struct {
	guestv1.UnimplementedGuestServiceServer
}

func (idle) State(context.Context, *guestv1.StateRequest) (*guestv1.StateResponse, error) {
	return &guestv1.StateResponse{Phase: guestv1.StateResponse_PHASE_RUNNING}, nil
}

func (idle) Stats(context.Context, *guestv1.StatsRequest) (*guestv1.StatsResponse, error) {
	return &guestv1.StatsResponse{Pids: 1}, nil
}

// A line that can't be had at first, as to a slow guest, is tried again for as long
// as the call may take.
func TestLineIsTriedAgain(t *testing.T) {
	for name, call := range map[string]func(*agent) error{
		"state": func(a *agent) error { _, err := a.state(t.Context(), patience); return err },
		"stats": func(a *agent) error { _, err := a.stats(t.Context(), patience); return err },
	} {
		t.Run(name, func(t *testing.T) {
			l := make(line, 1)
			server := grpc.NewServer()
			guestv1.RegisterGuestServiceServer(server, idle{})
			go func() { _ = server.Serve(l) }()
			t.Cleanup(func() { close(l); server.Stop() })
			var tries atomic.Int32
			a, err := newAgent(func(ctx context.Context) (net.Conn, error) {
				if tries.Add(1) <= 3 {
					return nil, errors.New("connection timed out")
				}
				return l.dial(ctx)
			}, patience)
			if err != nil {
				t.Fatal(err)
			}
			defer a.close()
			if err := call(a); err != nil || tries.Load() != 4 {
				t.Errorf("after %d tries: %v", tries.Load(), err)
			}
		})
	}
}
