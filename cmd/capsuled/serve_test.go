package main

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/api/services/version/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"capsule/internal/network"
	"capsule/internal/store"
	"capsule/internal/workload"
)

// starting answers like a containerd that is restarted under the first call.
type starting struct {
	version.UnimplementedVersionServer
	calls  atomic.Int32
	onFail func()
}

func (s *starting) Version(context.Context, *emptypb.Empty) (*version.VersionResponse, error) {
	if s.calls.Add(1) == 1 {
		s.onFail()
		return nil, status.Error(codes.Unavailable, "going away")
	}
	return &version.VersionResponse{Version: "2"}, nil
}

// What works only at a later try is told all the same: containerd answers at the
// second, and the network is there at the third.
func TestAnnounceTriesAgain(t *testing.T) {
	dir := t.TempDir()
	told, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer told.Close()
	t.Setenv(noticeVar, filepath.Join(dir, "notify"))
	socket, err := net.Listen("unix", filepath.Join(dir, "c.sock"))
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{filtered: make(chan struct{})}
	close(d.filtered)
	service := &starting{onFail: func() {
		time.AfterFunc(2*againMin, func() { d.network.Store(&network.Network{}) })
	}}
	srv := grpc.NewServer()
	version.RegisterVersionServer(srv, service)
	go func() { _ = srv.Serve(socket) }()
	defer srv.Stop()
	d.conn, err = grpc.NewClient("unix://"+socket.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer d.conn.Close()
	if d.client, err = containerd.NewWithConn(d.conn, containerd.WithDefaultNamespace(containerdSpace)); err != nil {
		t.Fatal(err)
	}

	go d.announce(t.Context())
	_ = told.SetReadDeadline(time.Now().Add(5 * time.Minute))
	text := make([]byte, 64)
	n, err := told.Read(text)
	if err != nil || string(text[:n]) != "READY=1" {
		t.Fatalf("told %q, %v; containerd was asked %d times", text[:n], err, service.calls.Load())
	}
	if d.network.Load() == nil {
		t.Error("told before the network was made")
	}
}

// A call for a running workload right after the daemon was restarted waits for
// containerd and for the loop; it ends with its caller.
func TestRunningWaits(t *testing.T) {
	socket, err := net.Listen("unix", filepath.Join(t.TempDir(), "c.sock"))
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	go func() { _ = srv.Serve(socket) }()
	defer srv.Stop()
	d := &daemon{looping: make(chan struct{})}
	d.conn, err = grpc.NewClient("unix://"+socket.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer d.conn.Close()
	st, err := store.Open(filepath.Join(t.TempDir(), "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()

	gone, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, _, err := (patientRuntime{d}).Running(gone, "web"); !errors.Is(err, context.Canceled) {
		t.Errorf("caller gone: %v", err)
	}
	time.AfterFunc(100*time.Millisecond, func() {
		d.loop.Store(workload.NewLoop(workload.LoopOptions{Store: st, Network: &network.Network{}}))
		close(d.looping)
	})
	if _, _, err := (patientRuntime{d}).Running(t.Context(), "web"); !errdefs.IsNotFound(err) {
		t.Errorf("the loop's answer: %v; want not found", err)
	}
}
