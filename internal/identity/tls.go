package identity

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
)

// ServerTLS is the configuration of the API's listener: TLS 1.3, and a client
// certificate of this capsule's CA whose key is let in, checked before any call.
// Only while the capsule can be claimed may a client have none: the server must
// then answer it nothing but the claim. hostnames are added to the name that
// every capsule has; Rename changes them.
func (id *Identity) ServerTLS(hostnames ...string) (*tls.Config, error) {
	if err := id.Rename(hostnames...); err != nil {
		return nil, err
	}
	config := &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return id.shown.Load(), nil },
		NextProtos:     []string{"h2"},
		// The standard check would refuse by NotBefore: ours is below.
		ClientAuth:             tls.RequireAnyClientCert,
		VerifyConnection:       func(cs tls.ConnectionState) error { return id.verify(cs.PeerCertificates, now()) },
		SessionTicketsDisabled: true, // a resumed session would not be checked again
	}
	claimable := config.Clone()
	claimable.ClientAuth = tls.RequestClientCert
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		if id.anonymous() {
			return claimable, nil
		}
		return nil, nil // that one
	}
	return config, nil
}

// Rename has connections from now on see a certificate with these names beside the one
// that every capsule has. Contexts check that one, and go on working.
func (id *Identity) Rename(hostnames ...string) error {
	cert := id.fallback
	if id.authority != nil {
		pair, err := id.authority.IssueServer(append([]string{ServerName}, hostnames...)...)
		if err != nil {
			return err
		}
		if cert, err = tls.X509KeyPair(pair.CertPEM, pair.KeyPEM); err != nil {
			return fmt.Errorf("use server certificate: %w", err)
		}
	}
	id.shown.Store(&cert)
	return nil
}

// verify checks an operator's chain, and that its key is let in. Nobody's
// certificate is only asked for while the capsule can be claimed. A certificate of
// ours that has expired comes in to hear so: each call judges that.
func (id *Identity) verify(chain []*x509.Certificate, at time.Time) error {
	if len(chain) == 0 {
		if id.anonymous() {
			return nil
		}
		return fmt.Errorf("client sent no certificate: %w", errdefs.ErrUnauthenticated)
	}
	cert := chain[0]
	if err := id.genuine(cert); err != nil {
		return err
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	_, err := id.known(cert, at)
	return err
}

// genuine tells that our CA made this certificate for an operator; no clock has a
// say in that.
func (id *Identity) genuine(cert *x509.Certificate) error {
	at := cert.NotBefore
	if id.ca.NotBefore.After(at) { // a CA that came with a seed
		at = id.ca.NotBefore
	}
	roots := x509.NewCertPool()
	roots.AddCert(id.ca)
	_, err := cert.Verify(x509.VerifyOptions{
		Roots:       roots,
		CurrentTime: at,
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return fmt.Errorf("certificate of %q is refused: %w", cert.Subject.CommonName, err)
	}
	return nil
}
