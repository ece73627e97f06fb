package server

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/credentials"
)

// loggedTLS logs handshakes that were refused, with the reason, which the
// client only gets as an alert.
type loggedTLS struct {
	credentials.TransportCredentials
	log      *slog.Logger
	refusals *refusals
	web      *webSide // takes connections of HTTP over
}

func (t *loggedTLS) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := t.TransportCredentials.ServerHandshake(c)
	// A port that is only knocked at is nobody who was refused.
	if err != nil && !errors.Is(err, io.EOF) {
		t.refusals.log(t.log, "connection refused", "from", c.RemoteAddr(), "reason", err)
	}
	if tls, ok := info.(credentials.TLSInfo); err == nil && ok && tls.State.NegotiatedProtocol == protoHTTP {
		t.web.serve(conn, tls.State)
		return nil, nil, credentials.ErrConnDispatched
	}
	return conn, info, err
}

func (t *loggedTLS) Clone() credentials.TransportCredentials {
	return &loggedTLS{TransportCredentials: t.TransportCredentials.Clone(), log: t.log, refusals: t.refusals, web: t.web}
}

const (
	refusalsEvery = time.Second
	refusalsBurst = 20
)

// refusals bounds what strangers can write into the log: many at once are
// counted, not listed.
type refusals struct {
	limit   *rate.Limiter
	mu      sync.Mutex
	skipped int
}

func newRefusals() *refusals {
	return &refusals{limit: rate.NewLimiter(rate.Every(refusalsEvery), refusalsBurst)}
}

func (r *refusals) log(log *slog.Logger, what string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.limit.Allow() {
		r.skipped++
		return
	}
	log.Warn(what, append(args, "not_logged_before", r.skipped)...)
	r.skipped = 0
}
