package identity

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/durable"
)

const (
	reader = capsulev1.Role_ROLE_READER
	admin  = capsulev1.Role_ROLE_ADMIN
)

// seededWith has these operators let in, and nobody else.
func seededWith(t *testing.T, ca *CA, pairs ...Pair) (id *Identity, dir, seed string) {
	t.Helper()
	root := t.TempDir()
	dir, seed = filepath.Join(root, "identity"), filepath.Join(root, "seed.pem")
	var certs [][]byte
	for _, pair := range pairs {
		certs = append(certs, pair.CertPEM)
	}
	text, err := ca.SeedPEM(certs...)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(seed, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if id, err = Load(dir, seed); err != nil {
		t.Fatal(err)
	}
	return id, dir, seed
}

func certOf(t *testing.T, pair Pair) *x509.Certificate {
	t.Helper()
	cert, err := ParseCert(pair.CertPEM)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestSeededOperators(t *testing.T) {
	ca := newCA(t)
	ann := operator(t, ca, admin, time.Hour)
	id, dir, seed := seededWith(t, ca, ann, operator(t, ca, reader, time.Hour))
	if _, server := connect(t, id, ca, ann); server != nil {
		t.Errorf("a seeded operator: %v", server)
	}
	// Signed by the CA, but by somebody who kept its key.
	if _, server := connect(t, id, ca, operator(t, ca, admin, time.Hour)); server == nil || !strings.Contains(server.Error(), "never granted") {
		t.Errorf("a certificate that is not in the list: %v", server)
	}
	text, err := id.SeedPEM()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := CheckSeed(text); n != 2 || err != nil {
		t.Errorf("its own seed: %d operators, %v", n, err)
	}
	again, err := Load(dir, seed)
	if err != nil || len(again.List()) != 2 {
		t.Errorf("loaded again: %+v, %v", again.List(), err)
	}
}

func TestSeedRefuses(t *testing.T) {
	ca := newCA(t)
	server, err := ca.IssueServer("capsule")
	if err != nil {
		t.Fatal(err)
	}
	roleless, err := ca.issue(&x509.Certificate{Subject: pkix.Name{CommonName: "ann"}, NotAfter: now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		t.Fatal(err)
	}
	for name, pair := range map[string]Pair{
		"of another CA": operator(t, newCA(t), admin, time.Hour),
		"server's":      server,
		"without role":  roleless,
	} {
		text, err := ca.SeedPEM(pair.CertPEM)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := CheckSeed(text); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// A capsule whose first version kept no list lets in whom it let in before.
func TestAdoption(t *testing.T) {
	ca := newCA(t)
	id, dir, seed := seeded(t, ca)
	ann, ben := operator(t, ca, admin, time.Hour), operator(t, ca, admin, time.Hour)
	for _, pair := range []Pair{ann, ben} {
		if _, server := connect(t, id, ca, pair); server != nil {
			t.Fatal(server)
		}
	}
	id, err := Load(dir, seed)
	if err != nil {
		t.Fatal(err)
	}
	if all := id.List(); len(all) != 2 || all[0].GrantedBy != byAdopted {
		t.Errorf("adopted: %+v", all)
	}
	if _, err := id.Revoke(certOf(t, ann), "", KeyFingerprint(certOf(t, ben))[:14]); err != nil {
		t.Fatal(err)
	}
	if id, err = Load(dir, seed); err != nil {
		t.Fatal(err)
	}
	if _, server := connect(t, id, ca, ben); server == nil || !strings.Contains(server.Error(), "revoked") {
		t.Errorf("a revoked certificate is adopted again: %v", server)
	}
	for _, pair := range []Pair{ann, operator(t, ca, reader, time.Hour)} {
		if _, server := connect(t, id, ca, pair); server != nil {
			t.Errorf("others after that: %v", server)
		}
	}
}

// A renewed key is not adopted again either.
func TestAdoptedAndRenewed(t *testing.T) {
	ca := newCA(t)
	id, _, _ := seeded(t, ca)
	old := certOf(t, operator(t, ca, reader, time.Hour))
	if _, err := id.Admit(old); err != nil {
		t.Fatal(err)
	}
	r, err := ParseRequest(request(t, "x"))
	if err != nil {
		t.Fatal(err)
	}
	renewed, err := id.Renew(old, r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := id.Admit(renewed); err != nil {
		t.Fatal(err)
	}
	if _, err := id.Admit(old); !errdefs.IsUnauthorized(err) {
		t.Errorf("the old one: %v", err)
	}
}

// While certificates are adopted, one that was renewed and given up before its first
// use comes back to nobody: not after its operator was revoked, nor when more were
// given up than are written down. A revoke never fails for that.
func TestRevokeWhileAdopting(t *testing.T) {
	for _, before := range []int{0, revokedMax - 1} {
		ca := newCA(t)
		id, dir, seed := seeded(t, ca)
		ann, ben := certOf(t, operator(t, ca, admin, time.Hour)), certOf(t, operator(t, ca, reader, time.Hour))
		for _, cert := range []*x509.Certificate{ann, ben} {
			if _, err := id.Admit(cert); err != nil {
				t.Fatal(err)
			}
		}
		for n := range before {
			id.list.Revoked = append(id.list.Revoked, fmt.Sprint(n))
		}
		bens := []*x509.Certificate{ben}
		for range 3 {
			bens = append(bens, renew(t, id, ben))
		}
		if _, err := id.Revoke(ann, "", KeyFingerprint(ben)); err != nil {
			t.Fatalf("after %d: %v", before, err)
		}
		id, err := Load(dir, seed)
		if err != nil {
			t.Fatal(err)
		}
		for n, cert := range bens {
			if _, err := id.Admit(cert); !errdefs.IsUnauthorized(err) {
				t.Errorf("after %d: certificate %d: %v", before, n, err)
			}
		}
		if _, err := id.Admit(ann); err != nil || len(id.list.Revoked) > revokedMax {
			t.Errorf("after %d: %v, %d are kept", before, err, len(id.list.Revoked))
		}
	}
}

// A certificate of our CA that is not let in opens nothing (AUTH-04).
func TestAdmit(t *testing.T) {
	ca := newCA(t)
	ann := operator(t, ca, reader, time.Hour)
	id, _, _ := seededWith(t, ca, ann)
	cert := certOf(t, ann)
	if role, err := id.Admit(cert); role != reader || err != nil {
		t.Errorf("%v, %v", role, err)
	}
	// Each call asks: a connection outlasts its certificate.
	if _, err := id.admitAt(cert, cert.NotAfter.Add(time.Second), false); err == nil ||
		!strings.Contains(err.Error(), cert.NotAfter.Format(time.DateOnly)) || !strings.Contains(err.Error(), "capsule/reclaim") {
		t.Errorf("expired: %v", err)
	}
	// Not valid yet, by this clock: made before now all the same.
	if _, err := id.admitAt(cert, time.Unix(0, 0), false); err != nil {
		t.Errorf("in 1970: %v", err)
	}
	// The CA's own signature under another role for the same key.
	key, err := x509.ParsePKIXPublicKey(cert.RawSubjectPublicKeyInfo)
	if err != nil {
		t.Fatal(err)
	}
	risen, err := ca.signOperator("ann", admin, key, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := id.Admit(risen); err == nil || !strings.Contains(err.Error(), `let in as "reader"`) {
		t.Errorf("another role than granted: %v", err)
	}
}

func TestRevoke(t *testing.T) {
	ca := newCA(t)
	pairs := []Pair{operator(t, ca, admin, time.Hour), operator(t, ca, admin, time.Hour), operator(t, ca, reader, time.Hour)}
	id, dir, seed := seededWith(t, ca, pairs...)
	first, second := certOf(t, pairs[0]), certOf(t, pairs[1])
	cut := make(chan struct{})
	id.WhenRevoked(second, func() { close(cut) })
	defer id.WhenRevoked(first, func() { t.Error("the wrong one is cut") })()
	for name, c := range map[string]struct {
		name, key string
		want      func(error) bool
	}{
		"nothing":        {"", "", errdefs.IsInvalidArgument},
		"unknown":        {"eve", "", errdefs.IsNotFound},
		"unknown key":    {"", "zz", errdefs.IsNotFound},
		"all of them":    {"anna", "", errdefs.IsFailedPrecondition},
		"another's name": {"eve", KeyFingerprint(second), errdefs.IsNotFound},
	} {
		if _, err := id.Revoke(first, c.name, c.key); !c.want(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if gone, err := id.Revoke(first, "anna", strings.ToUpper(KeyFingerprint(second))); err != nil || len(gone) != 1 || gone[0].Key != KeyID(second) {
		t.Fatalf("%+v, %v", gone, err)
	}
	<-cut
	if _, err := id.Revoke(first, "", KeyID(first)); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "nobody else is an admin") {
		t.Errorf("the last admin: %v", err)
	}
	again, err := Load(dir, seed)
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(again.List(), func(o Operator) bool { return o.Key == KeyID(second) }) || len(again.List()) != 2 {
		t.Errorf("after a restart: %+v", again.List())
	}
}

// An admin whose certificate has expired can't undo anything: it counts for none.
func TestExpiredAdminIsNoAdmin(t *testing.T) {
	ca := newCA(t)
	ann := operator(t, ca, admin, time.Hour)
	id, _, _ := seededWith(t, ca, ann, operator(t, ca, admin, -time.Hour))
	if _, err := id.Revoke(certOf(t, ann), "", KeyFingerprint(certOf(t, ann))); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v", err)
	}
}

func TestListIsBounded(t *testing.T) {
	ca := newCA(t)
	ann := operator(t, ca, admin, time.Hour)
	id, _, _ := seededWith(t, ca, ann)
	for len(id.list.Operators) < operatorsMax {
		id.list.Operators = append(id.list.Operators, Operator{Key: "x", Role: "reader"})
	}
	r, err := ParseRequest(request(t, "ben"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := id.Grant(certOf(t, ann), "", reader, r, 0); !errdefs.IsResourceExhausted(err) {
		t.Errorf("got %v", err)
	}
}

// What can't be written is not in force.
func TestGrantIsDurableFirst(t *testing.T) {
	ca := newCA(t)
	ann := operator(t, ca, admin, time.Hour)
	id, _, _ := seededWith(t, ca, ann)
	id.write = (&cutAt{1, false}).write
	r, err := ParseRequest(request(t, "ben"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := id.Grant(certOf(t, ann), "", reader, r, 0); err == nil || len(id.List()) != 1 {
		t.Errorf("let in: %+v, %v", id.List(), err)
	}
}

// A list that was there and is gone is damage: nobody is adopted for it, and in
// recovery mode those on the ESP's copy are let in, and nobody else.
func TestLostList(t *testing.T) {
	for name, damage := range map[string]func(string) error{
		"gone":    os.Remove,
		"garbage": func(path string) error { return os.WriteFile(path, []byte("{"), 0o600) },
		"no key":  func(path string) error { return os.WriteFile(path, []byte(`{"operators":[{"name":"x"}]}`), 0o600) },
	} {
		ca := newCA(t)
		ann := operator(t, ca, admin, time.Hour)
		_, dir, seed := seededWith(t, ca, ann)
		if err := damage(filepath.Join(dir, operatorsFile)); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(dir, seed); !errdefs.IsDataLoss(err) {
			t.Errorf("%s: %v", name, err)
		}
		id, err := LoadReadOnly(dir, seed)
		if err != nil {
			t.Fatal(err)
		}
		if _, server := connect(t, id, ca, ann); server != nil {
			t.Errorf("%s: an operator in recovery: %v", name, server)
		}
		if _, server := connect(t, id, ca, operator(t, ca, admin, time.Hour)); server == nil {
			t.Errorf("%s: a stranger in recovery", name)
		}
	}
}

// The copy on the ESP is without a revoked operator before the answer is given.
func TestRecoveryFollowsTheList(t *testing.T) {
	ca := newCA(t)
	ann, ben := operator(t, ca, admin, time.Hour), operator(t, ca, reader, time.Hour)
	id, dir, seed := seededWith(t, ca, ann, ben)
	id.OnChange(func() {
		time.Sleep(50 * time.Millisecond) // as a mount takes
		if err := id.SaveRecovery(seed); err != nil {
			t.Error(err)
		}
	})
	if _, err := id.Revoke(certOf(t, ann), "", KeyFingerprint(certOf(t, ben))); err != nil {
		t.Fatal(err)
	}
	copied, err := LoadReadOnly(filepath.Join(dir, "gone"), seed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := copied.Admit(certOf(t, ann)); err != nil {
		t.Error(err)
	}
	if _, err := copied.Admit(certOf(t, ben)); err == nil {
		t.Error("a revoked operator is in the copy")
	}
}

// A list that the ESP lost lets nobody in; only where there never was one, all that
// the CA signed get in.
func TestRecoveryWithoutItsList(t *testing.T) {
	for name, lose := range map[string]func(string) error{
		"gone":    os.Remove,
		"empty":   func(path string) error { return os.Truncate(path, 0) },
		"rubbish": func(path string) error { return os.WriteFile(path, []byte("rubbish"), 0o600) },
		"zeroes":  func(path string) error { return os.WriteFile(path, make([]byte, 4096), 0o600) },
	} {
		ca := newCA(t)
		ann := operator(t, ca, admin, time.Hour)
		_, dir, seed := seededWith(t, ca, ann)
		if err := lose(beside(seed, recoveryOperatorsFile)); err != nil {
			t.Fatal(err)
		}
		id, err := LoadReadOnly(filepath.Join(dir, "gone"), seed)
		if err != nil {
			t.Fatal(err)
		}
		for _, pair := range []Pair{ann, operator(t, ca, admin, time.Hour)} {
			if _, err := id.Admit(certOf(t, pair)); !errdefs.IsUnauthorized(err) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if id.Fingerprint() != Fingerprint(ca.Cert) || len(id.Warnings) != 1 {
			t.Errorf("%s: not the copy, or silent: %q", name, id.Warnings)
		}
	}
}

// A copy that an earlier version made is marked by the next boot.
func TestRecoveryIsMarkedLater(t *testing.T) {
	ca := newCA(t)
	_, dir, seed := seededWith(t, ca, operator(t, ca, admin, time.Hour))
	path := beside(seed, recoveryFile)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.TrimPrefix(text, []byte(listedMark)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir, seed); err != nil {
		t.Fatal(err)
	}
	if f, err := readFallback(path); err != nil || !f.listed {
		t.Errorf("listed %v, %v", f.listed, err)
	}
}

// The capsule's calls to itself need no list, and only work in this process.
func TestOwn(t *testing.T) {
	root := t.TempDir()
	id, err := Load(filepath.Join(root, "identity"), "")
	if err != nil {
		t.Fatal(err)
	}
	own, err := id.Own()
	if err != nil {
		t.Fatal(err)
	}
	if role, err := id.Admit(own.Leaf); role != reader || err != nil {
		t.Errorf("%v, %v", role, err)
	}
	again, err := Reload(filepath.Join(root, "identity"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Admit(own.Leaf); err == nil {
		t.Error("let in by another process")
	}
	if len(id.List()) != 0 || id.Claimed() {
		t.Error("it is in the list")
	}
}

// renew gives the operator of a certificate one for another key.
func renew(t *testing.T, id *Identity, old *x509.Certificate) *x509.Certificate {
	t.Helper()
	r, err := ParseRequest(request(t, "renew"))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := id.Renew(old, r)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// A call under way ends with its operator, although its key was replaced since.
func TestRevokeCutsCallsOfReplacedKeys(t *testing.T) {
	type step func(t *testing.T, id *Identity, old *x509.Certificate) (opened, last *x509.Certificate)
	for name, replace := range map[string]step{
		"renewed": func(t *testing.T, id *Identity, old *x509.Certificate) (opened, last *x509.Certificate) {
			return old, old
		},
		// Its first use could not be written down, so the old key may renew again.
		"renewal given up": func(t *testing.T, id *Identity, old *x509.Certificate) (opened, last *x509.Certificate) {
			opened = renew(t, id, old)
			id.write = (&cutAt{1, false}).write
			if _, err := id.Admit(opened); err != nil {
				t.Fatal(err)
			}
			id.write = durable.WriteFile
			return opened, old
		},
	} {
		t.Run(name, func(t *testing.T) {
			ca := newCA(t)
			ben := operator(t, ca, reader, time.Hour)
			ann := operator(t, ca, admin, time.Hour)
			id, _, _ := seededWith(t, ca, ann, ben)
			opened, last := replace(t, id, certOf(t, ben))
			cut := make(chan struct{})
			id.WhenRevoked(opened, func() { close(cut) })
			release := id.WhenRevoked(opened, func() { t.Error("a call that was over is cut") })
			for range 2 {
				last = renew(t, id, last)
				if _, err := id.Admit(last); err != nil {
					t.Fatal(err)
				}
			}
			release()
			if _, err := id.Revoke(certOf(t, ann), "", KeyFingerprint(last)); err != nil {
				t.Fatal(err)
			}
			select {
			case <-cut:
			case <-time.After(10 * time.Second):
				t.Error("it goes on")
			}
		})
	}
}

func parsedRequest(t *testing.T, der []byte) Request {
	t.Helper()
	r, err := ParseRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Whose call was let in, and who was revoked while it waited for its turn, changes
// nothing any more; nor does who came back with a lower role.
func TestRevokedAdminChangesNothing(t *testing.T) {
	ca := newCA(t)
	ann, ben := operator(t, ca, admin, time.Hour), operator(t, ca, admin, time.Hour)
	id, _, _ := seededWith(t, ca, ann, ben)
	gone := certOf(t, ben)
	refused := func() {
		t.Helper()
		before := id.List()
		for name, change := range map[string]func() error{
			"grant": func() error {
				_, err := id.Grant(gone, "", admin, parsedRequest(t, request(t, "eve")), 0)
				return err
			},
			"revoke": func() error { _, err := id.Revoke(gone, "", KeyFingerprint(certOf(t, ann))); return err },
			"renew":  func() error { _, err := id.Renew(gone, parsedRequest(t, request(t, "eve"))); return err },
		} {
			if err := change(); !errdefs.IsUnauthorized(err) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if diff := cmp.Diff(before, id.List()); diff != "" {
			t.Error(diff)
		}
	}
	if _, err := id.Revoke(certOf(t, ann), "", KeyFingerprint(gone)); err != nil {
		t.Fatal(err)
	}
	refused()
	key, err := x509.ParsePKIXPublicKey(gone.RawSubjectPublicKeyInfo)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := id.Grant(certOf(t, ann), "", reader, Request{Name: "ben", key: key, id: KeyID(gone)}, 0); err != nil {
		t.Fatal(err)
	}
	refused()
}
