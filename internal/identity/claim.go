package identity

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/containerd/errdefs"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/claim"
	"capsule/internal/durable"
)

// Limits of claiming.
const (
	ClaimWindow   = 30 * time.Minute // from the boot
	ClaimTriesMax = 10               // wrong ones, of one boot
)

// Claiming says how a capsule can be claimed in this boot.
type Claiming struct {
	// State is a file that lives as long as the boot: a daemon that is started
	// anew goes on with the same code, tries and end.
	State string
	// SinceBoot is the time since the boot, by a clock that nobody sets.
	SinceBoot func() time.Duration
	// Reclaim lets one more admin in although the capsule is claimed.
	Reclaim bool
	// Reclaimed takes the cause of a reclaim away; may be nil.
	Reclaimed func() error
}

// window is the time in which the capsule can be claimed.
type window struct {
	Claiming
	kept claimState
	key  claim.Key
	done bool // somebody did
}

// claimState outlives the daemon, and ends with the boot.
type claimState struct {
	Code    claim.Code `json:"code"`
	Tries   int        `json:"tries"` // wrong ones
	Reclaim bool       `json:"reclaim,omitempty"`
}

// Offer is what the console shows of a capsule that can be claimed.
type Offer struct {
	Code claim.Code    // "" when it can't be, now
	Left time.Duration // until the window closes
	Why  string        // it can't be claimed, and what to do
}

// OpenClaim opens the window, unless the capsule is claimed and this boot was
// not asked to let one more in.
func (id *Identity) OpenClaim(c Claiming) error {
	id.mu.Lock()
	defer id.mu.Unlock()
	if err := id.changeable(); err != nil {
		return err
	}
	kept, err := readState(c.State)
	if err != nil {
		return err
	}
	c.Reclaim = c.Reclaim || kept.Reclaim
	if id.claimed && !c.Reclaim {
		return nil
	}
	if kept.Code == "" {
		kept.Code = claim.NewCode()
	}
	kept.Reclaim = c.Reclaim
	w := &window{Claiming: c, kept: kept}
	if w.key, err = kept.Code.Key(); err != nil {
		return err
	}
	if err := w.save(); err != nil {
		return err
	}
	id.window = w
	return nil
}

// after is what is to be done once somebody has claimed; nil for nothing.
func (w *window) after() func() error {
	if !w.Reclaim {
		return nil
	}
	return w.Reclaimed
}

func readState(path string) (claimState, error) {
	var kept claimState
	data, err := readFile(path, fileMax)
	if errors.Is(err, fs.ErrNotExist) {
		return kept, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &kept)
	}
	if err == nil && kept.Code != "" {
		_, err = claim.ParseCode(string(kept.Code))
	}
	if err != nil {
		return kept, fmt.Errorf("read the state of claiming: %w", err)
	}
	return kept, nil
}

func (w *window) save() error {
	data, err := json.Marshal(w.kept)
	if err == nil {
		err = durable.WriteFile(w.State, data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write the state of claiming: %w", err)
	}
	return nil
}

// why nobody can claim any more, and what to do; "" while one can.
func (w *window) why() string {
	switch {
	case w.SinceBoot() >= ClaimWindow:
		return fmt.Sprintf("the time to claim it is over: switch it off and on, and claim it within %d minutes", ClaimWindow/time.Minute)
	case w.kept.Tries >= ClaimTriesMax:
		return fmt.Sprintf("%d wrong codes were tried: switch it off and on, and use its new code", ClaimTriesMax)
	}
	return ""
}

var errClaimed = fmt.Errorf("the capsule is claimed already: have one of its admins let you in (capsulectl access request): %w", errdefs.ErrAlreadyExists)

// Offer tells how the capsule can be claimed now.
func (id *Identity) Offer() Offer {
	id.mu.Lock()
	defer id.mu.Unlock()
	w := id.window
	if w == nil || w.done {
		return Offer{}
	}
	if why := w.why(); why != "" {
		return Offer{Why: why}
	}
	return Offer{Code: w.kept.Code, Left: ClaimWindow - w.SinceBoot()}
}

// anonymous tells whether somebody without a certificate may connect, to claim
// or to be told why not.
func (id *Identity) anonymous() bool {
	id.mu.Lock()
	defer id.mu.Unlock()
	if id.list.Claim != nil { // its answer may be lost
		return true
	}
	w := id.window
	return w != nil && (!id.claimed || w.SinceBoot() < ClaimWindow)
}

// Claim makes whoever proves to know the code an admin; export is that of the
// connection that the proof came by. All is on the disk before it returns. The
// same key gets its certificate again, by the same code, until that is used. Of who
// proves nothing not even the request is read.
func (id *Identity) Claim(export, csr, proof []byte) (cert *x509.Certificate, serverProof []byte, err error) {
	if len(proof) != claim.ProofSize {
		return nil, nil, fmt.Errorf("proof of %d bytes, not %d: %w", len(proof), claim.ProofSize, errdefs.ErrInvalidArgument)
	}
	cert, key, reclaimed, err := id.claim(export, csr, proof)
	if err != nil {
		return nil, nil, err
	}
	if reclaimed != nil {
		if err := reclaimed(); err != nil {
			slog.Error("the capsule can be claimed once more at its next boot", "error", err)
		}
	}
	return cert, key.ServerProof(export, id.ca.Raw, cert.Raw), nil
}

// claim also gives the key that the proof was made with, and what is to be done
// after a reclaim.
func (id *Identity) claim(export, csr, proof []byte) (*x509.Certificate, claim.Key, func() error, error) {
	id.mu.Lock()
	defer id.mu.Unlock()
	if err := id.changeable(); err != nil {
		return nil, nil, nil, err
	}
	if record := id.list.Claim; record != nil {
		if key := claim.Key(record.Verifier); claim.Equal(proof, key.ClientProof(export, csr)) {
			cert, err := id.claimedBefore(csr, record.Operator)
			return cert, key, nil, err
		}
	}
	if err := id.check(export, csr, proof); err != nil {
		return nil, nil, nil, err
	}
	cert, err := id.enter(csr)
	return cert, id.window.key, id.window.after(), err
}

// claimedBefore gives the certificate once more, to the same key. id.mu is held.
func (id *Identity) claimedBefore(csr []byte, key string) (*x509.Certificate, error) {
	r, err := ParseRequest(csr)
	if err != nil {
		return nil, err
	}
	o := id.list.find(key)
	if o == nil || r.id != key {
		return nil, errClaimed
	}
	if err := id.settle(); err != nil {
		return nil, err
	}
	return ParseCert([]byte(o.Certificate))
}

// check counts who is wrong. id.mu is held.
func (id *Identity) check(export, csr, proof []byte) error {
	w := id.window
	switch {
	case w == nil || w.done:
		return errClaimed
	case w.why() != "":
		return fmt.Errorf("%s: %w", w.why(), errdefs.ErrFailedPrecondition)
	}
	if claim.Equal(proof, w.key.ClientProof(export, csr)) {
		return nil
	}
	w.kept.Tries++
	if err := w.save(); err != nil { // counted here at least
		slog.Error("claim", "error", err)
	}
	id.changed()
	return fmt.Errorf("that is not the code on the capsule's console, or somebody is in between; %d of %d tries are left: %w",
		ClaimTriesMax-w.kept.Tries, ClaimTriesMax, errdefs.ErrPermissionDenied)
}

// enter makes the claimer an admin. id.mu is held.
func (id *Identity) enter(csr []byte) (*x509.Certificate, error) {
	r, err := ParseRequest(csr)
	if err != nil {
		return nil, err
	}
	w := id.window
	by := byClaim
	if id.claimed {
		by = byReclaim
	}
	cert, err := id.admit(r, capsulev1.Role_ROLE_ADMIN, by, ClaimLife, func(l *list, o Operator) error {
		l.Claim = &claimRecord{Verifier: w.key, Operator: o.Key}
		return l.add(o)
	})
	if err != nil {
		return nil, err
	}
	w.done = true
	if err := os.Remove(w.State); err != nil && !errors.Is(err, fs.ErrNotExist) {
		slog.Error("remove the state of claiming", "error", err)
	}
	id.changed()
	return cert, nil
}

// SeedPEM is what a disk is made this capsule by: the CA with its key, and who
// is let in.
func (id *Identity) SeedPEM() ([]byte, error) {
	id.mu.Lock()
	defer id.mu.Unlock()
	if id.authority == nil {
		return nil, fmt.Errorf("the CA's key can't be read: %w", errdefs.ErrUnavailable)
	}
	var certs [][]byte
	for _, o := range id.list.Operators {
		certs = append(certs, []byte(o.Certificate))
	}
	return id.authority.SeedPEM(certs...)
}

// certsPEM reads all certificates of a PEM text.
func certsPEM(text []byte) (certs []*x509.Certificate, err error) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return certs, nil
		}
		if block.Type != pemCertificate {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
}
