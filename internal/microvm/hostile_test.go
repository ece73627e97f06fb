package microvm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	guestv1 "capsule/api/capsule/guest/v1"
	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/workload"
)

// hostile is an agent that was taken over.
type hostile struct {
	guestv1.UnimplementedGuestServiceServer
}

// Exec prints without end, and asks nobody whether it may.
func (hostile) Exec(s guestv1.GuestService_ExecServer) error {
	for {
		r := &capsulev1.ExecResponse{Output: &capsulev1.ExecResponse_Stdout{Stdout: make([]byte, 512<<10)}}
		if err := s.Send(r); err != nil {
			return err
		}
	}
}

// CopyFrom answers with more than a message may have.
func (hostile) CopyFrom(_ *capsulev1.CopyFromRequest, s guestv1.GuestService_CopyFromServer) error {
	return s.Send(&capsulev1.CopyFromResponse{Data: make([]byte, 2*messageMax)})
}

// Stats adds heads without end.
func (hostile) Stats(ctx context.Context, _ *guestv1.StatsRequest) (*guestv1.StatsResponse, error) {
	_ = grpc.SetHeader(ctx, metadata.Pairs("x", string(make([]byte, 4*headersMax))))
	return &guestv1.StatsResponse{}, nil
}

// State never answers.
func (hostile) State(ctx context.Context, _ *guestv1.StateRequest) (*guestv1.StateResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// line is a listener of one connection at a time, without a machine.
type line chan net.Conn

func (l line) Accept() (net.Conn, error) {
	if c, ok := <-l; ok {
		return c, nil
	}
	return nil, io.EOF
}
func (l line) Close() error   { return nil }
func (l line) Addr() net.Addr { return &net.UnixAddr{} }

func (l line) dial(context.Context) (net.Conn, error) {
	here, there := net.Pipe()
	l <- there
	return here, nil
}

// A guest that floods us costs a bounded amount of memory, and never an answer
// of ours to others.
func TestHostile(t *testing.T) {
	l := make(line, 1)
	server := grpc.NewServer()
	guestv1.RegisterGuestServiceServer(server, hostile{})
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { close(l); server.Stop() })
	a, err := newAgent(l.dial, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()

	if _, err := a.state(t.Context(), 100*time.Millisecond); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("no answer: %v", err)
	}
	if err := a.copyFrom(t.Context(), "/", io.Discard); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("too large a message: %v", err)
	}
	if _, err := a.stats(t.Context(), patience); err == nil {
		t.Error("endless heads are taken")
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	ctx, cancel := context.WithCancel(t.Context())
	stuck := &stuckWriter{reached: make(chan struct{}), ctx: ctx}
	done := make(chan error, 1)
	go func() {
		_, err := a.exec(ctx, workload.Exec{Command: []string{"x"}, Stdout: stuck})
		done <- err
	}()
	<-stuck.reached
	<-time.After(200 * time.Millisecond) // in which it could fill our memory
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 16<<20 {
		t.Errorf("%d MiB wait for a reader", grown>>20)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("a caller who left: %v", err)
	}
}

// stuckWriter takes nothing.
type stuckWriter struct {
	reached chan struct{}
	ctx     context.Context
}

func (w *stuckWriter) Write([]byte) (int, error) {
	close(w.reached)
	<-w.ctx.Done()
	return 0, w.ctx.Err()
}

// What is no HTTP at all ends the line, not us.
func TestNoise(t *testing.T) {
	noise := bytes.Repeat([]byte{0xff, 0, 'x'}, 10<<10)
	a, err := newAgent(func(context.Context) (net.Conn, error) {
		here, there := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, there) }()
		go func() {
			for {
				if _, err := there.Write(noise); err != nil {
					return
				}
			}
		}()
		return here, nil
	}, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	if _, err := a.state(t.Context(), 500*time.Millisecond); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}
