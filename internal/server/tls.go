package server

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/quota"
)

// loggedTLS logs handshakes that were refused, with the reason, which the
// client only gets as an alert.
type loggedTLS struct {
	credentials.TransportCredentials
	log      *slog.Logger
	refusals *refusals
}

func (t *loggedTLS) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := t.TransportCredentials.ServerHandshake(c)
	// A port that is only knocked at is nobody who was refused.
	if err != nil && !errors.Is(err, io.EOF) {
		t.refusals.log(t.log, byStranger, "connection refused", "from", c.RemoteAddr(), "reason", err)
	}
	return conn, info, err
}

func (t *loggedTLS) Clone() credentials.TransportCredentials {
	return &loggedTLS{TransportCredentials: t.TransportCredentials.Clone(), log: t.log, refusals: t.refusals}
}

const (
	refusalsEvery = time.Second
	refusalsBurst = 20
)

// refusals bounds what those who are refused can write into the log: many at once
// are counted, not listed. Each operator has a quota, and so have those who claim
// and all other strangers, so that nobody hides another.
type refusals struct {
	quota   *quota.Quota
	mu      sync.Mutex
	skipped int
}

// Whose quota a refusal counts against, where it is no operator's, by name: a key
// is renewed, and would bring a new quota.
const (
	byStranger = ""
	byClaimer  = capsulev1.AccessService_Claim_FullMethodName
)

func newRefusals() *refusals {
	return &refusals{quota: quota.New(refusalsEvery, refusalsBurst)}
}

func (r *refusals) log(log *slog.Logger, by, what string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.quota.Allow(by) {
		r.skipped++
		return
	}
	log.Warn(what, append(args, "not_logged_before", r.skipped)...)
	r.skipped = 0
}
