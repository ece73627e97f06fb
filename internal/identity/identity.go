// Package identity owns who the capsule is and whom it believes: its own CA,
// the server certificate made from it, and the roles of operators' certificates.
// It never decides what a role may do.
//
// Trust does not hang on the clock's goodness or on an address:
//
//   - A certificate's NotBefore is never a reason to refuse. That our CA signed
//     it shows that it was made before now, whatever the clock says.
//   - Expiry is judged only while somebody vouches for the clock, by each call. Who
//     sets it ahead shuts no admin out: their expired certificate can be renewed.
//   - The server certificate is made anew at each start, so it never expires on
//     a capsule that was switched off for years. Clients trust the CA, which stays.
//
// A certificate alone lets nobody in: its key must stand in the list of operators,
// which is changed by granting, renewing and revoking (operators.go, admit.go). The
// first of them claims the capsule by the code on its console (claim.go), or comes
// with the seed.
//
//	unclaimed ──right code──▶ claimed ──first use──▶ claimed, answer not kept
//	    │                        ▲
//	    └──window over, 10 tries─┴─ until the next boot nothing but a seed helps
//
// On disk, in one folder that appears whole or not at all: ca.crt, ca.key,
// operators.json, and claimed once an operator holds a certificate. A copy without
// the CA's key is kept on the ESP, so that the API can be reached when the disk's
// state can't be read.
package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"capsule/internal/durable"
)

// ServerName is in every capsule's certificate: clients check this name, since
// addresses change and the CA is the capsule's alone.
const ServerName = "capsule"

const (
	caCertFile    = "ca.crt"
	caKeyFile     = "ca.key"
	claimedFile   = "claimed"
	operatorsFile = "operators.json"
	// listedMark in claimedFile, and ahead of recoveryFile's text: there is a list,
	// and its loss lets nobody in.
	listedMark = "listed\n"

	// On the ESP, beside the seed.
	recoveryFile          = "recovery.pem"
	recoveryOperatorsFile = "operators.pem"

	fileMax = 64 << 10  // bytes of a file with keys
	seedMax = 512 << 10 // of a seed with all operators
)

// ReclaimFile on the ESP has the next boot let one more admin in, by a new code:
// whoever can put it there has the disk in hand.
const ReclaimFile = "capsule/reclaim"

// Identity is this capsule's.
type Identity struct {
	ca *x509.Certificate
	// authority is nil when only the copy without the CA's key could be read.
	authority *CA
	// fallback is the server certificate of that copy.
	fallback tls.Certificate
	shown    atomic.Pointer[tls.Certificate] // to whoever connects
	dir      string                          // "" when nothing can be written
	// write is durable.WriteFile but in tests of power cuts.
	write func(path string, data []byte, perm fs.FileMode) error
	// Synced tells whether somebody vouches for the clock; nil means yes. It is set
	// before anybody is let in.
	Synced func() bool
	// Warnings tell what went wrong without making the identity useless.
	Warnings []string

	mu      sync.Mutex
	claimed bool
	list    list
	window  *window              // nil when nobody can claim
	self    string               // key of our own calls
	seen    map[string]time.Time // by key
	calls   map[*open]bool       // under way
	watch   []func()
	told    *sync.WaitGroup // who watches, of the last change
}

func newIdentity(ca *CA) *Identity {
	return &Identity{
		ca: ca.Cert, authority: ca, write: durable.WriteFile,
		seen: map[string]time.Time{}, calls: map[*open]bool{},
	}
}

// Load reads the identity from dir. A new capsule takes it from the seed, or
// makes its own and stays unclaimed; the seed is removed once the identity is
// safe on disk. A damaged identity is an error, never replaced.
func Load(dir, seedPath string) (*Identity, error) {
	id, err := read(dir)
	if err == nil && !id.claimed {
		// Nobody can hold a certificate of it yet: a seed that came later counts.
		if _, seedErr := readSeed(seedPath); seedErr == nil {
			id, err = nil, errors.Join(fs.ErrNotExist, removeFolder(dir))
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		id, err = create(dir, seedPath)
	}
	if err != nil {
		return nil, fmt.Errorf("load identity from %s: %w", dir, err)
	}
	if err := clearFolder(dir); err != nil {
		id.Warnings = append(id.Warnings, "remove the identity from before the seed: "+err.Error())
	}
	if len(id.list.Operators) > 0 { // the power may have gone before the mark was written
		if err := id.settle(); err != nil {
			id.Warnings = append(id.Warnings, err.Error())
		}
	}
	// An ESP that can't be written is no reason to keep operators out.
	if err := consumeSeed(id, seedPath); err != nil {
		id.Warnings = append(id.Warnings, err.Error())
	}
	if id.claimed && seedPath != "" {
		if err := id.SaveRecovery(seedPath); err != nil {
			id.Warnings = append(id.Warnings, "keep a copy of the identity for recovery: "+err.Error())
		}
	}
	return id, nil
}

// Reload reads what an earlier Load of this boot has left, and makes nothing.
func Reload(dir string) (*Identity, error) {
	id, err := read(dir)
	if err != nil {
		return nil, fmt.Errorf("load identity from %s: %w", dir, err)
	}
	return id, nil
}

// LoadReadOnly finds whatever identity can be read without writing anything, for
// recovery mode: the folder, else the copy on the ESP, else the seed. With none
// of them the capsule is unclaimed and refuses everybody.
func LoadReadOnly(dir, seedPath string) (*Identity, error) {
	if id, err := read(dir); err == nil {
		id.dir = ""
		return id, nil
	}
	if seedPath != "" {
		if id, err := readRecovery(seedPath); err == nil {
			return id, nil
		}
	}
	if s, err := readSeed(seedPath); err == nil {
		id := newIdentity(s.ca)
		id.list, id.claimed = s.list, true
		id.list.Adopting = len(s.list.Operators) == 0
		return id, nil
	}
	ca, err := NewCA("unclaimed capsule")
	if err != nil {
		return nil, err
	}
	return newIdentity(ca), nil
}

// Claimed tells whether any operator can hold a certificate of this capsule.
func (id *Identity) Claimed() bool {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.claimed
}

// OnChange has fn called, in a goroutine of its own, after each change of who is
// let in or of how the capsule can be claimed. A revoke waits until it returns.
func (id *Identity) OnChange(fn func()) {
	id.mu.Lock()
	defer id.mu.Unlock()
	id.watch = append(id.watch, fn)
}

// changed tells who watches. id.mu is held.
func (id *Identity) changed() {
	id.told = &sync.WaitGroup{}
	for _, fn := range id.watch {
		id.told.Go(fn)
	}
}

// Fingerprint of the CA, SHA-256 in hexadecimal groups, as the console shows it.
func (id *Identity) Fingerprint() string { return Fingerprint(id.ca) }

// Fingerprint of a certificate: "3f2a:91c0:…", SHA-256.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return Grouped(hex.EncodeToString(sum[:]))
}

// CA is what clients trust: the certificate alone.
func (id *Identity) CA() *x509.Certificate { return id.ca }

func read(dir string) (*Identity, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 { // made ahead by whoever mounted the disk
		return nil, fs.ErrNotExist
	}
	// From here a missing file is damage, not a new capsule.
	certPEM, err := readFile(filepath.Join(dir, caCertFile), fileMax)
	if err != nil {
		return nil, damaged(err)
	}
	keyPEM, err := readFile(filepath.Join(dir, caKeyFile), fileMax)
	if err != nil {
		return nil, damaged(err)
	}
	ca, err := ParseCA(certPEM, keyPEM)
	if err != nil {
		return nil, damaged(err)
	}
	id := newIdentity(ca)
	id.dir = dir
	return id, id.readOperators()
}

// readOperators finds who is let in. Claimed without a list is a capsule whose
// first version kept none.
func (id *Identity) readOperators() error {
	mark, err := readFile(filepath.Join(id.dir, claimedFile), fileMax)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	id.claimed = err == nil
	id.list, err = readList(id.dir)
	switch {
	case err == nil:
		id.claimed = id.claimed || len(id.list.Operators) > 0
		return nil
	case !errors.Is(err, fs.ErrNotExist) || string(mark) == listedMark:
		return damaged(err)
	}
	id.list.Adopting = id.claimed
	return nil
}

// damaged hides fs.ErrNotExist, which would pass for a new capsule.
func damaged(err error) error {
	return fmt.Errorf("%w: identity is damaged: %v", errdefs.ErrDataLoss, err) //nolint:errorlint // see above
}

// create makes the identity of a new capsule and writes it.
func create(dir, seedPath string) (*Identity, error) {
	s, err := readSeed(seedPath)
	claimed := err == nil
	if errors.Is(err, fs.ErrNotExist) {
		s.ca, err = NewCA("capsule")
	}
	if err != nil {
		return nil, err
	}
	key, err := s.ca.KeyPEM()
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{caCertFile: s.ca.CertPEM(), caKeyFile: key}
	if claimed {
		files[claimedFile] = nil
	}
	if len(s.list.Operators) > 0 {
		if files[operatorsFile], err = s.list.encode(); err != nil {
			return nil, err
		}
		files[claimedFile] = []byte(listedMark)
	}
	if err := writeFolder(dir, files); err != nil {
		return nil, err
	}
	return read(dir)
}

// seed is what whoever prepared the disk left.
type seed struct {
	ca   *CA
	list list
}

func readSeed(path string) (seed, error) {
	if path == "" {
		return seed{}, fs.ErrNotExist
	}
	text, err := readFile(path, seedMax)
	if err != nil {
		return seed{}, err
	}
	s, err := parseSeed(text)
	if err != nil {
		return seed{}, fmt.Errorf("read seed %s: %w", path, err)
	}
	return s, nil
}

// parseSeed reads a CA with its key, and operators' certificates of it. One that
// could not get in is refused here: its owner would only notice when it's late.
func parseSeed(text []byte) (seed, error) {
	ca, err := ParseCA(text, text)
	if err != nil {
		return seed{}, err
	}
	certs, err := certsPEM(text)
	if err != nil {
		return seed{}, err
	}
	id := newIdentity(ca)
	for _, cert := range certs[1:] {
		if err := id.genuine(cert); err != nil {
			return seed{}, err
		}
	}
	l, err := listOf(certs[1:])
	return seed{ca: ca, list: l}, err
}

// CheckSeed tells whether a capsule could take its identity from this text, and
// how many operators come with it.
func CheckSeed(text []byte) (operators int, err error) {
	s, err := parseSeed(text)
	return len(s.list.Operators), err
}

// SeedLetsIn tells whether who made a request comes with this seed.
func SeedLetsIn(text []byte, r Request) bool {
	s, err := parseSeed(text)
	return err == nil && s.list.find(r.id) != nil
}

// consumeSeed removes the seed of our own CA. It may still be there after a
// power cut between writing the identity and removing the seed. Somebody else's
// seed changes nothing and is left alone.
func consumeSeed(id *Identity, path string) error {
	if s, err := readSeed(path); err != nil || !bytes.Equal(s.ca.Cert.Raw, id.ca.Raw) {
		return nil //nolint:nilerr // what can't be read is not ours
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove the consumed seed: %w", err)
	}
	return durable.Sync(filepath.Dir(path))
}

// recoveryRenew is how long before its end the copy's certificate is replaced.
const recoveryRenew = 5 * 365 * 24 * time.Hour

// SaveRecovery writes the copy without the CA's key beside the seed, and who is
// let in, unless a good one is there.
func (id *Identity) SaveRecovery(seedPath string) error {
	if id.authority == nil {
		return nil
	}
	operators, listed := id.operatorsPEM()
	if err := replaceText(beside(seedPath, recoveryOperatorsFile), operators); err != nil {
		return err
	}
	path := beside(seedPath, recoveryFile)
	if old, err := readFallback(path); err == nil && bytes.Equal(old.ca.Raw, id.ca.Raw) && old.listed == listed &&
		now().Add(recoveryRenew).Before(old.pair.Leaf.NotAfter) {
		return nil
	}
	pair, err := id.authority.IssueServer(ServerName)
	if err != nil {
		return err
	}
	var mark []byte
	if listed {
		mark = []byte(listedMark)
	}
	// The server's certificate comes first, as tls.X509KeyPair wants it.
	return durable.WriteFile(path, bytes.Join([][]byte{mark, pair.CertPEM, pair.KeyPEM, EncodeCert(id.ca)}, nil), 0o600)
}

// operatorsPEM are the certificates of who is let in; none while all are adopted.
func (id *Identity) operatorsPEM() (text []byte, listed bool) {
	id.mu.Lock()
	defer id.mu.Unlock()
	if id.list.Adopting {
		return nil, false
	}
	for _, o := range id.list.Operators {
		text = append(text, o.Certificate...)
	}
	return text, true
}

func replaceText(path string, text []byte) error {
	old, err := readFile(path, seedMax)
	if (err == nil && bytes.Equal(old, text)) || (errors.Is(err, fs.ErrNotExist) && len(text) == 0) {
		return nil
	}
	return durable.WriteFile(path, text, 0o600)
}

func beside(seedPath, name string) string { return filepath.Join(filepath.Dir(seedPath), name) }

// readRecovery reads the copy. Where there never was a list of operators, as older
// versions left it, all that the CA signed are let in.
func readRecovery(seedPath string) (*Identity, error) {
	f, err := readFallback(beside(seedPath, recoveryFile))
	if err != nil {
		return nil, err
	}
	id := newIdentity(&CA{Cert: f.ca})
	id.authority, id.fallback, id.claimed = nil, f.pair, true
	text, err := readFile(beside(seedPath, recoveryOperatorsFile), seedMax)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	certs, err := certsPEM(text)
	if err != nil {
		return nil, err
	}
	if id.list, err = listOf(certs); err != nil {
		return nil, err
	}
	if len(certs) == 0 && f.listed {
		id.Warnings = append(id.Warnings, recoveryOperatorsFile+" on the ESP has no operators any more, so nobody is let in")
	}
	id.list.Adopting = len(certs) == 0 && !f.listed
	return id, nil
}

// fallback is what recoveryFile holds.
type fallback struct {
	pair   tls.Certificate
	ca     *x509.Certificate
	listed bool // recoveryOperatorsFile says who is let in, and only that
}

func readFallback(path string) (f fallback, err error) {
	data, err := readFile(path, fileMax)
	if err != nil {
		return f, err
	}
	f.listed = bytes.HasPrefix(data, []byte(listedMark))
	if f.pair, err = tls.X509KeyPair(data, data); err != nil {
		return f, err
	}
	if len(f.pair.Certificate) != 2 {
		return f, fmt.Errorf("read %s: want two certificates, found %d", path, len(f.pair.Certificate))
	}
	f.ca, err = x509.ParseCertificate(f.pair.Certificate[1])
	return f, err
}
