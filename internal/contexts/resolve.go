package contexts

import (
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/containerd/errdefs"
)

// ErrNone says that nothing names a capsule.
var ErrNone = errors.New("no capsule named")

// Resolve turns what an operator named into a context: a context's name, or
// host:port, which uses the keys of the context with that address, the current one
// first, else those of the current one. "" is the current context.
func (s *Store) Resolve(named string) (Context, error) {
	if named == "" {
		return s.current()
	}
	if nameForm.MatchString(named) {
		c, err := s.Get(named)
		if !errors.Is(err, errdefs.ErrNotFound) {
			return c, err
		}
	}
	host, ok := Address(named)
	if !ok {
		return Context{}, fmt.Errorf("context %q does not exist: %w", named, errdefs.ErrNotFound)
	}
	names, err := s.List()
	if err != nil {
		return Context{}, err
	}
	c, err := s.current()
	if err == nil && c.Host == host {
		return c, nil
	}
	for _, name := range names {
		if c, err := s.Get(name); err == nil && c.Host == host {
			return c, nil
		}
	}
	if err != nil {
		return Context{}, fmt.Errorf("no context holds keys for %q: %w", host, err)
	}
	c.Host = host
	return c, nil
}

func (s *Store) current() (Context, error) {
	name, err := s.Current()
	if err != nil {
		return Context{}, err
	}
	if name == "" {
		return Context{}, ErrNone
	}
	return s.Get(name)
}

// Address completes an IP or host:port; a bare word is a name, and none.
func Address(s string) (string, bool) {
	if ip := net.ParseIP(s); ip != nil {
		return net.JoinHostPort(s, strconv.Itoa(Port)), true
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" {
		return "", false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return net.JoinHostPort(host, port), err == nil && n > 0
}
