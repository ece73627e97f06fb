package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"capsule/internal/claim"
	"capsule/internal/contexts"
	"capsule/internal/identity"
)

// connectMax bounds connecting to a capsule that has no context: TLS takes
// seconds on an emulated one.
const connectMax = 15 * time.Second

// bound is a connection to whoever answers, with what proofs are bound to it by.
// gRPC gets this one connection and never makes another, to which no proof fits.
type bound struct {
	conn   *grpc.ClientConn
	tls    *tls.Conn
	export []byte
}

// handshake connects without believing anything that is shown: the code is what
// tells who it is.
func handshake(ctx context.Context, host string) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectMax)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", host)
	if err != nil {
		return nil, noAnswer(host, err)
	}
	conn := tls.Client(raw, &tls.Config{
		InsecureSkipVerify: true, //nolint:gosec // nothing is known yet to verify it by; the proofs do that
		ServerName:         identity.ServerName,
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{"h2"},
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close() //nolint:errcheck // it failed
		return nil, noAnswer(host, err)
	}
	return conn, nil
}

func noAnswer(host string, err error) error {
	return &failure{exitFailed, fmt.Errorf("capsule at %s does not answer: %s", host, cause(err.Error())), "is it powered on and on this network? its console shows its address, and \"capsulectl discover\" what answers"}
}

// bind connects for one claim.
func bind(ctx context.Context, host string) (*bound, error) {
	conn, err := handshake(ctx, host)
	if err != nil {
		return nil, err
	}
	b := &bound{tls: conn}
	if b.export, err = claim.Export(conn.ConnectionState()); err != nil {
		b.close()
		return nil, err
	}
	once := make(chan net.Conn, 1)
	once <- conn
	close(once)
	b.conn, err = grpc.NewClient(contexts.Target(host), grpc.WithNoProxy(), grpc.WithDisableRetry(),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // it is TLS already
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			if c, ok := <-once; ok {
				return c, nil
			}
			return nil, errors.New("the connection broke")
		}))
	if err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

func (b *bound) close() {
	if b.conn != nil {
		b.conn.Close() //nolint:errcheck // its one call was made
	}
	b.tls.Close() //nolint:errcheck // as above
}

// endsAt checks that the other end of the connection holds a certificate of this
// CA, as each later connection will.
func (b *bound) endsAt(ca *x509.Certificate) error {
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	leaf := b.tls.ConnectionState().PeerCertificates[0]
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: identity.ServerName, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, CurrentTime: within(leaf)})
	if err != nil {
		return fmt.Errorf("the connection does not end in the capsule: %w", err)
	}
	return nil
}

// within is a time at which a certificate is valid: this machine's clock is no
// reason not to claim.
func within(cert *x509.Certificate) time.Time {
	now := time.Now()
	switch {
	case now.Before(cert.NotBefore):
		return cert.NotBefore
	case now.After(cert.NotAfter):
		return cert.NotAfter
	}
	return now
}

// probeTries of a capsule that says nothing: one that has just shown its code may have
// no address yet.
const probeTries = 3

// probe tells whether a capsule takes claims at all, before anybody types a code.
func probe(ctx context.Context, host string) error {
	for try := 1; ; try++ {
		began := time.Now()
		err := probeOnce(ctx, host)
		if silent := time.Since(began) >= connectMax; !silent || err == nil || try == probeTries || ctx.Err() != nil {
			return err
		}
	}
}

func probeOnce(ctx context.Context, host string) error {
	conn, err := handshake(ctx, host)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing was asked
	// The server speaks first, or refuses first whoever has no certificate.
	limited, cancel := context.WithTimeout(ctx, connectMax)
	defer cancel()
	if _, err := firstByte(limited, conn); err != nil {
		if strings.Contains(err.Error(), "remote error: tls:") {
			return claimedAlready(host)
		}
		return noAnswer(host, err)
	}
	return nil
}

func claimedAlready(host string) error {
	return &failure{exitRefused, fmt.Errorf("capsule at %s is claimed already", host), accessHint}
}

// accessHint is the way in for somebody who has no certificate that is good.
const accessHint = "have an admin let you in (\"capsulectl access request --help\"); if there is none any more, docs/security.md tells how its owner gets in again"

// claimHost is where the capsule is that somebody wants to claim: an address as it
// is, a name by asking the network.
func (a *app) claimHost(ctx context.Context, target string) (string, error) {
	if host, ok := contexts.Address(target); ok {
		return host, nil
	}
	name := bareName(target)
	if strings.Contains(name, ".") { // a name of the DNS
		host, _ := contexts.Address(net.JoinHostPort(name, fmt.Sprint(contexts.Port)))
		return host, nil
	}
	a.ui.note("looking for %s on this network", name)
	return findByName(ctx, name)
}

// bareName is the name of a capsule as its console shows it, of one that may be typed
// as a host of this network.
func bareName(target string) string {
	if n := len(target) - len(".local"); n > 0 && strings.EqualFold(target[n:], ".local") {
		return target[:n]
	}
	return target
}
