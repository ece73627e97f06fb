package server

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/audit"
	"capsule/internal/identity"
)

// from dials as somebody at another address of this machine.
func from(ip string) func(context.Context, string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	return func(ctx context.Context, address string) (net.Conn, error) { return d.DialContext(ctx, "tcp", address) }
}

// knock makes a connection without a certificate; in tells whether it came in.
func knock(t *testing.T, address, ip string) (c net.Conn, in bool) {
	t.Helper()
	raw, err := from(ip)(limit(t), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	// gRPC begins with its settings, where a connection is let in.
	_, err = conn.Read(make([]byte, 1))
	return conn, err == nil
}

// Who has no certificate gets few connections, and takes nobody else's.
func TestStrangersAreFew(t *testing.T) {
	b := openBox(t, t.TempDir())
	var open []net.Conn
	for range strangersOfOne {
		c, in := knock(t, b.address, "127.0.0.1")
		if !in {
			t.Fatalf("only %d came in", len(open))
		}
		open = append(open, c)
	}
	if _, in := knock(t, b.address, "127.0.0.1"); in {
		t.Errorf("%d connections from one address", len(open)+1)
	}
	for _, ip := range []string{"127.0.0.2", "127.0.0.3", "127.0.0.4"} {
		for range strangersOfOne {
			if _, in := knock(t, b.address, ip); !in {
				t.Errorf("none from %s", ip)
			}
		}
	}
	if _, in := knock(t, b.address, "127.0.0.5"); in {
		t.Errorf("more than %d connections", strangersMax)
	}
	open[0].Close()
	for in := false; !in; time.Sleep(time.Millisecond) { // the capsule hears of it
		_, in = knock(t, b.address, "127.0.0.1")
	}
}

// What a stranger sends is not read to its end, whatever is called.
func TestStrangersAreSmall(t *testing.T) {
	b := openBox(t, t.TempDir())
	for _, method := range []string{capsulev1.AccessService_Claim_FullMethodName, capsulev1.ObjectService_Apply_FullMethodName} {
		conn := b.dial(t, capsulev1.Role_ROLE_UNSPECIFIED)
		req := &capsulev1.ClaimRequest{Csr: make([]byte, strangerBytes)}
		if err := conn.Invoke(limit(t), method, req, &capsulev1.ClaimResponse{}); status.Code(err) != codes.Unavailable {
			t.Errorf("%s of %d bytes: %v", method, strangerBytes, err)
		}
		_ = conn.Close()
	}
}

// A stranger's connection ends by itself, and soon once somebody has claimed.
func TestStrangersAreShort(t *testing.T) {
	for name, c := range map[string]struct {
		wait time.Duration
		then func(*door)
	}{
		"in time": {strangerMax, func(*door) {}},
		"claimed": {lastWord, (*door).claimed},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDoor(Options{TLS: &tls.Config{}}, newRefusals(), &webSide{})
				near, far := net.Pipe()
				defer far.Close()
				in, err := d.let(near, nil)
				if err != nil {
					t.Fatal(err)
				}
				c.then(d)
				time.Sleep(c.wait - time.Nanosecond)
				synctest.Wait()
				d.mu.Lock()
				if len(d.strangers) != 1 {
					t.Error("closed too soon")
				}
				d.mu.Unlock()
				time.Sleep(time.Nanosecond)
				synctest.Wait()
				if _, err := in.Read(make([]byte, 1)); !errors.Is(err, io.ErrClosedPipe) {
					t.Errorf("still open: %v", err)
				}
				d.mu.Lock()
				defer d.mu.Unlock()
				if d.visitors.all != 0 || len(d.visitors.from) != 0 || len(d.strangers) != 0 {
					t.Errorf("left behind: %+v", d.visitors)
				}
			})
		})
	}
}

// Handshakes that one address never ends keep no other out.
func TestHandshakesOfOneAddress(t *testing.T) {
	b := newBox(t, nil)
	for range handshakesOfOne {
		c, err := net.Dial("tcp", b.address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	for { // those are counted as they are accepted
		c, err := net.Dial("tcp", b.address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, context.DeadlineExceeded) && !strings.Contains(err.Error(), "timeout") {
			break
		}
	}
	if err := info(limit(t), b.dialFrom(t, "127.0.0.2")); err != nil {
		t.Errorf("from elsewhere: %v", err)
	}
}

func (b *box) dialFrom(t *testing.T, ip string) *grpc.ClientConn {
	t.Helper()
	pair, err := b.ca.IssueOperator("anna", capsulev1.Role_ROLE_READER, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(pair.CertPEM, pair.KeyPEM)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(b.address, grpc.WithContextDialer(from(ip)),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// foreignCert is another capsule's certificate.
func foreignCert(t *testing.T, name string) tls.Certificate {
	t.Helper()
	ca, err := identity.NewCA("another capsule")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.IssueOperator(name, capsulev1.Role_ROLE_ADMIN, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(pair.CertPEM, pair.KeyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// Who was revoked and connects anew is on record, by name and key, however many
// strangers are refused.
func TestAuditOfARefusedConnection(t *testing.T) {
	l, err := audit.Open(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	g := newGuarded(t, capsulev1.Role_ROLE_OPERATOR, func(o *Options) { o.Audit = l })
	g.revoke(t)
	foreign := foreignCert(t, "ben")
	for range 3 * refusalsBurst {
		if conn, err := tls.Dial("tcp", g.address, &tls.Config{
			InsecureSkipVerify: true, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{foreign},
		}); err == nil {
			_, _ = io.ReadAll(conn)
			_ = conn.Close()
		}
	}
	if err := info(limit(t), g.ben.with(t, g.address, g.bens)); status.Code(err) != codes.Unavailable {
		t.Errorf("a new connection: %v", err)
	}
	ctx := limit(t)
	for found := false; !found; time.Sleep(time.Millisecond) { // the client sees the alert first
		if ctx.Err() != nil {
			t.Fatalf("no record: %+v", recorded(t, l))
		}
		for _, r := range recorded(t, l) {
			if r.Method == connect && r.Operator != "ben" {
				t.Errorf("a stranger has a name: %+v", r)
			}
			found = found || r.Method == connect && r.Key != "" && r.From != "" && r.Code == "Unauthenticated" && strings.Contains(r.Message, "revoked")
		}
	}
	if !strings.Contains(g.log.String(), "revoked, or never granted") {
		t.Errorf("not in the log:\n%s", g.log)
	}
}
