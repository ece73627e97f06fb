package identity

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	capsulev1 "capsule/api/capsule/v1"
)

// Admit tells the role of an operator's certificate that passed the handshake;
// each call asks again, since keys are revoked and certificates expire while
// connections last. It also notes that the key is in use.
func (id *Identity) Admit(cert *x509.Certificate) (capsulev1.Role, error) {
	return id.admitAt(cert, now(), false)
}

// AdmitToRenew also lets an admin in whose certificate has expired, for a new one
// and nothing else: what shuts an admin out is revoking, and no clock.
func (id *Identity) AdmitToRenew(cert *x509.Certificate) (capsulev1.Role, error) {
	return id.admitAt(cert, now(), true)
}

func (id *Identity) admitAt(cert *x509.Certificate, at time.Time, renews bool) (capsulev1.Role, error) {
	id.mu.Lock()
	defer id.mu.Unlock()
	o, err := id.known(cert, at)
	if err != nil {
		return 0, err
	}
	role := RoleNamed(o.Role)
	mayRenew := role == capsulev1.Role_ROLE_ADMIN && id.changeable() == nil
	if end := o.end(cert); id.over(end, at) && !(renews && mayRenew) {
		return 0, expired(cert, end, at, mayRenew)
	}
	id.seen[o.Key] = at
	id.used(o)
	return role, nil
}

// known finds the operator of a certificate, which may have expired. id.mu is held.
func (id *Identity) known(cert *x509.Certificate, at time.Time) (Operator, error) {
	key := KeyID(cert)
	switch {
	case key == id.self:
		return entry(cert, "", ownLife)
	case !id.claimed:
		return Operator{}, fmt.Errorf("capsule is not claimed, so nobody is known to it: %w", errdefs.ErrUnauthenticated)
	case !id.adoptable(key):
		o, err := id.listed(cert)
		if err != nil {
			return Operator{}, err
		}
		return *o, nil
	case id.over(cert.NotAfter, at):
		return Operator{}, expired(cert, cert.NotAfter, at, false)
	}
	return id.adopt(cert)
}

// over tells whether a time has passed. A clock that nobody vouches for is no
// witness: it may be years ahead.
func (id *Identity) over(end, at time.Time) bool { return at.After(end) && id.vouched() }

func (id *Identity) vouched() bool { return id.Synced == nil || id.Synced() }

func expired(cert *x509.Certificate, end, at time.Time, mayRenew bool) error {
	next := "have an admin grant a new one (capsulectl access request), or claim the capsule again with a file " + ReclaimFile + " on its ESP"
	if mayRenew {
		next = "get a new one (capsulectl access renew)"
	}
	return fmt.Errorf("certificate of %q expired on %s, and the capsule's clock says %s: %s: %w",
		cert.Subject.CommonName, end.UTC().Format(time.DateOnly), at.UTC().Format(time.DateOnly), next, errdefs.ErrUnauthenticated)
}

// adoptable tells whether nothing is known of a key that an older version would
// have let in. id.mu is held.
func (id *Identity) adoptable(key string) bool {
	return id.list.Adopting && id.list.find(key) == nil && !slices.Contains(id.list.Revoked, key)
}

// adopt writes a certificate down that an older version's list would hold. What
// can't be written is let in all the same. id.mu is held.
func (id *Identity) adopt(cert *x509.Certificate) (Operator, error) {
	o, err := entry(cert, byAdopted, 0)
	if err != nil {
		return o, err
	}
	next := id.list.clone()
	if err := next.add(o); err != nil {
		return o, err
	}
	if id.changeable() == nil {
		if err := id.put(next); err != nil {
			slog.Error("write down an operator's key", "operator", o.Name, "error", err)
		}
	}
	return o, nil
}

// used ends what waited for the first use of a key: the claim whose answer did
// arrive, the key that was renewed. id.mu is held.
func (id *Identity) used(o Operator) {
	replaces := id.list.find(o.RenewedFrom) != nil
	answered := id.list.Claim != nil && id.list.Claim.Operator == o.Key
	if (!replaces && !answered) || id.changeable() != nil {
		return // as for nearly each call
	}
	next := id.list.clone()
	next.remove(func(other Operator) bool { return other.Key == o.RenewedFrom })
	if answered {
		next.Claim = nil
	}
	if err := id.put(next); err != nil { // done at the next use
		slog.Error("write down the first use of a key", "operator", o.Name, "error", err)
		return
	}
	id.handOver(o.RenewedFrom, o.Key)
}

// Own gives a certificate for the capsule's calls to itself: a reader's, whose
// key never leaves this process and stands in no list.
func (id *Identity) Own() (tls.Certificate, error) {
	if id.authority == nil {
		return tls.Certificate{}, fmt.Errorf("the CA's key can't be read: %w", errdefs.ErrUnavailable)
	}
	pair, err := id.authority.IssueOperator("this capsule", capsulev1.Role_ROLE_READER, ownLife)
	if err != nil {
		return tls.Certificate{}, err
	}
	own, err := tls.X509KeyPair(pair.CertPEM, pair.KeyPEM)
	if err != nil {
		return tls.Certificate{}, err
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	id.self = KeyID(own.Leaf)
	return own, nil
}

// ownLife is that of a certificate that ends with the process.
const ownLife = 50 * 365 * 24 * time.Hour

// open is a call under way: the key that it would end with, and how.
type open struct {
	key string
	cut func()
}

// WhenRevoked calls cut once, if this certificate's key is revoked before release,
// or one that replaced it meanwhile.
func (id *Identity) WhenRevoked(cert *x509.Certificate, cut func()) (release func()) {
	call := &open{KeyID(cert), cut}
	id.mu.Lock()
	defer id.mu.Unlock()
	id.calls[call] = true
	return func() {
		id.mu.Lock()
		defer id.mu.Unlock()
		delete(id.calls, call)
	}
}

// handOver has the calls of a key end with another one, that of the same operator:
// they go on when theirs leaves the list. id.mu is held.
func (id *Identity) handOver(from, to string) {
	for call := range id.calls {
		if call.key == from {
			call.key = to
		}
	}
}

// cut ends the calls under way of operators that were revoked. id.mu is held.
func (id *Identity) cut(removed []Operator) {
	for call := range id.calls {
		if slices.ContainsFunc(removed, func(o Operator) bool { return o.Key == call.key }) {
			go call.cut() // it may ask us something
			delete(id.calls, call)
		}
	}
}
