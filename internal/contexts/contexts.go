// Package contexts owns what an operator's machine knows of capsules: for each
// one its address, the CA that its certificate must come from, and the
// operator's own certificate and key. It never talks to a capsule except to
// open a connection.
package contexts

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	yaml "go.yaml.in/yaml/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// serverName is in every capsule's certificate, so that trust hangs on the
// context's CA and not on an address that may change.
const serverName = "capsule"

// Port is where a capsule's API listens.
const Port = 50000

// Bounds of a connection. A capsule under emulation needs seconds for a TLS
// handshake; a forwarded port may accept before the capsule listens.
const (
	handshakeMax = 10 * time.Second
	retryBase    = 200 * time.Millisecond
	retryMax     = 2 * time.Second
	pingEvery    = 20 * time.Second
	pingWait     = 20 * time.Second
)

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

const (
	nameMax      = 63 // bytes, as nameForm has it
	namesakesMax = 1000
)

// Context is how one capsule is reached. CA, Certificate and Key are PEM; Key may
// be the word "keychain", for one that the platform keeps.
type Context struct {
	Name        string `yaml:"-"`
	Host        string `yaml:"host"`
	CA          string `yaml:"ca"`
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
	// Issued is when the certificate was made; it doesn't tell itself. Zero when
	// that is not known.
	Issued time.Time `yaml:"issued,omitempty"`
}

// Grant is what goes back to whoever asked a capsule's admin for access, for a
// context with the key that is here. CA and Certificate are PEM; nothing is secret.
type Grant struct {
	Capsule     string `yaml:"capsule"`
	Host        string `yaml:"host"`
	CA          string `yaml:"ca"`
	Certificate string `yaml:"certificate"`
}

// TLS is the client's side of the mutual handshake.
func (c Context) TLS() (*tls.Config, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(c.CA)) {
		return nil, fmt.Errorf("context %q: no certificate of a CA in it: %w", c.Name, errdefs.ErrInvalidArgument)
	}
	pair, err := c.pair()
	if err != nil {
		return nil, fmt.Errorf("context %q: operator's certificate: %w", c.Name, err)
	}
	return &tls.Config{
		RootCAs:      roots,
		Certificates: []tls.Certificate{pair},
		ServerName:   serverName,
		MinVersion:   tls.VersionTLS13,
	}, nil
}

// Dial opens a connection, which is made at its first call.
func (c Context) Dial(more ...grpc.DialOption) (*grpc.ClientConn, error) {
	config, err := c.TLS()
	if err != nil {
		return nil, err
	}
	opts := append([]grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: retryBase, Multiplier: 1.6, Jitter: 0.2, MaxDelay: retryMax},
			MinConnectTimeout: handshakeMax,
		}),
		// Notices a capsule that lost its power during a follow or an exec.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: pingWait}),
	}, more...)
	conn, err := grpc.NewClient(Target(c.Host), append(opts, grpc.WithNoProxy())...)
	if err != nil {
		return nil, fmt.Errorf("connect to %q: %w", c.Host, err)
	}
	return conn, nil
}

// Target is how gRPC takes a host:port as it is, also one with the zone of an
// address of the link alone. Proxies and name resolvers of the environment are not
// for machines on the own network.
func Target(host string) string { return "passthrough:///" + url.PathEscape(host) }

// Store is a folder of contexts, one file each.
type Store struct{ dir string }

// Open gives the contexts in dir, or in the user's own folder when dir is "".
func Open(dir string) (*Store, error) {
	if dir != "" {
		return &Store{dir}, nil
	}
	base := os.Getenv("XDG_CONFIG_HOME")
	if base == "" && runtime.GOOS == "linux" {
		if home, err := os.UserHomeDir(); err == nil {
			base = filepath.Join(home, ".config")
		}
	}
	if base == "" {
		var err error
		if base, err = os.UserConfigDir(); err != nil {
			return nil, fmt.Errorf("find the folder of contexts: %w", err)
		}
	}
	return &Store{filepath.Join(base, "capsule")}, nil
}

func (s *Store) path(name string) (string, error) {
	if !nameForm.MatchString(name) {
		return "", fmt.Errorf("context name %q: letters, digits, \"-\", \"_\" and \".\", at most 63: %w", name, errdefs.ErrInvalidArgument)
	}
	return filepath.Join(s.dir, "contexts", name+".yaml"), nil
}

// spelled gives a name as the store has it. Contexts differ in more than the case of
// their names: the file systems of macOS and Windows take those for one.
func (s *Store) spelled(name string) (string, error) {
	names, err := s.List()
	if err != nil || slices.Contains(names, name) {
		return name, err
	}
	for _, have := range names {
		if strings.EqualFold(have, name) {
			return have, nil
		}
	}
	return name, nil
}

// Get reads one context.
func (s *Store) Get(name string) (Context, error) {
	name, err := s.spelled(name)
	if err != nil {
		return Context{}, err
	}
	path, err := s.path(name)
	if err != nil {
		return Context{}, err
	}
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return Context{}, fmt.Errorf("context %q does not exist: %w", name, errdefs.ErrNotFound)
	}
	if err != nil {
		return Context{}, fmt.Errorf("read context %q: %w", name, err)
	}
	return parse(name, data)
}

func parse(name string, data []byte) (Context, error) {
	c := Context{Name: name}
	if err := yaml.Unmarshal(data, &c); err != nil {
		return Context{}, fmt.Errorf("read context %q: %w", name, err)
	}
	if c.Host == "" {
		return Context{}, fmt.Errorf("read context %q: it names no host: %w", name, errdefs.ErrInvalidArgument)
	}
	return c, nil
}

// Put writes a context whole or not at all, readable by its owner only, in place of
// any of that name. Its key goes to the platform's keychain where there is one.
func (s *Store) Put(c Context) error {
	return s.locked(func() (err error) {
		if c.Name, err = s.spelled(c.Name); err != nil {
			return err
		}
		return s.put(c, replace)
	})
}

// put is Put by who has the lock.
func (s *Store) put(c Context, write func(path string, data []byte) error) error {
	path, err := s.path(c.Name)
	if err != nil {
		return err
	}
	old, oldErr := s.Get(c.Name)
	c.Key = platform.keep(c.Certificate, c.Key)
	data, err := yaml.Marshal(c)
	if err != nil {
		return fmt.Errorf("write context %q: %w", c.Name, err)
	}
	if err := write(path, data); err != nil {
		return fmt.Errorf("write context %q: %w", c.Name, err)
	}
	if oldErr == nil {
		if err := s.forget(old); err != nil {
			return fmt.Errorf("forget the key that context %q had: %w", c.Name, err)
		}
	}
	return nil
}

// Add saves a context under its name, or under one made from it, and gives it as it
// was saved. A key that opens something else than the new one does is never lost by
// it: only a context that the new one succeeds is replaced.
func (s *Store) Add(c Context) (Context, error) {
	if _, err := s.path(c.Name); err != nil {
		return c, err
	}
	err := s.locked(func() error {
		base := c.Name
		for i := 2; i <= namesakesMax; i++ {
			old, err := s.Get(c.Name)
			switch {
			case errdefs.IsNotFound(err):
				return s.put(c, create)
			case err == nil && c.succeeds(old):
				c.Name = old.Name
				return s.put(c, replace)
			}
			suffix := fmt.Sprintf("-%d", i)
			c.Name = base[:min(len(base), nameMax-len(suffix))] + suffix
		}
		return fmt.Errorf("write context %q: there are %d of that name: %w", base, namesakesMax-1, errdefs.ErrFailedPrecondition)
	})
	return c, err
}

// succeeds tells whether a context may take the place of another: it is for the same
// capsule, and by the same key, or by one of the same name and role, which are a
// certificate's subject.
func (c Context) succeeds(old Context) bool {
	ca, err1 := c.Authority()
	oldCA, err2 := old.Authority()
	leaf, err3 := c.Leaf()
	oldLeaf, err4 := old.Leaf()
	if errors.Join(err1, err2, err3, err4) != nil || !ca.Equal(oldCA) {
		return false
	}
	return bytes.Equal(leaf.RawSubjectPublicKeyInfo, oldLeaf.RawSubjectPublicKeyInfo) || bytes.Equal(leaf.RawSubject, oldLeaf.RawSubject)
}

// change rewrites what a context says.
func (s *Store) change(name string, edit func(*Context) error) error {
	return s.locked(func() error {
		c, err := s.Get(name)
		if err != nil {
			return err
		}
		if err := edit(&c); err != nil {
			return err
		}
		return s.put(c, replace)
	})
}

// Move notes where a capsule is now; what else its context says stays.
func (s *Store) Move(name, host string) error {
	return s.change(name, func(c *Context) error {
		c.Host = host
		return nil
	})
}

// Renew gives a context a new certificate with its key, in place of the old one. One
// that has another by now keeps that.
func (s *Store) Renew(old Context, certificate, key string, at time.Time) error {
	return s.change(old.Name, func(c *Context) error {
		if c.Certificate != old.Certificate {
			return fmt.Errorf("context %q has another certificate meanwhile: %w", c.Name, errdefs.ErrFailedPrecondition)
		}
		c.Certificate, c.Key, c.Issued = certificate, key, at.UTC().Truncate(time.Second)
		return nil
	})
}

// Delete removes a context with its key; the current one is then none.
func (s *Store) Delete(name string) error {
	return s.locked(func() error { return s.delete(name) })
}

func (s *Store) delete(name string) error {
	name, err := s.spelled(name)
	if err != nil {
		return err
	}
	path, err := s.path(name)
	if err != nil {
		return err
	}
	old, oldErr := s.Get(name)
	if err := os.Remove(path); os.IsNotExist(err) {
		return fmt.Errorf("context %q does not exist: %w", name, errdefs.ErrNotFound)
	} else if err != nil {
		return fmt.Errorf("delete context %q: %w", name, err)
	}
	if oldErr == nil {
		if err := s.forget(old); err != nil {
			return fmt.Errorf("forget the key that context %q had: %w", name, err)
		}
	}
	if current, err := s.Current(); err == nil && current == name {
		if err := os.Remove(filepath.Join(s.dir, "current")); err != nil {
			return fmt.Errorf("delete context %q: %w", name, err)
		}
	}
	return nil
}

// List gives the names of all contexts in order.
func (s *Store) List() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "contexts"))
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list contexts: %w", err)
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".yaml"); ok && nameForm.MatchString(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Current names the context in use, "" when none is.
func (s *Store) Current() (string, error) {
	data, err := os.ReadFile(filepath.Join(s.dir, "current"))
	if os.IsNotExist(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the current context: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// Use makes a context the current one.
func (s *Store) Use(name string) error {
	return s.locked(func() error {
		c, err := s.Get(name)
		if err != nil {
			return err
		}
		if err := replace(filepath.Join(s.dir, "current"), []byte(c.Name+"\n")); err != nil {
			return fmt.Errorf("use context %q: %w", c.Name, err)
		}
		return nil
	})
}
