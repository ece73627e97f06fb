package image

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
)

// errStalled ends a transfer that no byte came of for too long.
var errStalled = errors.New("no byte for too long")

// registryError says in an operator's words what a registry answered. What it
// returns holds neither addresses with a query, which may carry a token, nor
// what the registry's body says.
func registryError(host string, access RegistryAccess, err error) error {
	set := fmt.Sprintf("\"capsulectl registry set %s\"", host)
	var status remoteerrors.ErrUnexpectedStatus
	var unknownCA x509.UnknownAuthorityError
	var hostname x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &status):
		return statusError(host, access, status.StatusCode)
	case errors.Is(err, docker.ErrInvalidAuthorization), strings.Contains(err.Error(), "no basic auth credentials"):
		return statusError(host, access, http.StatusUnauthorized)
	case errors.Is(err, errPlain), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return fmt.Errorf("registry %s speaks plain HTTP, which it is not set to: use %s --plain-http: %w", host, set, errdefs.ErrFailedPrecondition)
	case errors.As(err, &unknownCA):
		return fmt.Errorf("registry %s has a certificate of an authority that is not known: use %s --ca FILE: %w", host, set, errdefs.ErrFailedPrecondition)
	case errors.As(err, &hostname), errors.As(err, &invalid):
		return fmt.Errorf("registry %s: %w: %w", host, bare(err), errdefs.ErrFailedPrecondition)
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("registry %s: %w", host, context.Canceled)
	case timedOut(err):
		return fmt.Errorf("registry %s did not answer in time: %w", host, errdefs.ErrUnavailable)
	case errdefs.IsNotFound(err):
		return statusError(host, access, http.StatusNotFound)
	}
	return fmt.Errorf("registry %s: %w: %w", host, bare(err), errdefs.ErrUnavailable)
}

// statusError explains an HTTP status.
func statusError(host string, access RegistryAccess, code int) error {
	set := fmt.Sprintf("\"capsulectl registry set %s --username NAME\"", host)
	switch {
	case code == http.StatusUnauthorized && access.Username == "":
		return fmt.Errorf("registry %s asks for a login (401): use %s: %w", host, set, errdefs.ErrUnauthenticated)
	case code == http.StatusUnauthorized:
		return fmt.Errorf("registry %s refuses the login of user %q (401): use %s: %w", host, access.Username, set, errdefs.ErrUnauthenticated)
	case code == http.StatusForbidden:
		return fmt.Errorf("registry %s forbids it (403): use %s with a user that may read it: %w", host, set, errdefs.ErrPermissionDenied)
	case code == http.StatusNotFound:
		return fmt.Errorf("registry %s has no such image: %w", host, errdefs.ErrNotFound)
	case code == http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("registry %s broke off and can't go on in the middle (416): %w", host, errdefs.ErrUnavailable)
	case code == http.StatusTooManyRequests:
		return fmt.Errorf("registry %s limits the rate of requests (429): %w", host, errdefs.ErrUnavailable)
	case code >= 500:
		return fmt.Errorf("registry %s answers %d %s: %w", host, code, http.StatusText(code), errdefs.ErrUnavailable)
	}
	return fmt.Errorf("registry %s answers %d %s: %w", host, code, http.StatusText(code), errdefs.ErrFailedPrecondition)
}

// noRanges tells a registry that can't send a part of a blob.
func noRanges(err error) bool {
	var status remoteerrors.ErrUnexpectedStatus
	return errors.As(err, &status) && status.StatusCode == http.StatusRequestedRangeNotSatisfiable
}

// timedOut tells every way in which a peer can be too slow.
func timedOut(err error) bool {
	var n net.Error
	return errors.Is(err, errStalled) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &n) && n.Timeout()
}

// bare drops the request from an error of the HTTP client.
func bare(err error) error {
	var u *url.Error
	for errors.As(err, &u) {
		err = u.Err
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		return op.Err
	}
	return err
}
