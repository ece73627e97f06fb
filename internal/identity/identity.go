// Package identity owns who the capsule is and whom it believes: its own CA,
// the server certificate made from it, and the roles of operators' certificates.
// It never decides what a role may do.
//
// Trust does not hang on the clock's goodness or on an address:
//
//   - A certificate's NotBefore is never a reason to refuse. That our CA signed
//     it shows that it was made before now, whatever the clock says.
//   - Expiry is judged at the later of the clock and the time that this version
//     was built, so a clock that fell back to 1970 revives nothing older.
//   - The server certificate is made anew at each start, so it never expires on
//     a capsule that was switched off for years. Clients trust the CA, which stays.
//
// On disk, in one folder that appears whole or not at all: ca.crt, ca.key, and
// claimed once an operator holds a certificate. A copy without the CA's key is
// kept on the ESP, so that the API can be reached when the disk's state can't
// be read.
package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"capsule/internal/durable"
)

// ServerName is in every capsule's certificate: clients check this name, since
// addresses change and the CA is the capsule's alone.
const ServerName = "capsule"

const (
	caCertFile   = "ca.crt"
	caKeyFile    = "ca.key"
	claimedFile  = "claimed"
	recoveryFile = "recovery.pem" // beside the seed, on the ESP
	fileMax      = 64 << 10       // bytes of any file read here
)

// Identity is this capsule's.
type Identity struct {
	ca *x509.Certificate
	// authority is nil when only the copy without the CA's key could be read.
	authority *CA
	// fallback is the server certificate of that copy.
	fallback tls.Certificate
	claimed  bool
	// Warnings tell what went wrong without making the identity useless.
	Warnings []string
}

// Load reads the identity from dir. A new capsule takes it from the seed, or
// makes its own and stays unclaimed; the seed is removed once the identity is
// safe on disk. A damaged identity is an error, never replaced.
func Load(dir, seedPath string) (*Identity, error) {
	id, err := read(dir)
	if err == nil && !id.claimed {
		// Nobody can hold a certificate of it yet: a seed that came later counts.
		if _, seedErr := readSeed(seedPath); seedErr == nil {
			id, err = nil, errors.Join(fs.ErrNotExist, os.RemoveAll(dir))
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		id, err = create(dir, seedPath)
	}
	if err != nil {
		return nil, fmt.Errorf("load identity from %s: %w", dir, err)
	}
	// An ESP that can't be written is no reason to keep operators out.
	if err := consumeSeed(id, seedPath); err != nil {
		id.Warnings = append(id.Warnings, err.Error())
	}
	if id.claimed && seedPath != "" {
		if err := id.saveRecovery(recoveryPath(seedPath)); err != nil {
			id.Warnings = append(id.Warnings, "keep a copy of the identity for recovery: "+err.Error())
		}
	}
	return id, nil
}

// LoadReadOnly finds whatever identity can be read without writing anything, for
// recovery mode: the folder, else the copy on the ESP, else the seed. With none
// of them the capsule is unclaimed and refuses everybody.
func LoadReadOnly(dir, seedPath string) (*Identity, error) {
	if id, err := read(dir); err == nil {
		return id, nil
	}
	if id, err := readRecovery(recoveryPath(seedPath)); err == nil {
		return id, nil
	}
	if ca, err := readSeed(seedPath); err == nil {
		return &Identity{ca: ca.Cert, authority: ca, claimed: true}, nil
	}
	ca, err := NewCA("unclaimed capsule")
	if err != nil {
		return nil, err
	}
	return &Identity{ca: ca.Cert, authority: ca}, nil
}

// Claimed tells whether any operator can hold a certificate of this capsule.
func (id *Identity) Claimed() bool { return id.claimed }

// Fingerprint of the CA, SHA-256 in hexadecimal groups, as the console shows it.
func (id *Identity) Fingerprint() string { return Fingerprint(id.ca) }

// Fingerprint of a certificate: "3f2a:91c0:…", SHA-256.
func Fingerprint(cert *x509.Certificate) string {
	sum := fmt.Sprintf("%x", sha256.Sum256(cert.Raw))
	var groups []string
	for i := 0; i < len(sum); i += 4 {
		groups = append(groups, sum[i:i+4])
	}
	return strings.Join(groups, ":")
}

// CACertPEM is what clients trust.
func (id *Identity) CACertPEM() []byte { return encodeCert(id.ca) }

func read(dir string) (*Identity, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 { // made ahead by whoever mounted the disk
		return nil, fs.ErrNotExist
	}
	// From here a missing file is damage, not a new capsule.
	certPEM, err := readFile(filepath.Join(dir, caCertFile))
	if err != nil {
		return nil, damaged(err)
	}
	keyPEM, err := readFile(filepath.Join(dir, caKeyFile))
	if err != nil {
		return nil, damaged(err)
	}
	ca, err := ParseCA(certPEM, keyPEM)
	if err != nil {
		return nil, damaged(err)
	}
	_, err = os.Stat(filepath.Join(dir, claimedFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return &Identity{ca: ca.Cert, authority: ca, claimed: err == nil}, nil
}

// damaged hides fs.ErrNotExist, which would pass for a new capsule.
func damaged(err error) error {
	return fmt.Errorf("%w: identity is damaged: %v", errdefs.ErrDataLoss, err) //nolint:errorlint // see above
}

// create makes the identity of a new capsule and writes it.
func create(dir, seedPath string) (*Identity, error) {
	ca, err := readSeed(seedPath)
	claimed := err == nil
	if errors.Is(err, fs.ErrNotExist) {
		ca, err = NewCA("capsule")
	}
	if err != nil {
		return nil, err
	}
	key, err := ca.KeyPEM()
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{caCertFile: ca.CertPEM(), caKeyFile: key}
	if claimed {
		files[claimedFile] = nil
	}
	if err := writeFolder(dir, files); err != nil {
		return nil, err
	}
	return &Identity{ca: ca.Cert, authority: ca, claimed: claimed}, nil
}

func readSeed(path string) (*CA, error) {
	if path == "" {
		return nil, fs.ErrNotExist
	}
	seed, err := readFile(path)
	if err != nil {
		return nil, err
	}
	ca, err := ParseCA(seed, seed)
	if err != nil {
		return nil, fmt.Errorf("read seed %s: %w", path, err)
	}
	return ca, nil
}

// consumeSeed removes the seed of our own CA. It may still be there after a
// power cut between writing the identity and removing the seed. Somebody else's
// seed changes nothing and is left alone.
func consumeSeed(id *Identity, path string) error {
	if ca, err := readSeed(path); err != nil || !bytes.Equal(ca.Cert.Raw, id.ca.Raw) {
		return nil //nolint:nilerr // what can't be read is not ours
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove the consumed seed: %w", err)
	}
	return durable.Sync(filepath.Dir(path))
}

func recoveryPath(seedPath string) string {
	if seedPath == "" {
		return ""
	}
	return filepath.Join(filepath.Dir(seedPath), recoveryFile)
}

// recoveryRenew is how long before its end the copy's certificate is replaced.
const recoveryRenew = 5 * 365 * 24 * time.Hour

// saveRecovery writes the copy without the CA's key, unless a good one is there.
func (id *Identity) saveRecovery(path string) error {
	if old, err := readRecovery(path); err == nil && bytes.Equal(old.ca.Raw, id.ca.Raw) &&
		now().Add(recoveryRenew).Before(old.fallback.Leaf.NotAfter) {
		return nil
	}
	if id.authority == nil {
		return nil
	}
	pair, err := id.authority.IssueServer(ServerName)
	if err != nil {
		return err
	}
	// The server's certificate comes first, as tls.X509KeyPair wants it.
	return durable.WriteFile(path, bytes.Join([][]byte{pair.CertPEM, pair.KeyPEM, id.CACertPEM()}, nil), 0o600)
}

func readRecovery(path string) (*Identity, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(data, data)
	if err != nil {
		return nil, err
	}
	if len(pair.Certificate) != 2 {
		return nil, fmt.Errorf("read %s: want two certificates, found %d", path, len(pair.Certificate))
	}
	ca, err := x509.ParseCertificate(pair.Certificate[1])
	if err != nil {
		return nil, err
	}
	return &Identity{ca: ca, fallback: pair, claimed: true}, nil
}
