package server

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"

	"capsule/internal/audit"
	"capsule/internal/identity"
)

// Limits of who comes in. The places of operators are taken by nobody else: what a
// stranger can do with a connection is claim, which is soon done.
const (
	handshakesMax   = 128 // under way at once
	handshakesOfOne = 16  // and from one address
	strangersMax    = 16  // connections without a certificate
	strangersOfOne  = 4
	strangerMax     = time.Minute     // until such a connection is closed
	strangerBytes   = 64 << 10        // that are read from it: two calls of a claim take a few thousand
	lastWord        = 5 * time.Second // for the answers of a connection that is about to be closed
	connect         = "connect"       // stands for the method in the record of a refused connection
)

// door is the handshake of each connection: who is refused at it, and how much of
// the capsule those take up who come without a certificate. The connections of a key
// that is revoked it closes, whatever their calls wait for. Connections of HTTP it
// hands over.
type door struct {
	credentials.TransportCredentials // its other methods
	config                           *tls.Config
	id                               *identity.Identity
	log                              *slog.Logger
	audit                            *audit.Log // may be nil
	refusals                         *refusals
	web                              *webSide
	handshakes, visitors             *crowd

	mu        sync.Mutex
	strangers map[*stranger]*time.Timer // until its end
}

func newDoor(o Options, r *refusals, web *webSide) *door {
	return &door{
		TransportCredentials: credentials.NewTLS(o.TLS), config: forHTTP(o.TLS, web.tokens), id: o.Identity, log: o.Log, audit: o.Audit, refusals: r, web: web,
		handshakes: newCrowd(handshakesMax, handshakesOfOne), visitors: newCrowd(strangersMax, strangersOfOne),
		strangers: map[*stranger]*time.Timer{},
	}
}

// Clone is the same door: who came in is counted once.
func (d *door) Clone() credentials.TransportCredentials { return d }

// ServerHandshake is asked for by gRPC, which reads nothing of a connection before.
func (d *door) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	leave, err := d.handshakes.enter(c.RemoteAddr())
	if err != nil {
		d.refuse(c, nil, fmt.Errorf("handshakes: %w", err))
		return nil, nil, err
	}
	defer leave()
	conn := tls.Server(c, d.config)
	err = conn.Handshake() //nolint:noctx // gRPC has set a deadline
	state := conn.ConnectionState()
	var in net.Conn
	if err == nil {
		in, err = d.let(conn, state.PeerCertificates)
	}
	if err != nil {
		d.refuse(c, state.PeerCertificates, err)
		_ = conn.Close()
		return nil, nil, err
	}
	if state.NegotiatedProtocol == protoHTTP {
		d.web.serve(in, state)
		return nil, nil, credentials.ErrConnDispatched
	}
	return in, credentials.TLSInfo{State: state, CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, nil
}

// let gives a connection as it is used from here.
func (d *door) let(conn net.Conn, chain []*x509.Certificate) (net.Conn, error) {
	if len(chain) > 0 {
		return &visit{Conn: conn, leave: d.id.WhenRevoked(chain[0], func() { closeSoon(conn) })}, nil
	}
	leave, err := d.visitors.enter(conn.RemoteAddr())
	if err != nil {
		return nil, fmt.Errorf("connections without a certificate: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s := &stranger{visit: visit{Conn: conn}, left: strangerBytes}
	s.leave = sync.OnceFunc(func() {
		leave()
		d.mu.Lock()
		defer d.mu.Unlock()
		d.strangers[s].Stop()
		delete(d.strangers, s)
	})
	d.strangers[s] = time.AfterFunc(strangerMax, func() { _ = s.Close() })
	return s, nil
}

// claimed shuts those out who were there to claim. The winner still gets its answer,
// and the others hear that they were late.
func (d *door) claimed() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for s := range d.strangers {
		closeSoon(s)
	}
}

func closeSoon(c io.Closer) { time.AfterFunc(lastWord, func() { _ = c.Close() }) }

// refuse logs a connection that did not come in; its client only gets an alert. Where
// it showed a certificate of ours, that stands in the audit log too.
func (d *door) refuse(c net.Conn, chain []*x509.Certificate, err error) {
	if errors.Is(err, io.EOF) { // a port that is only knocked at is nobody who was refused
		return
	}
	from := c.RemoteAddr().String()
	if len(chain) == 0 || chain[0].CheckSignatureFrom(d.id.CA()) != nil {
		d.refusals.log(d.log, byStranger, "connection refused", "from", from, "reason", err)
		return
	}
	who, key := chain[0].Subject.CommonName, identity.KeyFingerprint(chain[0])
	by := connect + " " + who // not that of the operator's calls: nobody has shown to have the key
	d.refusals.log(d.log, by, "connection refused", "from", from, "reason", err, "operator", who, "key", key)
	if d.audit != nil {
		d.audit.Refused(audit.Record{
			Time: time.Now(), Operator: who, Key: key, From: from, Method: connect, Code: codes.Unauthenticated.String(), Message: err.Error(),
		}, by)
	}
}

// visit is a connection that came in.
type visit struct {
	net.Conn
	leave func()
}

func (v *visit) Close() error {
	v.leave()
	return v.Conn.Close()
}

// stranger is one without a certificate.
type stranger struct {
	visit
	left int // bytes; of the one reader
}

// known gives back the place of one who turned out to be no stranger.
func (s *stranger) known() { s.leave() }

var errTooMuch = errors.New("a connection without a certificate has sent more than a claim takes")

func (s *stranger) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, errTooMuch
	}
	n, err := s.Conn.Read(p[:min(len(p), s.left)])
	s.left -= n
	return n, err
}

// crowd is how many are there at once, in all and from one address.
type crowd struct {
	most, mostOfOne int

	mu   sync.Mutex
	all  int
	from map[string]int
}

func newCrowd(most, mostOfOne int) *crowd {
	return &crowd{most: most, mostOfOne: mostOfOne, from: map[string]int{}}
}

// enter takes a place; leave gives it back.
func (c *crowd) enter(addr net.Addr) (leave func(), err error) {
	from := addr.String()
	if host, _, err := net.SplitHostPort(from); err == nil {
		from = host
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all >= c.most || c.from[from] >= c.mostOfOne {
		return nil, fmt.Errorf("%d at once, of these %d from %s, are the most: %w", c.all, c.from[from], from, errdefs.ErrResourceExhausted)
	}
	c.all++
	c.from[from]++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.all--
		if c.from[from]--; c.from[from] == 0 {
			delete(c.from, from)
		}
	}, nil
}
