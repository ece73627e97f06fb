package uplink

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// memory keeps the lease of a link for the next daemon of this boot.
type memory struct{ path string }

// remembered is a lease as written. Its time is of CLOCK_BOOTTIME, since the
// wall clock may be set in between.
type remembered struct {
	Hardware string        `json:"hardware"`
	Since    time.Duration `json:"since_boot"`
	Lease    Lease         `json:"lease"`
}

func sinceBoot() time.Duration {
	var ts unix.Timespec
	// Fails for no clock that Linux has.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return time.Duration(ts.Nano())
}

// load returns the lease, or nil when there is none that still holds.
func (m memory) load(hardware string) *Lease {
	content, err := os.ReadFile(m.path)
	if err != nil {
		return nil
	}
	var r remembered
	if json.Unmarshal(content, &r) != nil || r.Hardware != hardware || !r.Lease.Address.IsValid() {
		return nil
	}
	age := sinceBoot() - r.Since
	if age < 0 || age >= r.Lease.Expiry {
		return nil
	}
	r.Lease.Acquired = time.Now().Add(-age)
	return &r.Lease
}

// save writes the lease; nil removes it.
func (m memory) save(hardware string, l *Lease) error {
	if l == nil {
		if err := os.Remove(m.path); err != nil && !os.IsNotExist(err) {
			return err
		}
		return nil
	}
	content, err := json.Marshal(remembered{hardware, sinceBoot() - time.Since(l.Acquired), *l})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(m.path), 0o755); err != nil {
		return err
	}
	next := m.path + ".next"
	if err := os.WriteFile(next, content, 0o644); err != nil {
		return err
	}
	if err := os.Rename(next, m.path); err != nil {
		return fmt.Errorf("remember lease: %w", err)
	}
	return nil
}
