package contexts

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
)

// Bounds of waiting for other commands that change contexts. One that hangs, say at
// a question of the keychain, must not hang all others.
const (
	lockMax   = 30 * time.Second
	lockEvery = 10 * time.Millisecond
)

// locked does what reads and then writes contexts while no other program does. The
// system lets go of the lock when the program that has it ends, however that ends.
func (s *Store) locked(do func() error) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("lock the contexts: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("lock the contexts: %w", err)
	}
	defer f.Close()
	if err := lock(f, lockMax); err != nil {
		return err
	}
	defer unlock(f)
	return do()
}

// lock waits until no other program has the file locked.
func lock(f *os.File, most time.Duration) error {
	for end := time.Now().Add(most); ; time.Sleep(lockEvery) {
		if got, err := tryLock(f); err != nil {
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		} else if got {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("another capsulectl has been changing contexts for %v, and has %s locked: %w", most, f.Name(), errdefs.ErrUnavailable)
		}
	}
}
