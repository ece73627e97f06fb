package state

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/backup"
	"capsule/internal/identity"
	"capsule/internal/store"
)

// StagedMax bounds what a stick keeps of a backup in memory, bytes.
const StagedMax = 128 << 20

// Staged is a backup's state on a stick, checked.
type Staged struct {
	// Digest stands for it in this boot.
	Digest  string
	File    string // for the ESP
	Header  *v1.BackupHeader
	Reclaim bool
}

// Needs is how many bytes the data of its volumes takes.
func (s *Staged) Needs() (sum uint64) {
	for _, v := range s.Header.GetVolumes() {
		sum += v.GetUsed()
	}
	return sum
}

// A Stage keeps the last backup that it was given.
type Stage struct {
	Dir string // of its own, in memory
	// Follows tells whether this system may go on with what one of that version wrote.
	Follows func(version string) bool

	taking sync.Mutex
	mu     sync.Mutex
	staged *Staged
}

// Take reads a backup without chunks and makes sure that a capsule can be made of it.
func (s *Stage) Take(r io.Reader, reclaim bool) (*Staged, error) {
	if !s.taking.TryLock() {
		return nil, fmt.Errorf("another backup is being taken: %w", errdefs.ErrFailedPrecondition)
	}
	defer s.taking.Unlock()
	s.set(nil)
	if err := errors.Join(os.RemoveAll(s.Dir), os.MkdirAll(s.Dir, 0o700)); err != nil {
		return nil, err
	}
	staged, err := s.take(r, reclaim)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the backup can't be restored: %w", err), os.RemoveAll(s.Dir))
	}
	s.set(staged)
	return staged, nil
}

func (s *Stage) set(staged *Staged) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.staged = staged
}

// Get gives what was staged under this digest.
func (s *Stage) Get(digest string) (*Staged, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.staged == nil || s.staged.Digest != digest {
		return nil, fmt.Errorf("the backup is not here any more: give it again: %w", errdefs.ErrFailedPrecondition)
	}
	return s.staged, nil
}

func (s *Stage) take(r io.Reader, reclaim bool) (*Staged, error) {
	name := filepath.Join(s.Dir, "restore")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	in := &bounded{r: r, left: StagedMax}
	header, err := Unpack(io.TeeReader(in, f), filepath.Join(s.Dir, "check"), s.Follows)
	if err != nil {
		return nil, err
	}
	random := make([]byte, 16)
	_, _ = rand.Read(random) // never fails
	return &Staged{Digest: hex.EncodeToString(random), File: name, Header: header, Reclaim: reclaim}, os.RemoveAll(filepath.Join(s.Dir, "check"))
}

// bounded is io.LimitReader that says so.
type bounded struct {
	r    io.Reader
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("its state has more than %d bytes: %w", StagedMax, errdefs.ErrResourceExhausted)
	}
	n, err := b.r.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// Unpack writes the files of a backup without chunks to a new folder, and makes sure
// that they are a capsule's, and that this version can read them.
func Unpack(r io.Reader, dir string, follows func(version string) bool) (*v1.BackupHeader, error) {
	b, err := backup.NewReader(bufio.NewReader(r))
	if err != nil {
		return nil, err
	}
	h := b.Header()
	if !follows(h.GetVersion()) {
		return nil, fmt.Errorf("version %.60q: %w", h.GetVersion(), ErrNewer)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	if _, err := backup.Files(b, dir, allowed()); err != nil {
		return nil, err
	}
	id, err := identity.Reload(filepath.Join(dir, identityDir))
	if err != nil {
		return nil, err
	}
	if id.Fingerprint() != h.GetFingerprint() {
		return nil, fmt.Errorf("its identity is not that of the capsule that it says to be of: %w", backup.ErrDamaged)
	}
	if err := store.Check(filepath.Join(dir, storeFile)); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, keysFile)); err != nil {
		return nil, fmt.Errorf("its secrets have no keys: %w", backup.ErrDamaged)
	}
	return h, nil
}
