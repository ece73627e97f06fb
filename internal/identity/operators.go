package identity

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	capsulev1 "capsule/api/capsule/v1"
)

// Limits of the list and of what is put into it.
const (
	operatorsMax = 256
	revokedMax   = 1024 // kept while certificates are adopted
	listMax      = 2 << 20
	nameMax      = 64 // bytes
	csrMax       = 16 << 10
)

// Lives of operators' certificates.
const (
	ClaimLife   = 5 * 365 * 24 * time.Hour
	DefaultLife = 365 * 24 * time.Hour
	LifeMax     = 10 * 365 * 24 * time.Hour
	lifeMin     = time.Minute
)

// Who let an operator in, when it was no operator.
const (
	byClaim   = "claim"
	byReclaim = "reclaim"
	bySeed    = "seed"
	byAdopted = "adopted"
)

// Operator is one key that is let in.
type Operator struct {
	Name string `json:"name"`
	Role string `json:"role"` // "reader", "operator" or "admin"
	// Key is the SHA-256 of the public key (SPKI), hexadecimal.
	Key         string    `json:"key"`
	Certificate string    `json:"certificate"` // PEM
	GrantedBy   string    `json:"granted_by"`  // an operator, or how it came in
	GrantedAt   time.Time `json:"granted_at"`
	NotAfter    time.Time `json:"not_after"`
	// LifeSeconds is how long a renewed certificate lives.
	LifeSeconds int64 `json:"life_seconds"`
	// RenewedFrom is the key that this one replaces at its first use.
	RenewedFrom string `json:"renewed_from,omitempty"`

	// LastSeen since the daemon was started; zero when not.
	LastSeen time.Time `json:"-"`
}

// list is what operators.json holds.
type list struct {
	Operators []Operator `json:"operators"`
	// Adopting lets in every certificate of our CA and writes it down: those of
	// a capsule whose first version, or whose seed, kept no list.
	Adopting bool `json:"adopting,omitempty"`
	// Revoked keys are not adopted again.
	Revoked []string `json:"revoked,omitempty"`
	// Claim answers the one who claimed once more, until its certificate is used.
	Claim *claimRecord `json:"claim,omitempty"`
}

// claimRecord is what a claim whose answer was lost is had again by.
type claimRecord struct {
	Verifier []byte `json:"verifier"` // the key of proofs
	Operator string `json:"operator"` // its key
}

func readList(dir string) (list, error) {
	var l list
	data, err := readFile(filepath.Join(dir, operatorsFile), listMax)
	if err != nil {
		return l, err
	}
	if err := json.Unmarshal(data, &l); err != nil {
		return l, fmt.Errorf("read %s: %w", operatorsFile, err)
	}
	for _, o := range l.Operators {
		if o.Key == "" || o.Role == "" {
			return l, fmt.Errorf("read %s: operator %q has no key or no role: %w", operatorsFile, o.Name, errdefs.ErrDataLoss)
		}
	}
	return l, nil
}

func (l *list) encode() ([]byte, error) {
	data, err := json.MarshalIndent(l, "", "  ")
	if err == nil && len(data) > listMax {
		err = fmt.Errorf("the list of operators would have %d bytes, at most %d: %w", len(data), listMax, errdefs.ErrResourceExhausted)
	}
	return data, err
}

// clone has slices of its own.
func (l *list) clone() list {
	c := *l
	c.Operators, c.Revoked = slices.Clone(l.Operators), slices.Clone(l.Revoked)
	return c
}

// find gives the operator with a key, or nil.
func (l *list) find(key string) *Operator {
	if i := slices.IndexFunc(l.Operators, func(o Operator) bool { return o.Key == key }); i >= 0 {
		return &l.Operators[i]
	}
	return nil
}

// add puts an operator in whose key is new.
func (l *list) add(o Operator) error {
	if old := l.find(o.Key); old != nil {
		return fmt.Errorf("the key %s is that of operator %q: make a new one: %w", Grouped(o.Key), old.Name, errdefs.ErrAlreadyExists)
	}
	if len(l.Operators) >= operatorsMax {
		return fmt.Errorf("%d operators are let in, which is the most: revoke some first: %w", operatorsMax, errdefs.ErrResourceExhausted)
	}
	l.Operators = append(l.Operators, o)
	l.Revoked = slices.DeleteFunc(l.Revoked, func(key string) bool { return key == o.Key })
	return nil
}

// remove takes operators out; while certificates are adopted, that is written down,
// also of a renewed one that was never used: its holder has it. More than can be
// written down ends the adoption, as a revoke must not fail.
func (l *list) remove(out func(Operator) bool) (removed []Operator) {
	l.Operators = slices.DeleteFunc(l.Operators, func(o Operator) bool {
		if out(o) {
			removed = append(removed, o)
			return true
		}
		return false
	})
	for _, o := range removed {
		if l.Claim != nil && l.Claim.Operator == o.Key {
			l.Claim = nil
		}
		if l.Adopting {
			l.Revoked = append(l.Revoked, o.Key)
		}
	}
	if len(l.Revoked) > revokedMax {
		l.Adopting, l.Revoked = false, nil
	}
	return removed
}

// end of what a certificate opens for an operator: that of an earlier grant of the
// same key may be later.
func (o Operator) end(cert *x509.Certificate) time.Time {
	if cert.NotAfter.Before(o.NotAfter) {
		return cert.NotAfter
	}
	return o.NotAfter
}

// admins of a list that can come in without more. id.mu is held.
func (id *Identity) admins(l list) (n int) {
	for _, o := range l.Operators {
		if o.Role == RoleName(capsulev1.Role_ROLE_ADMIN) && !id.over(o.NotAfter, now()) {
			n++
		}
	}
	return n
}

// entry is the operator of a certificate that was checked.
func entry(cert *x509.Certificate, by string, life time.Duration) (Operator, error) {
	role, err := Role(cert)
	if err != nil {
		return Operator{}, err
	}
	if life == 0 {
		life = DefaultLife
		if role == capsulev1.Role_ROLE_ADMIN {
			life = ClaimLife
		}
	}
	return Operator{
		Name: cert.Subject.CommonName, Role: RoleName(role), Key: KeyID(cert), Certificate: string(EncodeCert(cert)),
		GrantedBy: by, GrantedAt: now().UTC().Truncate(time.Second), NotAfter: cert.NotAfter.UTC(), LifeSeconds: int64(life / time.Second),
	}, nil
}

// listOf is the list of certificates that came with a seed or a copy.
func listOf(certs []*x509.Certificate) (list, error) {
	var l list
	for _, cert := range certs {
		o, err := entry(cert, bySeed, 0)
		if err != nil {
			return l, err
		}
		if l.find(o.Key) != nil {
			continue
		}
		if err := l.add(o); err != nil {
			return l, err
		}
	}
	return l, nil
}

// KeyID is the SHA-256 of a certificate's public key (SPKI), hexadecimal.
func KeyID(cert *x509.Certificate) string { return keyID(cert.RawSubjectPublicKeyInfo) }

func keyID(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

// KeyFingerprint is the same for people: "3f2a:91c0:…".
func KeyFingerprint(cert *x509.Certificate) string { return Grouped(KeyID(cert)) }

// Grouped writes hexadecimal digits in groups of four.
func Grouped(digits string) string {
	var groups []string
	for group := range slices.Chunk([]byte(digits), 4) {
		groups = append(groups, string(group))
	}
	return strings.Join(groups, ":")
}

// Request is what somebody wants a certificate for.
type Request struct {
	Name string
	key  crypto.PublicKey
	id   string
}

// PEMRequest is the kind of PEM block that a request is written as.
const PEMRequest = "CERTIFICATE REQUEST"

// ParseRequest reads a request (PKCS #10, DER) and checks that whoever made it
// holds the key.
func ParseRequest(der []byte) (Request, error) {
	if len(der) > csrMax {
		return Request{}, fmt.Errorf("certificate request of %d bytes, at most %d: %w", len(der), csrMax, errdefs.ErrInvalidArgument)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return Request{}, fmt.Errorf("read certificate request: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if err := strong(csr.PublicKey); err != nil { // before it costs anything to use it
		return Request{}, err
	}
	if err := csr.CheckSignature(); err != nil {
		return Request{}, fmt.Errorf("certificate request is not signed by its own key: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if err := checkName(csr.Subject.CommonName); err != nil {
		return Request{}, err
	}
	return Request{Name: csr.Subject.CommonName, key: csr.PublicKey, id: keyID(csr.RawSubjectPublicKeyInfo)}, nil
}

// KeyFingerprint of the key that the request is for.
func (r Request) KeyFingerprint() string { return Grouped(r.id) }

// List gives all operators, by name and then by the time they came in.
func (id *Identity) List() []Operator {
	id.mu.Lock()
	defer id.mu.Unlock()
	all := slices.Clone(id.list.Operators)
	for i := range all {
		all[i].LastSeen = id.seen[all[i].Key]
	}
	slices.SortStableFunc(all, func(a, b Operator) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return a.GrantedAt.Compare(b.GrantedAt)
	})
	return all
}

// listed finds the operator of a certificate. id.mu is held.
func (id *Identity) listed(cert *x509.Certificate) (*Operator, error) {
	o := id.list.find(KeyID(cert))
	if o == nil {
		return nil, fmt.Errorf("key %s of %q is not let in: it was revoked, or never granted: %w", KeyFingerprint(cert), cert.Subject.CommonName, errdefs.ErrUnauthenticated)
	}
	role, err := Role(cert)
	if err != nil {
		return nil, err
	}
	if o.Role != RoleName(role) {
		return nil, fmt.Errorf("certificate of %q says role %q, and its key was let in as %q: %w", cert.Subject.CommonName, RoleName(role), o.Role, errdefs.ErrUnauthenticated)
	}
	return o, nil
}

// Grant lets in who made the request. No name means the request's own, no ttl
// the default. The caller may have been revoked while it waited.
func (id *Identity) Grant(caller *x509.Certificate, name string, role capsulev1.Role, r Request, ttl time.Duration) (*x509.Certificate, error) {
	if name != "" {
		if err := checkName(name); err != nil {
			return nil, err
		}
		r.Name = name
	}
	if ttl == 0 {
		ttl = DefaultLife
	}
	if ttl < lifeMin || ttl > LifeMax {
		return nil, fmt.Errorf("a certificate for %v: between %v and %d days: %w", ttl, lifeMin, LifeMax/(24*time.Hour), errdefs.ErrInvalidArgument)
	}
	if _, ok := roleUnits[role]; !ok {
		return nil, fmt.Errorf("role %v: one of reader, operator and admin: %w", role, errdefs.ErrInvalidArgument)
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	by, err := id.mayChange(caller)
	if err != nil {
		return nil, err
	}
	return id.admit(r, role, by.Name, ttl, func(l *list, o Operator) error { return l.add(o) })
}

// Renew gives a caller a certificate for a new key. The old key serves until the
// new one is used, so that a lost answer locks nobody out.
func (id *Identity) Renew(caller *x509.Certificate, r Request) (*x509.Certificate, error) {
	id.mu.Lock()
	defer id.mu.Unlock()
	from, err := id.mayChange(caller)
	if err != nil {
		return nil, err
	}
	r.Name = from.Name
	var dropped []Operator
	cert, err := id.admit(r, RoleNamed(from.Role), from.GrantedBy, time.Duration(from.LifeSeconds)*time.Second, func(l *list, o Operator) error {
		// One renewal at a time: the one before was never used, or not that it is known.
		dropped = l.remove(func(other Operator) bool { return other.RenewedFrom == from.Key })
		o.RenewedFrom = from.Key
		return l.add(o)
	})
	if err != nil {
		return nil, err
	}
	for _, o := range dropped {
		id.handOver(o.Key, from.Key)
	}
	return cert, nil
}

// admit signs a request and changes the list by it. By a clock that is behind, a
// short certificate ends before it is used. id.mu is held.
func (id *Identity) admit(r Request, role capsulev1.Role, by string, ttl time.Duration, change func(*list, Operator) error) (*x509.Certificate, error) {
	if err := id.changeable(); err != nil {
		return nil, err
	}
	if ttl < DefaultLife && !id.vouched() {
		return nil, fmt.Errorf("a certificate for less than %d days: the capsule's clock is not set from the network yet, and may be behind by more; make it longer, or wait until \"capsulectl capsule info\" says that it is set: %w",
			DefaultLife/(24*time.Hour), errdefs.ErrFailedPrecondition)
	}
	cert, err := id.authority.signOperator(r.Name, role, r.key, ttl)
	if err != nil {
		return nil, err
	}
	o, err := entry(cert, by, ttl)
	if err != nil {
		return nil, err
	}
	next := id.list.clone()
	if err := change(&next, o); err != nil {
		return nil, err
	}
	return cert, id.put(next)
}

// Revoke shuts out all keys of a name, or the one whose fingerprint begins so.
// The last admin stays: nobody could undo it. The caller may have been revoked
// while it waited. It returns once who watches has heard of it: the copy that
// recovery mode reads is theirs to keep.
func (id *Identity) Revoke(caller *x509.Certificate, name, fingerprint string) ([]Operator, error) {
	if name == "" && fingerprint == "" {
		return nil, fmt.Errorf("revoke: name an operator or a key: %w", errdefs.ErrInvalidArgument)
	}
	removed, told, err := id.revoke(caller, name, fingerprint)
	if err != nil {
		return nil, err
	}
	told.Wait()
	return removed, nil
}

func (id *Identity) revoke(caller *x509.Certificate, name, fingerprint string) (removed []Operator, told *sync.WaitGroup, err error) {
	digits := strings.ToLower(strings.ReplaceAll(fingerprint, ":", ""))
	id.mu.Lock()
	defer id.mu.Unlock()
	if _, err := id.mayChange(caller); err != nil {
		return nil, nil, err
	}
	keys, err := id.meant(name, digits)
	if err != nil {
		return nil, nil, err
	}
	next := id.list.clone()
	removed = next.remove(func(o Operator) bool {
		return slices.Contains(keys, o.Key) || slices.Contains(keys, o.RenewedFrom)
	})
	if id.admins(next) == 0 {
		return nil, nil, fmt.Errorf("revoke %q: nobody else is an admin, so nobody could let anybody in again; grant the role to another first: %w", removed[0].Name, errdefs.ErrFailedPrecondition)
	}
	if err := id.put(next); err != nil {
		return nil, nil, err
	}
	id.cut(removed)
	return removed, id.told, nil
}

// meant finds the keys that are to be revoked. id.mu is held.
func (id *Identity) meant(name, digits string) (keys []string, err error) {
	for _, o := range id.list.Operators {
		if (name == "" || o.Name == name) && strings.HasPrefix(o.Key, digits) {
			keys = append(keys, o.Key)
		}
	}
	switch {
	case len(keys) == 0 && digits != "":
		return nil, fmt.Errorf("no operator %q has a key that begins with %s: %w", name, Grouped(digits), errdefs.ErrNotFound)
	case len(keys) == 0:
		return nil, fmt.Errorf("operator %q: %w", name, errdefs.ErrNotFound)
	case len(keys) > 1 && digits != "":
		return nil, fmt.Errorf("%d keys begin with %s: give more of it: %w", len(keys), Grouped(digits), errdefs.ErrInvalidArgument)
	}
	return keys, nil
}

// changeable refuses where the identity can only be read. id.mu is held.
func (id *Identity) changeable() error {
	if id.dir == "" || id.authority == nil {
		return fmt.Errorf("the capsule's identity can't be changed in recovery mode: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

// mayChange gives the operator who is about to change the list. id.mu is held.
func (id *Identity) mayChange(caller *x509.Certificate) (Operator, error) {
	if err := id.changeable(); err != nil {
		return Operator{}, err
	}
	o, err := id.listed(caller)
	if err != nil {
		return Operator{}, err
	}
	return *o, nil
}

// put makes the list the one in force, on the disk first. id.mu is held.
func (id *Identity) put(next list) error {
	data, err := next.encode()
	if err != nil {
		return err
	}
	if err := id.write(filepath.Join(id.dir, operatorsFile), data, 0o600); err != nil {
		return fmt.Errorf("write the list of operators: %w", err)
	}
	if id.list.Adopting && !next.Adopting {
		slog.Warn("no more certificates are adopted: who is not in the list needs a grant", "revoked", revokedMax)
	}
	id.list = next
	if len(next.Operators) > 0 {
		id.claimed = true
	}
	if err := id.settle(); err != nil {
		return err
	}
	id.changed()
	return nil
}

// settle marks a claimed capsule as such, for versions that know no list; and
// says that there is one, so that its loss is noticed. id.mu is held.
func (id *Identity) settle() error {
	path := filepath.Join(id.dir, claimedFile)
	mark, err := readFile(path, fileMax)
	if err == nil && string(mark) == listedMark {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := id.write(path, []byte(listedMark), 0o600); err != nil {
		return fmt.Errorf("mark the capsule as claimed: %w", err)
	}
	return nil
}
