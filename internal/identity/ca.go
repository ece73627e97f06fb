package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"

	"github.com/containerd/errdefs"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/version"
)

// CA is a capsule's own certificate authority.
type CA struct {
	Cert *x509.Certificate
	key  crypto.Signer
}

// Pair is a certificate with its private key, both PEM.
type Pair struct{ CertPEM, KeyPEM []byte }

// notBefore of every certificate: far in the past, since the clocks of both
// sides may be wrong.
var notBefore = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

const (
	caLife     = 100 * 365 * 24 * time.Hour
	serverLife = 10 * 365 * 24 * time.Hour
)

const (
	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY"
)

// NewCA makes an authority; name is shown to people only.
func NewCA(name string) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make CA key: %w", err)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		NotAfter:              now().Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := sign(template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &CA{Cert: cert, key: key}, nil
}

// ParseCA reads an authority; both arguments may be the same PEM text.
func ParseCA(certPEM, keyPEM []byte) (*CA, error) {
	cert, err := ParseCert(certPEM)
	if err != nil {
		return nil, err
	}
	if !cert.IsCA {
		return nil, fmt.Errorf("certificate %q is no authority: %w", cert.Subject.CommonName, errdefs.ErrInvalidArgument)
	}
	block := findPEM(keyPEM, pemKey)
	if block == nil {
		return nil, fmt.Errorf("no PEM block %q: %w", pemKey, errdefs.ErrInvalidArgument)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block)
	if err != nil {
		return nil, fmt.Errorf("read CA key: %w", err)
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("CA key can't sign: %w", errdefs.ErrInvalidArgument)
	}
	public, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(key.Public()) {
		return nil, fmt.Errorf("CA key does not belong to its certificate: %w", errdefs.ErrInvalidArgument)
	}
	return &CA{Cert: cert, key: key}, nil
}

// ParseCert reads the first certificate of a PEM text.
func ParseCert(text []byte) (*x509.Certificate, error) {
	block := findPEM(text, pemCertificate)
	if block == nil {
		return nil, fmt.Errorf("no PEM block %q: %w", pemCertificate, errdefs.ErrInvalidArgument)
	}
	return x509.ParseCertificate(block)
}

// CertPEM is what clients trust.
func (ca *CA) CertPEM() []byte { return EncodeCert(ca.Cert) }

// KeyPEM is the authority's private key, PKCS #8.
func (ca *CA) KeyPEM() ([]byte, error) { return encodeKey(ca.key) }

// SeedPEM is what a new capsule takes its identity from: with these operators'
// certificates only they are let in, with none all that the CA ever signs.
func (ca *CA) SeedPEM(operators ...[]byte) ([]byte, error) {
	key, err := ca.KeyPEM()
	if err != nil {
		return nil, err
	}
	return bytes.Join(append([][]byte{ca.CertPEM(), key}, operators...), nil), nil
}

// IssueOperator makes a client certificate of a role.
func (ca *CA) IssueOperator(name string, role capsulev1.Role, ttl time.Duration) (Pair, error) {
	template, err := operatorTemplate(name, role, ttl)
	if err != nil {
		return Pair{}, err
	}
	return ca.issue(template)
}

// signOperator makes one for a key that somebody else holds.
func (ca *CA) signOperator(name string, role capsulev1.Role, key crypto.PublicKey, ttl time.Duration) (*x509.Certificate, error) {
	template, err := operatorTemplate(name, role, ttl)
	if err != nil {
		return nil, err
	}
	der, err := sign(template, ca.Cert, key, ca.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// Issue makes a certificate, PEM, for who made a request.
func (ca *CA) Issue(r Request, role capsulev1.Role, ttl time.Duration) ([]byte, error) {
	cert, err := ca.signOperator(r.Name, role, r.key, ttl)
	if err != nil {
		return nil, err
	}
	return EncodeCert(cert), nil
}

func operatorTemplate(name string, role capsulev1.Role, ttl time.Duration) (*x509.Certificate, error) {
	unit, ok := roleUnits[role]
	if !ok {
		return nil, fmt.Errorf("role %v: %w", role, errdefs.ErrInvalidArgument)
	}
	return &x509.Certificate{
		Subject:     pkix.Name{CommonName: name, OrganizationalUnit: []string{unit}},
		NotAfter:    now().Add(ttl),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, nil
}

// IssueServer makes the capsule's own certificate for these host names.
func (ca *CA) IssueServer(names ...string) (Pair, error) {
	return ca.issue(&x509.Certificate{
		// OpenSSL takes a certificate with its CA's own name for one signed by itself.
		Subject:     pkix.Name{CommonName: names[0] + " server"},
		DNSNames:    names,
		NotAfter:    now().Add(serverLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
}

func (ca *CA) issue(template *x509.Certificate) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("make key: %w", err)
	}
	der, err := sign(template, ca.Cert, &key.PublicKey, ca.key)
	if err != nil {
		return Pair{}, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return Pair{}, err
	}
	return Pair{CertPEM: pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der}), KeyPEM: keyPEM}, nil
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	template.SerialNumber = serial
	template.NotBefore = notBefore
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate %q: %w", template.Subject.CommonName, err)
	}
	return der, nil
}

// now is the clock, but never before this version was built.
func now() time.Time {
	if t := time.Now(); t.After(version.BuildTime()) {
		return t
	}
	return version.BuildTime()
}

// EncodeCert writes a certificate as PEM.
func EncodeCert(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: cert.Raw})
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
}

// findPEM returns the first block of a type, or nil.
func findPEM(text []byte, kind string) []byte {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return nil
		}
		if block.Type == kind {
			return block.Bytes
		}
	}
}
