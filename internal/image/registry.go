package image

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
)

// RegistryAccess is how a registry is reached.
type RegistryAccess struct {
	Username  string
	Password  string
	PlainHTTP bool   // no TLS
	CA        []byte // PEM, trusted beside the system's
}

// Registries knows how registries are reached that need more than TLS with a
// public certificate.
type Registries interface {
	Lookup(host string) (RegistryAccess, bool)
}

// KV keeps small values by key; a bucket of the store is one.
type KV interface {
	Get(key string) ([]byte, bool, error)
	Put(key string, value []byte) error
	Delete(key string) error
	Each(func(key string, value []byte) error) error
}

// RegistryBook keeps how registries are reached, passwords included: what it
// is kept in must be readable by root only.
type RegistryBook struct{ kv KV }

// NewRegistryBook keeps its entries in kv, one for each host.
func NewRegistryBook(kv KV) *RegistryBook { return &RegistryBook{kv} }

// Set adds or replaces an entry. Without a password, the one that is kept for
// the same user stays.
func (b *RegistryBook) Set(r *v1.Registry, password string) error {
	host, err := registryHost(r.GetHost())
	if err != nil {
		return err
	}
	if ca := r.GetCaPem(); len(ca) > 0 && !x509.NewCertPool().AppendCertsFromPEM(ca) {
		return fmt.Errorf("registry %q: no PEM certificate in its CA: %w", host, errdefs.ErrInvalidArgument)
	}
	if r.GetPlainHttp() && len(r.GetCaPem()) > 0 {
		return fmt.Errorf("registry %q: plain HTTP has no use for a CA: %w", host, errdefs.ErrInvalidArgument)
	}
	if password != "" && r.GetUsername() == "" {
		return fmt.Errorf("registry %q: a password needs a user name: %w", host, errdefs.ErrInvalidArgument)
	}
	if password == "" && r.GetUsername() != "" {
		if old, ok := b.Lookup(host); ok && old.Username == r.GetUsername() {
			password = old.Password
		}
	}
	kept := proto.CloneOf(r)
	kept.Host = host
	value, err := proto.Marshal(&v1.SetRegistryRequest{Registry: kept, Password: password})
	if err != nil {
		return fmt.Errorf("registry %q: %w", host, err)
	}
	return b.kv.Put(host, value)
}

// Delete forgets a registry.
func (b *RegistryBook) Delete(name string) error {
	host, err := registryHost(name)
	if err != nil {
		return err
	}
	_, ok, err := b.kv.Get(host)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("registry %q is not set: %w", host, errdefs.ErrNotFound)
	}
	return b.kv.Delete(host)
}

// List returns all entries without their passwords.
func (b *RegistryBook) List() ([]*v1.Registry, error) {
	var list []*v1.Registry
	err := b.kv.Each(func(key string, value []byte) error {
		var entry v1.SetRegistryRequest
		if err := proto.Unmarshal(value, &entry); err != nil {
			return fmt.Errorf("registry %q: %w", key, err)
		}
		list = append(list, entry.GetRegistry())
		return nil
	})
	return list, err
}

// Lookup implements Registries. What can't be read counts as not set: the pull
// then says that the registry asks for a login.
func (b *RegistryBook) Lookup(host string) (RegistryAccess, bool) {
	host, err := registryHost(host)
	if err != nil {
		return RegistryAccess{}, false
	}
	value, ok, err := b.kv.Get(host)
	if err != nil || !ok {
		return RegistryAccess{}, false
	}
	var entry v1.SetRegistryRequest
	if err := proto.Unmarshal(value, &entry); err != nil {
		return RegistryAccess{}, false
	}
	r := entry.GetRegistry()
	return RegistryAccess{
		Username:  r.GetUsername(),
		Password:  entry.GetPassword(),
		PlainHTTP: r.GetPlainHttp(),
		CA:        r.GetCaPem(),
	}, true
}

// registryHost is the host of a registry as references have it.
func registryHost(name string) (string, error) {
	host := strings.ToLower(name)
	if host == "" || strings.ContainsAny(host, "/@ \t\n?#") {
		return "", fmt.Errorf("registry %q is not HOST or HOST:PORT: %w", name, errdefs.ErrInvalidArgument)
	}
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io", nil
	}
	return host, nil
}

// resolver speaks to the registry of a host as the operator set it.
func resolver(name string, access RegistryAccess) (remotes.Resolver, error) {
	transport, err := transport(access)
	if err != nil {
		return nil, fmt.Errorf("registry %s: %w", name, err)
	}
	client := &http.Client{Transport: transport}
	host := docker.RegistryHost{
		Client:       client,
		Host:         name,
		Scheme:       "https",
		Path:         "/v2",
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
		Authorizer: docker.NewDockerAuthorizer(docker.WithAuthClient(client),
			docker.WithAuthCreds(func(string) (string, string, error) {
				return access.Username, access.Password, nil
			})),
	}
	if access.PlainHTTP {
		host.Scheme = "http"
	}
	if name == "docker.io" {
		host.Host = "registry-1.docker.io"
	}
	return docker.NewResolver(docker.ResolverOptions{
		Hosts: func(string) ([]docker.RegistryHost, error) { return []docker.RegistryHost{host}, nil },
	}), nil
}

// transport never leaves TLS unless the registry is set to plain HTTP, so that
// neither a redirect nor a token server can get a password in the clear.
func transport(access RegistryAccess) (http.RoundTripper, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(access.CA) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(access.CA) {
			return nil, fmt.Errorf("no PEM certificate in its CA: %w", errdefs.ErrFailedPrecondition)
		}
		config.RootCAs = pool
	}
	t := &http.Transport{
		DialContext:           (&net.Dialer{Timeout: connectLimit}).DialContext,
		TLSClientConfig:       config,
		TLSHandshakeTimeout:   handshakeLimit,
		ResponseHeaderTimeout: answerLimit,
		ForceAttemptHTTP2:     true,
		IdleConnTimeout:       answerLimit,
	}
	if access.PlainHTTP {
		return t, nil
	}
	return tlsOnly{t}, nil
}

// errPlain is the refusal to speak without TLS.
var errPlain = errors.New("plain HTTP is not allowed for it")

type tlsOnly struct{ http.RoundTripper }

func (t tlsOnly) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, fmt.Errorf("%s: %w", r.URL.Host, errPlain)
	}
	return t.RoundTripper.RoundTrip(r)
}
