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
// client only gets as an alert. Many at once are counted, not listed.
type loggedTLS struct {
	credentials.TransportCredentials
	log *slog.Logger

	once    sync.Once
	limit   *rate.Limiter
	mu      sync.Mutex
	skipped int
}

const (
	refusalsEvery = time.Second
	refusalsBurst = 20
)

func (t *loggedTLS) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := t.TransportCredentials.ServerHandshake(c)
	// A port that is only knocked at is nobody who was refused.
	if err != nil && !errors.Is(err, io.EOF) {
		t.refused(c.RemoteAddr(), err)
	}
	return conn, info, err
}

func (t *loggedTLS) refused(from net.Addr, err error) {
	t.once.Do(func() { t.limit = rate.NewLimiter(rate.Every(refusalsEvery), refusalsBurst) })
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.limit.Allow() {
		t.skipped++
		return
	}
	t.log.Warn("connection refused", "from", from, "reason", err, "not_logged_before", t.skipped)
	t.skipped = 0
}

func (t *loggedTLS) Clone() credentials.TransportCredentials {
	return &loggedTLS{TransportCredentials: t.TransportCredentials.Clone(), log: t.log}
}
