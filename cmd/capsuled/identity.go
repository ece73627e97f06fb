package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"capsule/internal/clock"
	"capsule/internal/console"
	"capsule/internal/disk"
	"capsule/internal/durable"
	"capsule/internal/identity"
)

const (
	identityDir = "/perm/identity"
	claimFile   = "/run/capsule/claim.json"
)

// identity finds who this capsule is, and how it can be claimed. The ESP is only
// mounted at the first start of a boot: later ones find all on /perm.
func (m *machine) identity() (*identity.Identity, error) {
	id, reclaim, err := m.loadIdentity()
	if err != nil {
		return nil, err
	}
	if m.normal() || m.installs {
		err := id.OpenClaim(identity.Claiming{State: claimFile, SinceBoot: uptime, Reclaim: reclaim, Reclaimed: m.reclaimed})
		if err != nil {
			id.Warnings = append(id.Warnings, "nobody can claim it: "+err.Error())
		}
	}
	for _, w := range id.Warnings {
		slog.Warn("identity", "warning", w)
	}
	id.Synced = func() bool { return clock.Now().Synced }
	m.mu.Lock()
	m.id = id
	m.mu.Unlock()
	m.update(func(*shown) {})
	id.OnChange(func() { m.update(func(*shown) {}) })
	if m.normal() {
		id.OnChange(func() { m.keepRecovery(id) })
	}
	return id, nil
}

func (m *machine) loadIdentity() (id *identity.Identity, reclaim bool, err error) {
	if m.installs {
		id, err := m.installerIdentity()
		return id, false, err
	}
	if m.normal() && m.starts > 1 {
		if id, err := identity.Reload(identityDir); err == nil && id.Claimed() {
			return id, false, nil
		}
	}
	if m.normal() {
		mount := m.boot.WithESP(disk.Writable, func(esp string) error {
			id, err = identity.Load(identityDir, filepath.Join(esp, disk.SeedFile))
			_, missing := os.Stat(filepath.Join(esp, identity.ReclaimFile))
			reclaim = missing == nil
			return nil
		})
		if mount != nil {
			slog.Error("look for the seed", "error", mount)
		}
		if id != nil {
			return id, reclaim, nil
		}
		if err != nil {
			m.recover(err.Error())
		}
	}
	if m.normal() { // without the ESP
		if id, err := identity.Reload(identityDir); err == nil && id.Claimed() {
			return id, false, nil
		}
	}
	if mount := m.boot.WithESP(disk.ReadOnly, func(esp string) error {
		id, err = identity.LoadReadOnly(identityDir, filepath.Join(esp, disk.SeedFile))
		return nil
	}); mount != nil || id == nil {
		// Without the ESP nothing new is made: a seed may still wait there.
		id, err = identity.LoadReadOnly(identityDir, "")
	}
	return id, false, err
}

// reclaimed takes the file away that had this boot let one more admin in.
func (m *machine) reclaimed() error {
	return m.boot.WithESP(disk.Writable, func(esp string) error {
		path := filepath.Join(esp, identity.ReclaimFile)
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return durable.Sync(filepath.Dir(path))
	})
}

// keepRecovery brings the copy on the ESP to who is let in now.
func (m *machine) keepRecovery(id *identity.Identity) {
	if !id.Claimed() {
		return
	}
	err := m.boot.WithESP(disk.Writable, func(esp string) error { return id.SaveRecovery(filepath.Join(esp, disk.SeedFile)) })
	if err != nil {
		slog.Error("keep a copy of the identity for recovery; tried again at the next boot", "error", err)
	}
}

// watchClaim takes the code from the console when its time is over.
func (m *machine) watchClaim(ctx context.Context) {
	left := m.id.Offer().Left
	if left <= 0 {
		return
	}
	select {
	case <-time.After(left):
		m.update(func(*shown) {})
	case <-ctx.Done():
	}
}

// showClaim tells the console who the capsule is, and how it can be claimed. m.mu
// is held.
func (m *machine) showClaim(s *console.State) {
	if m.id == nil {
		return
	}
	s.Claim, s.Fingerprint = "unclaimed", m.id.Fingerprint()
	if m.id.Claimed() {
		s.Claim = "claimed"
	}
	offer := m.id.Offer()
	s.Code, s.Unclaimable = string(offer.Code), offer.Why
}
