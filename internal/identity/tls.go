package identity

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
)

// ServerTLS is the configuration of the API's listener: TLS 1.3, and a client
// certificate of this capsule's CA with a role, checked before any call.
// hostnames are added to the name that every capsule has.
func (id *Identity) ServerTLS(hostnames ...string) (*tls.Config, error) {
	cert := id.fallback
	if id.authority != nil {
		pair, err := id.authority.IssueServer(append([]string{ServerName}, hostnames...)...)
		if err != nil {
			return nil, err
		}
		if cert, err = tls.X509KeyPair(pair.CertPEM, pair.KeyPEM); err != nil {
			return nil, fmt.Errorf("use server certificate: %w", err)
		}
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{cert},
		NextProtos:   []string{"h2"},
		// The standard check would refuse by NotBefore: ours is below.
		ClientAuth:             tls.RequireAnyClientCert,
		VerifyConnection:       func(cs tls.ConnectionState) error { return id.verify(cs.PeerCertificates, now()) },
		SessionTicketsDisabled: true, // a resumed session would not be checked again
	}, nil
}

// verify checks an operator's chain and that it has a role.
func (id *Identity) verify(chain []*x509.Certificate, at time.Time) error {
	if !id.claimed {
		return fmt.Errorf("capsule is not claimed, so nobody is known to it: %w", errdefs.ErrUnauthenticated)
	}
	if len(chain) == 0 {
		return fmt.Errorf("client sent no certificate: %w", errdefs.ErrUnauthenticated)
	}
	cert := chain[0]
	if at.Before(cert.NotBefore) {
		at = cert.NotBefore
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
	_, err = Role(cert)
	return err
}
