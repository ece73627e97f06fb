package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/identity"
	"capsule/internal/server"
)

// stub is a machine whose Info waits for go-ahead.
type stub struct {
	server.Machine
	open chan struct{}
}

func (s stub) Info() *capsulev1.InfoResponse { <-s.open; return &capsulev1.InfoResponse{} }
func (stub) Mode() (capsulev1.Mode, string)  { return capsulev1.Mode_MODE_NORMAL, "" }

// claimed is the identity of a capsule that an operator holds a certificate of.
func claimed(t *testing.T) *identity.Identity {
	t.Helper()
	ca, err := identity.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	seed, err := ca.SeedPEM()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "identity")
	file := filepath.Join(t.TempDir(), "seed.pem")
	if err := os.WriteFile(file, seed, 0o600); err != nil {
		t.Fatal(err)
	}
	id, err := identity.Load(dir, file)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// Process 1 hears of an API whose handlers answer, and nothing of one in which
// something hangs, although the port is open and TLS works.
func TestPulse(t *testing.T) {
	id := claimed(t)
	told, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer told.Close()
	t.Setenv(noticeVar, told.LocalAddr().String())
	p, err := newPulse(filepath.Join(t.TempDir(), "self"), id)
	if err != nil {
		t.Fatal(err)
	}
	defer p.conn.Close()
	config, err := id.ServerTLS("test")
	if err != nil {
		t.Fatal(err)
	}
	machine := stub{open: make(chan struct{})}
	srv, err := server.New(server.Options{TLS: config, Identity: id, Machine: machine})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = srv.Serve(p.listener) }()
	defer srv.Stop()

	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := p.answers(short); err == nil {
		t.Error("a handler that hangs passes for an answer")
	}
	close(machine.open)
	d := &daemon{}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go d.beat(ctx, p)
	_ = told.SetReadDeadline(time.Now().Add(time.Minute))
	text := make([]byte, 64)
	if n, err := told.Read(text); err != nil || string(text[:n]) != "WATCHDOG=1" {
		t.Errorf("told %q, %v", text[:n], err)
	}
	if d.silent.Load() {
		t.Error("the API passes for silent")
	}
}

// Without the CA's key the capsule can't call itself: that's no reason to end its
// daemon again and again.
func TestPulseWithoutKey(t *testing.T) {
	dir := t.TempDir()
	id := claimed(t)
	if err := id.SaveRecovery(filepath.Join(dir, "seed.pem")); err != nil {
		t.Fatal(err)
	}
	id, err := identity.LoadReadOnly(t.TempDir(), filepath.Join(dir, "seed.pem"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPulse(filepath.Join(t.TempDir(), "self"), id)
	if err != nil || p.listener != nil || p.answers(t.Context()) != nil {
		t.Errorf("%+v, %v", p, err)
	}
}

// An unclaimed capsule is watched too, though nobody else can call it.
func TestPulseUnclaimed(t *testing.T) {
	id, err := identity.Load(filepath.Join(t.TempDir(), "identity"), "")
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPulse(filepath.Join(t.TempDir(), "self"), id)
	if err != nil {
		t.Fatal(err)
	}
	defer p.conn.Close()
	config, err := id.ServerTLS("test")
	if err != nil {
		t.Fatal(err)
	}
	machine := stub{open: make(chan struct{})}
	close(machine.open)
	srv, err := server.New(server.Options{TLS: config, Identity: id, Machine: machine})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = srv.Serve(p.listener) }()
	defer srv.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := p.answers(ctx); err != nil {
		t.Error(err)
	}
}
