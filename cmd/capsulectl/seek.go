package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"capsule/internal/contexts"
	"capsule/internal/identity"
)

// Bounds of finding a capsule that is not where its context says; together they
// fit in the time that gRPC gives one connection.
const (
	dialMax   = 3 * time.Second
	seekMax   = 3 * time.Second
	seekEvery = 15 * time.Second // of a command that goes on trying
)

// seeker connects to where a context says that its capsule is, and looks on the
// network when it is not there, or when something else is. The context's CA decides
// in the end: what merely says that it is the capsule doesn't pass the handshake.
type seeker struct {
	credentials.TransportCredentials
	host string
	ca   string // fingerprint; "" looks nowhere
	find func(ctx context.Context, ca string) (host string, err error)

	*sighting
}

// sighting is what a seeker and its clones found out.
type sighting struct {
	mu    sync.Mutex
	last  time.Time // when it was looked for
	moved string    // where it has proven itself, if elsewhere
}

// newSeeker is for one context. Nothing on this very machine moves.
func newSeeker(c contexts.Context) (*seeker, error) {
	config, err := c.TLS()
	if err != nil {
		return nil, err
	}
	s := &seeker{TransportCredentials: credentials.NewTLS(config), host: c.Host, find: findByCA, sighting: &sighting{}}
	ca, err := c.Authority()
	if err == nil && !loopback(c.Host) {
		s.ca = identity.Fingerprint(ca)
	}
	return s, err
}

func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || (ip != nil && ip.IsLoopback()))
}

// options make a connection by this seeker.
func (s *seeker) options() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithTransportCredentials(s), grpc.WithContextDialer(s.dial)}
}

// Clone shares what was found.
func (s *seeker) Clone() credentials.TransportCredentials {
	c := *s
	c.TransportCredentials = s.TransportCredentials.Clone()
	return &c
}

// movedTo is where the capsule was found and has proven itself, if elsewhere.
func (s *seeker) movedTo() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.moved
}

// at is where it was found last.
func (s *seeker) at() string {
	if host := s.movedTo(); host != "" {
		return host
	}
	return s.host
}

func (s *seeker) dial(ctx context.Context, _ string) (net.Conn, error) {
	first := ctx
	if s.ca != "" {
		var cancel context.CancelFunc
		first, cancel = context.WithTimeout(ctx, dialMax)
		defer cancel()
	}
	host := s.at()
	conn, err := (&net.Dialer{}).DialContext(first, "tcp", host)
	if err == nil {
		return conn, nil
	}
	if found := s.seek(ctx, host); found != "" {
		if conn, foundErr := (&net.Dialer{}).DialContext(ctx, "tcp", found); foundErr == nil {
			return conn, nil
		}
	}
	return nil, err
}

// ClientHandshake goes on with the capsule itself when a stranger has its address.
func (s *seeker) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	asked := raw.RemoteAddr().String()
	conn, info, err := s.handshake(ctx, authority, raw)
	if err == nil {
		s.proven(asked)
		return conn, info, nil
	}
	if !stranger(err) {
		return nil, nil, err
	}
	found := s.seek(ctx, asked)
	if found == "" {
		return nil, nil, err
	}
	other, dialErr := (&net.Dialer{}).DialContext(ctx, "tcp", found)
	if dialErr != nil {
		return nil, nil, err
	}
	conn, info, againErr := s.handshake(ctx, authority, other)
	if againErr != nil {
		other.Close() //nolint:errcheck // it failed
		return nil, nil, err
	}
	raw.Close() //nolint:errcheck // it is the stranger's
	s.proven(found)
	return conn, info, nil
}

// handshake also waits for the first byte of the capsule, which speaks first: in TLS
// 1.3 it says only after the handshake whether it takes the operator's certificate,
// and what is sent to it meanwhile may break the connection before that is read.
func (s *seeker) handshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := s.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		return nil, nil, err
	}
	first, err := firstByte(ctx, conn)
	if err != nil {
		conn.Close() //nolint:errcheck // it is of no use
		return nil, nil, err
	}
	return &begunConn{Conn: conn, first: first}, info, nil
}

func firstByte(ctx context.Context, conn net.Conn) ([]byte, error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(connectMax)
	}
	if err := conn.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	first := make([]byte, 1)
	if _, err := conn.Read(first); err != nil {
		return nil, err
	}
	return first, conn.SetReadDeadline(time.Time{})
}

// begunConn gives again what was read of a connection already.
type begunConn struct {
	net.Conn
	first []byte
}

func (c *begunConn) Read(p []byte) (int, error) {
	if len(c.first) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.first)
	c.first = c.first[n:]
	return n, nil
}

// stranger tells that the other side is not the capsule, from all else that breaks
// a handshake.
func stranger(err error) bool {
	var unknown x509.UnknownAuthorityError
	var invalid *tls.CertificateVerificationError
	return errors.As(err, &unknown) || errors.As(err, &invalid)
}

// proven notes an address whose owner has shown a certificate of the context's CA.
func (s *seeker) proven(host string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moved = ""
	if s.ca != "" && host != s.host && !named(s.host) {
		s.moved = host
	}
}

// named tells a host that the DNS has to find: it is for the DNS to say that it moved.
func named(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return false
	}
	_, err = netip.ParseAddr(host) // with a zone too
	return err != nil
}

// seek looks for the capsule on the network, now and then; "" when it is nowhere
// else than where it was asked.
func (s *seeker) seek(ctx context.Context, asked string) string {
	if s.ca == "" {
		return ""
	}
	s.mu.Lock()
	if !s.last.IsZero() && time.Since(s.last) < seekEvery {
		s.mu.Unlock()
		return ""
	}
	s.last = time.Now()
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, seekMax)
	defer cancel()
	host, err := s.find(ctx, s.ca)
	if err != nil || host == asked {
		return ""
	}
	return host
}
