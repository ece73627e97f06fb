package image

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
)

// RegistryAccess is how a registry is reached.
type RegistryAccess struct {
	Username  string
	Password  string
	PlainHTTP bool     // no TLS
	CA        []byte   // PEM, trusted beside the system's
	Mirrors   []string // hosts that are asked before it, in order
}

// Registries knows how registries are reached that need more than TLS with a
// public certificate, or have mirrors; the zero access stands for all others. An error
// is why a registry can't be asked now.
type Registries interface {
	Lookup(host string) (RegistryAccess, error)
}

// way is a host with what it takes to reach it.
type way struct {
	host   string
	access RegistryAccess
}

// ways to a registry: its mirrors, then itself.
func ways(known Registries, name string) ([]way, error) {
	if known == nil {
		return []way{{host: name}}, nil
	}
	access, err := known.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("registry %s: %w", name, err)
	}
	var all []way
	for _, mirror := range access.Mirrors {
		own, err := known.Lookup(mirror)
		if err != nil {
			return nil, fmt.Errorf("mirror %s of registry %s: %w", mirror, name, err)
		}
		all = append(all, way{mirror, own})
	}
	return append(all, way{name, access}), nil
}

// resolver asks the ways to a registry one after the other, each as the operator set
// it.
func resolver(all []way) (remotes.Resolver, error) {
	var hosts []docker.RegistryHost
	for _, w := range all {
		host, err := w.registryHost()
		if err != nil {
			return nil, fmt.Errorf("registry %s: %w", w.host, err)
		}
		hosts = append(hosts, host)
	}
	return docker.NewResolver(docker.ResolverOptions{
		Hosts: func(string) ([]docker.RegistryHost, error) { return hosts, nil },
	}), nil
}

func (w way) registryHost() (docker.RegistryHost, error) {
	transport, err := transport(w.access)
	if err != nil {
		return docker.RegistryHost{}, err
	}
	client := &http.Client{Transport: transport}
	host := docker.RegistryHost{
		Client:       client,
		Host:         w.host,
		Scheme:       "https",
		Path:         "/v2",
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
		Authorizer: docker.NewDockerAuthorizer(docker.WithAuthClient(client),
			docker.WithAuthCreds(func(string) (string, string, error) {
				return w.access.Username, w.access.Password, nil
			})),
	}
	if w.access.PlainHTTP {
		host.Scheme = "http"
	}
	if w.host == "docker.io" {
		host.Host = "registry-1.docker.io"
	}
	return host, nil
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
