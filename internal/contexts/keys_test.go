package contexts

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// signed is a certificate of a pending key, by itself.
func signed(t *testing.T, p Pending) string {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, p.Key.Public(), p.Key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// made is a context whose key was made here.
func made(t *testing.T, s *Store, name string) Context {
	t.Helper()
	p, err := s.Await(name)
	if err != nil {
		t.Fatal(err)
	}
	key, err := p.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	cert := signed(t, p)
	if err := s.Settle(p); err != nil {
		t.Fatal(err)
	}
	return Context{Name: name, Host: "10.0.0.1:50000", CA: cert, Certificate: cert, Key: key}
}

// useKeychain puts a map in the platform's place.
func useKeychain(t *testing.T) map[string]string {
	kept := map[string]string{}
	old := platform
	t.Cleanup(func() { platform = old })
	platform = &keychain{
		get: func(id string) (string, error) {
			if s, ok := kept[id]; ok {
				return s, nil
			}
			return "", errors.New("not there")
		},
		set:    func(id, secret string) error { kept[id] = secret; return nil },
		remove: func(id string) error { delete(kept, id); return nil },
	}
	return kept
}

func TestKeychain(t *testing.T) {
	kept := useKeychain(t)
	s := &Store{t.TempDir()}
	c := made(t, s, "a")
	if err := s.Put(c); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(s.dir, "contexts", "a.yaml"))
	if err != nil || strings.Contains(string(text), pemKey) || !strings.Contains(string(text), "key: keychain\n") {
		t.Fatalf("%s, %v", text, err)
	}
	got, err := s.Get("a")
	if err != nil {
		t.Fatal(err)
	}
	config, err := got.TLS()
	if err != nil {
		t.Fatal(err)
	}
	if key, ok := config.Certificates[0].PrivateKey.(*ecdsa.PrivateKey); !ok || len(kept) != 1 || key == nil {
		t.Errorf("%T, %d kept", config.Certificates[0].PrivateKey, len(kept))
	}

	// A copy has the same key, and keeps it when the first goes.
	got.Name = "copy"
	if err := s.Put(got); err != nil {
		t.Fatal(err)
	}
	if err := s.Move("a", "10.0.0.9:50000"); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete("a"); err != nil || len(kept) != 1 {
		t.Errorf("%d kept, %v", len(kept), err)
	}

	// A renewed one has its new key only.
	before := slices.Collect(maps.Keys(kept))
	renewed := made(t, s, "new")
	if err := s.Renew(got, renewed.Certificate, renewed.Key, time.Now()); err != nil {
		t.Fatal(err)
	}
	if after := slices.Collect(maps.Keys(kept)); len(after) != 1 || after[0] == before[0] {
		t.Errorf("before %q, after %q", before, after)
	}
	if err := s.Delete("copy"); err != nil || len(kept) != 0 {
		t.Errorf("%d kept, %v", len(kept), err)
	}
}

// A keychain that is locked, or that loses what it takes, costs nobody a key.
func TestKeychainFails(t *testing.T) {
	for name, change := range map[string]func(*keychain){
		"locked":  func(k *keychain) { k.set = func(string, string) error { return errors.New("locked") } },
		"loses":   func(k *keychain) { k.set = func(string, string) error { return nil } },
		"changes": func(k *keychain) { k.get = func(string) (string, error) { return "else", nil } },
		"off":     func(*keychain) { t.Setenv(keychainOff, "off") },
	} {
		t.Run(name, func(t *testing.T) {
			useKeychain(t)
			change(platform)
			s := &Store{t.TempDir()}
			c := made(t, s, "a")
			if err := s.Put(c); err != nil {
				t.Fatal(err)
			}
			got, err := s.Get("a")
			if err != nil || got != c {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}

func TestPending(t *testing.T) {
	s := &Store{t.TempDir()}
	first, err := s.Await("claim-1")
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.Await("claim-1")
	if err != nil || !first.Key.Equal(again.Key) {
		t.Errorf("the key changed: %v", err)
	}
	path := filepath.Join(s.dir, "pending", "claim-1.pem")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	other, err := s.Await("claim-2")
	if err != nil || other.Key.Equal(first.Key) {
		t.Errorf("two have one key: %v", err)
	}
	leaf, err := parseLeaf(signed(t, first))
	if err != nil {
		t.Fatal(err)
	}
	if found, err := s.PendingFor(leaf); err != nil || found.ID != "claim-1" {
		t.Errorf("%v, %v", found.ID, err)
	}
	request, err := first.Request("ann")
	if err != nil {
		t.Fatal(err)
	}
	if r, err := x509.ParseCertificateRequest(request); err != nil || r.CheckSignature() != nil || r.Subject.CommonName != "ann" {
		t.Errorf("%v, %v", r, err)
	}
	if err := s.Settle(first); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	if _, err := s.PendingFor(leaf); !errdefs.IsNotFound(err) {
		t.Errorf("found after it was settled: %v", err)
	}
	if _, err := s.Await("../x"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a name that leaves the folder: %v", err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "pending", "claim-2.pem"), []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Await("claim-2"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("junk: %v", err)
	}
}

// Programs that begin at the same time go on with one key.
func TestPendingAtOnce(t *testing.T) {
	s := &Store{t.TempDir()}
	keys := make(chan *ecdsa.PrivateKey, 8)
	for range cap(keys) {
		go func() {
			p, err := s.Await("renew-a")
			if err != nil {
				t.Error(err)
			}
			keys <- p.Key
		}()
	}
	first := <-keys
	for range cap(keys) - 1 {
		if key := <-keys; key == nil || first == nil || !key.Equal(first) {
			t.Error("two keys")
		}
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, "pending"))
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}
