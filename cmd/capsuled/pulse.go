package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/identity"
)

const (
	selfSocket = "/run/capsule/self.sock"
	pulseEvery = 10 * time.Second
	answerMax  = 30 * time.Second // of a call to ourselves; process 1 waits for 60 s
)

// A pulse is what process 1 gets while the API answers. The proof is a call like
// any operator's, with a certificate, to the same server by a socket of its own: so
// TLS, the gate, the handlers and what they read have all worked. The port isn't
// used, since strangers may take all of its connections, and that's no fault of the
// system.
type pulse struct {
	listener net.Listener
	conn     *grpc.ClientConn
	info     capsulev1.CapsuleServiceClient // nil when nobody could call
}

// newPulse makes the socket. A capsule without its CA's key, as in some recoveries,
// can't call itself.
func newPulse(socket string, id *identity.Identity) (*pulse, error) {
	p := &pulse{}
	cert, err := id.Own()
	if err != nil {
		slog.Warn("the API can't be watched", "reason", err)
		return p, nil
	}
	_ = os.Remove(socket) // of the daemon before
	if p.listener, err = net.Listen("unix", socket); err != nil {
		return nil, fmt.Errorf("listen to ourselves: %w", err)
	}
	p.conn, err = grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
		InsecureSkipVerify: true, // it's this process; the clock may be wrong
	})))
	if err != nil {
		return nil, fmt.Errorf("call ourselves: %w", err)
	}
	p.info = capsulev1.NewCapsuleServiceClient(p.conn)
	return p, nil
}

// answers tells whether the API does.
func (p *pulse) answers(ctx context.Context) error {
	if p.info == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerMax)
	defer cancel()
	_, err := p.info.Info(ctx, &capsulev1.InfoRequest{}, grpc.WaitForReady(true))
	return err
}

// beat calls until ctx ends, and tells process 1 of each answer.
func (d *daemon) beat(ctx context.Context, p *pulse) {
	tick := time.NewTicker(pulseEvery)
	defer tick.Stop()
	for {
		err := p.answers(ctx)
		if ctx.Err() != nil {
			return
		}
		d.silent.Store(err != nil)
		if err != nil {
			slog.Error("the API does not answer", "error", err)
		} else if err := notify("WATCHDOG=1"); err != nil {
			slog.Error("tell process 1 that the API answers", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
