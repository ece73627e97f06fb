package imagetest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// RegistryOptions of a test registry.
type RegistryOptions struct {
	TLS      bool   // with a certificate of its own authority
	Username string // asked for when not empty
	Password string
}

// RegistryServer is an OCI registry on loopback.
type RegistryServer struct {
	Host string // address and port, as in a reference
	CA   []byte // PEM, with TLS

	options RegistryOptions
	handler http.Handler
	mu      sync.Mutex
	hook    func(w http.ResponseWriter, r *http.Request) bool
	seen    []string
}

// Registry starts a registry that ends with the test.
func Registry(t testing.TB, options RegistryOptions) *RegistryServer {
	t.Helper()
	s := &RegistryServer{
		options: options,
		handler: registry.New(registry.Logger(log.New(io.Discard, "", 0))),
	}
	server := httptest.NewUnstartedServer(s)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	if options.TLS {
		cert, ca := certificate(t)
		s.CA = ca
		server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
		server.StartTLS()
	} else {
		server.Start()
	}
	t.Cleanup(server.Close)
	s.Host = server.Listener.Addr().String()
	return s
}

// Hook is called before each request; it returns true when it answered.
func (s *RegistryServer) Hook(hook func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = hook
}

// Requests counts what was asked, as "METHOD PATH", whose text contains part.
func (s *RegistryServer) Requests(part string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, r := range s.seen {
		if strings.Contains(r, part) {
			n++
		}
	}
	return n
}

// ServeHTTP answers a request of a client.
func (s *RegistryServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.seen = append(s.seen, r.Method+" "+r.URL.Path)
	hook := s.hook
	s.mu.Unlock()
	if hook != nil && hook(w, r) {
		return
	}
	if s.options.Username != "" {
		user, password, _ := r.BasicAuth()
		if user != s.options.Username || password != s.options.Password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
			return
		}
	}
	s.handler.ServeHTTP(w, r)
}

// Push puts an image in the registry and returns its full reference.
func (s *RegistryServer) Push(t testing.TB, repository, tag string, image Image) string {
	t.Helper()
	built := image.Build()
	return s.PushBlobs(t, repository, tag, built.Manifest, built.Blobs()...)
}

// PushIndex puts several platforms under one tag.
func (s *RegistryServer) PushIndex(t testing.TB, repository, tag string, images ...Image) string {
	t.Helper()
	var descs []ocispec.Descriptor
	for _, i := range images {
		built := i.Build()
		s.PushBlobs(t, repository, built.Digest(), built.Manifest, built.Blobs()...)
		descs = append(descs, built.Manifest.Descriptor)
	}
	return s.PushBlobs(t, repository, tag, Index(descs...))
}

// PushBlobs puts blobs and a manifest or index over them in the registry.
func (s *RegistryServer) PushBlobs(t testing.TB, repository, tag string, top Blob, blobs ...Blob) string {
	t.Helper()
	for _, b := range blobs {
		if b.Digest == top.Digest {
			continue
		}
		s.put(t, "POST", "/v2/"+repository+"/blobs/uploads/?digest="+b.Digest.String(), "application/octet-stream", b.Data)
	}
	s.put(t, "PUT", "/v2/"+repository+"/manifests/"+tag, top.MediaType, top.Data)
	separator := ":"
	if strings.HasPrefix(tag, "sha256:") {
		separator = "@"
	}
	return s.Host + "/" + repository + separator + tag
}

// put asks the registry directly, past hooks and passwords.
func (s *RegistryServer) put(t testing.TB, method, url, mediaType string, data []byte) {
	t.Helper()
	r := httptest.NewRequest(method, url, bytes.NewReader(data))
	r.Header.Set("Content-Type", mediaType)
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, r)
	if w.Code >= 300 {
		t.Fatalf("registry: %s %s: %d %s", method, url, w.Code, w.Body)
	}
}

// certificate makes one for loopback, signed by an authority of its own.
func certificate(t testing.TB) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "test registry"},
		NotBefore:             time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:              time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		DNSNames:              []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, ca
}
