package contexts

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// authority is a capsule's CA.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{key: newKey(t)}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "capsule"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

func certText(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// context is one of an operator of the capsule, by a key.
func (a *authority) context(t *testing.T, name, operator, role string, key *ecdsa.PrivateKey) Context {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: operator, OrganizationalUnit: []string{"capsule:" + role}}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := encodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return Context{Name: name, Host: "10.0.0.1:50000", CA: certText(a.cert.Raw), Certificate: certText(der), Key: text}
}

// What is saved replaces nothing that opens anything else.
func TestAdd(t *testing.T) {
	house, other := newAuthority(t), newAuthority(t)
	key := newKey(t)
	anna := house.context(t, "kitchen", "anna", "admin", key)
	for name, test := range map[string]struct {
		next Context
		want string
	}{
		"the same":                {house.context(t, "kitchen", "anna", "admin", key), "kitchen"},
		"a new key":               {house.context(t, "kitchen", "anna", "admin", newKey(t)), "kitchen"},
		"another name of its key": {house.context(t, "kitchen", "ann", "admin", key), "kitchen"},
		"a lower role":            {house.context(t, "kitchen", "anna", "reader", newKey(t)), "kitchen-3"},
		"another operator":        {house.context(t, "kitchen", "ci", "admin", newKey(t)), "kitchen-3"},
		"a reader again":          {house.context(t, "kitchen", "ben", "reader", newKey(t)), "kitchen-2"},
		"another capsule":         {other.context(t, "kitchen", "anna", "admin", newKey(t)), "kitchen-3"},
		"that name in capitals":   {other.context(t, "KITCHEN", "anna", "admin", newKey(t)), "KITCHEN-3"},
		"itself in capitals":      {house.context(t, "Kitchen", "anna", "admin", newKey(t)), "kitchen"},
		"a name of its own":       {house.context(t, "ci", "ci", "reader", newKey(t)), "ci"},
		"no certificate":          {Context{Name: "kitchen", Host: "h:1", CA: anna.CA}, "kitchen-3"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &Store{t.TempDir()}
			was := map[string]Context{"kitchen": anna, "kitchen-2": house.context(t, "kitchen-2", "ben", "reader", newKey(t))}
			for _, c := range was {
				if err := s.Put(c); err != nil {
					t.Fatal(err)
				}
			}
			got, err := s.Add(test.next)
			if err != nil || got.Name != test.want {
				t.Fatalf("saved as %q, %v; want %q", got.Name, err, test.want)
			}
			was[got.Name] = got
			for name, want := range was {
				if have, err := s.Get(name); err != nil || !cmp.Equal(have, want) {
					t.Errorf("%s: %v: %s", name, err, cmp.Diff(want, have))
				}
			}
			if names, err := s.List(); err != nil || len(names) != len(was) {
				t.Errorf("contexts %q, %v", names, err)
			}
		})
	}
}

// A name that is as long as may be has namesakes too, and what can't be read is
// somebody's all the same.
func TestAddLongAndUnreadable(t *testing.T) {
	s := &Store{t.TempDir()}
	long := strings.Repeat("x", nameMax)
	for _, want := range []string{long, long[:nameMax-2] + "-2", long[:nameMax-2] + "-3"} {
		got, err := s.Add(Context{Name: long, Host: "h:1"})
		if err != nil || got.Name != want {
			t.Errorf("saved as %q, %v", got.Name, err)
		}
	}
	if err := os.WriteFile(filepath.Join(s.dir, "contexts", "odd.yaml"), []byte("- a"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Add(Context{Name: "odd", Host: "h:1"}); err != nil || got.Name != "odd-2" {
		t.Errorf("saved as %q, %v", got.Name, err)
	}
	if _, err := s.Add(Context{Name: "../x", Host: "h:1"}); err == nil {
		t.Error("a name that leaves the folder")
	}
}

// A new context never takes the place of a file, whatever name the file system
// holds that for.
func TestNewIsCreated(t *testing.T) {
	s := &Store{t.TempDir()}
	if err := s.put(Context{Name: "a", Host: "h:1"}, create); err != nil {
		t.Fatal(err)
	}
	if err := s.put(Context{Name: "a", Host: "h:2"}, create); !errors.Is(err, os.ErrExist) {
		t.Errorf("created twice: %v", err)
	}
	if c, err := s.Get("a"); err != nil || c.Host != "h:1" {
		t.Errorf("%q, %v", c.Host, err)
	}
}

// However a name is written, it is the one context of it.
func TestCaseOfNames(t *testing.T) {
	s := &Store{t.TempDir()}
	for _, c := range []Context{{Name: "kitchen", Host: "h:1"}, {Name: "KITCHEN", Host: "h:2"}} {
		if err := s.Put(c); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Move("Kitchen", "h:3"); err != nil {
		t.Fatal(err)
	}
	if c, err := s.Resolve("KITCHEN"); err != nil || c.Name != "kitchen" || c.Host != "h:3" {
		t.Errorf("%q at %q, %v", c.Name, c.Host, err)
	}
	if err := s.Use("KITCHEN"); err != nil {
		t.Fatal(err)
	}
	if current, err := s.Current(); err != nil || current != "kitchen" {
		t.Errorf("current is %q, %v", current, err)
	}
	if err := s.Delete("Kitchen"); err != nil {
		t.Fatal(err)
	}
	names, err := s.List()
	if current, currentErr := s.Current(); err != nil || currentErr != nil || len(names) > 0 || current != "" {
		t.Errorf("after its deletion: %q, current %q, %v, %v", names, current, err, currentErr)
	}
}
