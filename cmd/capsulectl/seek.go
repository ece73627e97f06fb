package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"slices"
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
	betterMax = 3 * time.Second  // for an address that lasts, once one has answered that doesn't
	seekEvery = 15 * time.Second // of a command that goes on trying
)

// seeker connects to where a context says that its capsule is, and looks on the
// network when it is not there, or when something else is. The context's CA decides
// in the end: what merely says that it is the capsule doesn't pass the handshake.
type seeker struct {
	credentials.TransportCredentials
	host string
	ca   string // fingerprint; "" looks nowhere
	find func(ctx context.Context, ca string) (hosts []string, err error)

	*sighting
}

// sighting is what a seeker and its clones found out.
type sighting struct {
	mu    sync.Mutex
	last  time.Time // when it was looked for
	found []string  // where somebody said then to be it
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
	if found := s.elsewhere(ctx, host); found != nil {
		return found, nil
	}
	return nil, err
}

// ClientHandshake goes on with the capsule itself when a stranger has its address.
func (s *seeker) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if known, ok := raw.(*greeted); ok {
		return known.Conn, known.info, nil
	}
	asked := raw.RemoteAddr().String()
	conn, info, err := s.handshake(ctx, authority, raw)
	if err == nil {
		s.proven(asked)
		return conn, info, nil
	}
	if !stranger(err) {
		return nil, nil, err
	}
	found := s.elsewhere(ctx, asked)
	if found == nil {
		return nil, nil, err
	}
	raw.Close() //nolint:errcheck // it is the stranger's
	return found.Conn, found.info, nil
}

// greeted is a connection whose other side is proven already.
type greeted struct {
	net.Conn
	host string
	info credentials.AuthInfo
}

// elsewhere looks for the capsule on the network, and connects to it if it is
// anywhere else than where it was asked. All that say to be it are tried at once, and
// the best that proves it counts: one that lies, or says nothing, keeps nobody.
func (s *seeker) elsewhere(ctx context.Context, asked string) *greeted {
	hosts := s.seek(ctx, asked)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan *greeted)
	for _, host := range hosts {
		go func() {
			g := s.greet(ctx, host)
			select {
			case answers <- g:
			case <-ctx.Done(): // another was first
				g.drop()
			}
		}()
	}
	g := best(ctx, answers, len(hosts))
	if g != nil {
		s.proven(g.host)
	}
	return g
}

// best is the first of so many answers that is at an address which lasts, or one that
// is only good on one link when no better one comes soon; nil without any.
func best(ctx context.Context, answers <-chan *greeted, n int) (spare *greeted) {
	var late <-chan time.Time
	for range n {
		select {
		case g := <-answers:
			switch {
			case g == nil:
			case !onlyOnLink(g.host):
				spare.drop()
				return g
			case spare != nil:
				g.drop()
			default:
				spare, late = g, time.After(betterMax)
			}
		case <-late:
			return spare
		case <-ctx.Done():
			spare.drop()
			return nil
		}
	}
	return spare
}

// onlyOnLink tells an address that each side makes for itself, on one network only.
func onlyOnLink(address string) bool {
	at, err := netip.ParseAddrPort(address)
	return err == nil && at.Addr().IsLinkLocalUnicast()
}

// drop closes a connection that is of no use; nil is none.
func (g *greeted) drop() {
	if g != nil {
		g.Close() //nolint:errcheck // as it is
	}
}

// greet connects to one that says to be the capsule, nil when it isn't.
func (s *seeker) greet(ctx context.Context, host string) *greeted {
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", host)
	if err != nil {
		return nil
	}
	conn, info, err := s.handshake(ctx, identity.ServerName, raw)
	if err != nil {
		raw.Close() //nolint:errcheck // it failed
		return nil
	}
	return &greeted{conn, host, info}
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

// seek gives where somebody says to be the capsule, other than where it was asked. It
// looks now and then; meanwhile what was found last is as good.
func (s *seeker) seek(ctx context.Context, asked string) []string {
	if s.ca == "" {
		return nil
	}
	s.mu.Lock()
	soon := !s.last.IsZero() && time.Since(s.last) < seekEvery
	if !soon {
		s.last, s.found = time.Now(), nil
	}
	found := s.found
	s.mu.Unlock()
	if !soon {
		ctx, cancel := context.WithTimeout(ctx, seekMax)
		defer cancel()
		var err error
		if found, err = s.find(ctx, s.ca); err != nil {
			return nil
		}
		s.mu.Lock()
		s.found = found
		s.mu.Unlock()
	}
	return slices.DeleteFunc(slices.Clone(found), func(host string) bool { return host == asked })
}
