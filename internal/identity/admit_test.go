package identity

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	capsulev1 "capsule/api/capsule/v1"
)

func certOfKey(t *testing.T, ca *CA, old *x509.Certificate, role capsulev1.Role, ttl time.Duration) *x509.Certificate {
	t.Helper()
	key, err := x509.ParsePKIXPublicKey(old.RawSubjectPublicKeyInfo)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.signOperator(old.Subject.CommonName, role, key, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// What a certificate that is over opens, by role and by whether anybody vouches for
// the clock (AUTH-01).
func TestExpired(t *testing.T) {
	ca := newCA(t)
	pairs := map[capsulev1.Role]Pair{reader: operator(t, ca, reader, -time.Hour), admin: operator(t, ca, admin, -24*time.Hour)}
	id, _, _ := seededWith(t, ca, pairs[reader], pairs[admin], operator(t, ca, admin, time.Hour))
	for role, pair := range pairs {
		if _, server := connect(t, id, ca, pair); server != nil {
			t.Errorf("a %v can't connect to hear why: %v", role, server)
		}
	}
	stranger := certOf(t, operator(t, ca, admin, -time.Hour))
	for name, c := range map[string]struct {
		cert            *x509.Certificate
		synced          bool
		admits, renewal bool
		next            string
	}{
		"reader":                  {certOf(t, pairs[reader]), true, false, false, "access request"},
		"admin":                   {certOf(t, pairs[admin]), true, false, true, "access renew"},
		"reader, clock unset":     {certOf(t, pairs[reader]), false, true, true, ""},
		"admin, clock unset":      {certOf(t, pairs[admin]), false, true, true, ""},
		"stranger":                {stranger, true, false, false, "never granted"},
		"stranger, nor clock":     {stranger, false, false, false, "never granted"},
		"admin of a reader's key": {certOfKey(t, ca, certOf(t, pairs[reader]), admin, -time.Hour), true, false, false, `let in as "reader"`},
	} {
		id.Synced = func() bool { return c.synced }
		_, err := id.Admit(c.cert)
		if (err == nil) != c.admits {
			t.Errorf("%s: %v", name, err)
		}
		if _, renewal := id.AdmitToRenew(c.cert); (renewal == nil) != c.renewal {
			t.Errorf("%s, to renew: %v", name, renewal)
		}
		if err == nil {
			continue
		}
		if !errdefs.IsUnauthorized(err) || !strings.Contains(err.Error(), c.next) || !strings.Contains(err.Error(), `"anna"`) {
			t.Errorf("%s: %v", name, err)
		}
		if date := c.cert.NotAfter.Format(time.DateOnly); strings.HasPrefix(c.next, "access") && !strings.Contains(err.Error(), date) {
			t.Errorf("%s: no %s in %v", name, date, err)
		}
	}
}

// Who sets the clock ahead shuts no admin out.
func TestClockAhead(t *testing.T) {
	ca := newCA(t)
	ann := operator(t, ca, admin, time.Hour)
	id, _, _ := seededWith(t, ca, ann, operator(t, ca, reader, time.Hour))
	old, later := certOf(t, ann), now().Add(15*365*24*time.Hour)
	if _, err := id.admitAt(old, later, false); err == nil {
		t.Error("let in")
	}
	if _, err := id.admitAt(old, later, true); err != nil {
		t.Fatal(err)
	}
	if _, err := id.Admit(renew(t, id, old)); err != nil {
		t.Error(err)
	}
}

// An operator whose certificate was never listed is not written down by one that is
// over, nor is one that was revoked brought back by it.
func TestExpiredIsNotAdopted(t *testing.T) {
	ca := newCA(t)
	id, _, _ := seeded(t, ca)
	over := certOf(t, operator(t, ca, admin, -time.Hour))
	if _, err := id.AdmitToRenew(over); !errdefs.IsUnauthorized(err) || len(id.List()) != 0 {
		t.Errorf("%v, %+v", err, id.List())
	}
	ann, ben := certOf(t, operator(t, ca, admin, time.Hour)), certOf(t, operator(t, ca, admin, time.Hour))
	for _, cert := range []*x509.Certificate{ann, ben} {
		if _, err := id.Admit(cert); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := id.Revoke(ann, "", KeyFingerprint(ben)); err != nil {
		t.Fatal(err)
	}
	for _, cert := range []*x509.Certificate{ben, certOfKey(t, ca, ben, admin, -time.Hour)} {
		if _, err := id.AdmitToRenew(cert); !errdefs.IsUnauthorized(err) {
			t.Errorf("revoked: %v", err)
		}
	}
}

// While nobody vouches for the clock, an admin is one, whatever it says.
func TestRevokeByUnsetClock(t *testing.T) {
	ca := newCA(t)
	ann, ben := operator(t, ca, admin, -time.Hour), operator(t, ca, reader, -time.Hour)
	id, _, _ := seededWith(t, ca, ann, ben)
	id.Synced = func() bool { return false }
	if _, err := id.Revoke(certOf(t, ann), "", KeyFingerprint(certOf(t, ben))); err != nil {
		t.Error(err)
	}
}

// The list says until when a key is let in: a certificate of an earlier, longer
// grant of the same key opens no more, nor does an earlier, shorter one.
func TestListBoundsCertificates(t *testing.T) {
	ca := newCA(t)
	ann := certOf(t, operator(t, ca, admin, 100*24*time.Hour))
	id, _, _ := seededWith(t, ca, Pair{CertPEM: EncodeCert(ann)})
	const day, year = 24 * time.Hour, 365 * 24 * time.Hour
	for _, c := range []struct{ first, second time.Duration }{{10 * year, year}, {year, 10 * year}} {
		r := parsedRequest(t, request(t, "ben"))
		first, err := id.Grant(ann, "", reader, r, c.first)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := id.Revoke(ann, "ben", ""); err != nil {
			t.Fatal(err)
		}
		second, err := id.Grant(ann, "", reader, r, c.second)
		if err != nil {
			t.Fatal(err)
		}
		for _, cert := range []*x509.Certificate{first, second} {
			if _, err := id.admitAt(cert, now().Add(year-day), false); err != nil {
				t.Errorf("%v, then %v: %v", c.first, c.second, err)
			}
		}
		if _, err := id.admitAt(first, now().Add(year+day), false); !errdefs.IsUnauthorized(err) {
			t.Errorf("%v, then %v: the first after a year: %v", c.first, c.second, err)
		}
		if _, err := id.Revoke(ann, "ben", ""); err != nil {
			t.Fatal(err)
		}
	}
}

// Who only shows a certificate has not proven yet to hold its key: its first use is
// a call.
func TestHandshakeIsNoUse(t *testing.T) {
	ca := newCA(t)
	ann := operator(t, ca, admin, time.Hour)
	id, _, _ := seededWith(t, ca, ann)
	renewed := renew(t, id, certOf(t, ann))
	if err := id.verify([]*x509.Certificate{renewed}, now()); err != nil {
		t.Fatal(err)
	}
	if _, err := id.Admit(certOf(t, ann)); err != nil {
		t.Error(err)
	}
}

// By a clock that nobody has set, only what lives long is signed: a claim, a grant for
// a year, and the renewal of both.
func TestShortLivesAndUnsetClock(t *testing.T) {
	id := boot(t, t.TempDir(), Claiming{})
	synced := false
	id.Synced = func() bool { return synced }
	ann, err := tryClaim(t, id, id.Offer().Code, request(t, "ann"))
	if err != nil {
		t.Fatal(err)
	}
	renew(t, id, ann)
	grant := func(name string, ttl time.Duration) (*x509.Certificate, error) {
		return id.Grant(ann, "", reader, parsedRequest(t, request(t, name)), ttl)
	}
	for _, ttl := range []time.Duration{0, DefaultLife} {
		if _, err := grant("ben", ttl); err != nil {
			t.Errorf("%v: %v", ttl, err)
		}
	}
	const short = 90 * 24 * time.Hour
	if _, err := grant("ci", short); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "clock is not set") {
		t.Errorf("%v: %v", short, err)
	}
	synced = true
	ci, err := grant("ci", short)
	if err != nil {
		t.Fatal(err)
	}
	synced = false // as after the next boot
	if _, err := id.Renew(ci, parsedRequest(t, request(t, "ci"))); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("renewed for %v: %v", short, err)
	}
	if _, err := id.Admit(ci); err != nil {
		t.Error(err)
	}
}
