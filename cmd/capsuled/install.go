package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"capsule/internal/disk"
	"capsule/internal/identity"
	"capsule/internal/installer"
	"capsule/internal/state"
)

// What a machine that is started from a stick keeps in memory, to give it to the
// capsule that it installs.
const (
	ramIdentityDir   = "/run/capsule/identity"
	ramSeedFile      = "/run/capsule/seed/seed.pem"
	ramMachineIDFile = "/run/capsule/machine-id"
	ramLogs          = "/run/capsule/logs/system"
)

// newInstaller is the part of the API that there is in this mode alone.
func (d *daemon) newInstaller(id *identity.Identity) *installer.Installer {
	d.stage = &state.Stage{Dir: ramRestoreDir, Follows: follows}
	return installer.New(installer.Options{
		Sysfs: "/sys", Boot: d.machine.boot, Log: slog.Default(),
		Personality: func(restore string) (installer.Personality, error) {
			if restore != "" {
				return d.restored(restore)
			}
			seed, err := id.SeedPEM()
			return installer.Personality{Seed: seed, MachineID: readWord(ramMachineIDFile)}, err
		},
		Needs: func(restore string) (uint64, error) {
			staged, err := d.stage.Get(restore)
			if err != nil {
				return 0, err
			}
			return staged.Needs(), nil
		},
	})
}

// installerIdentity is made in memory, or taken from the seed on the stick, which
// stays there until a capsule has it. A daemon that is started again finds it.
func (m *machine) installerIdentity() (*identity.Identity, error) {
	if _, err := os.Stat(ramIdentityDir); err == nil {
		return identity.Load(ramIdentityDir, "")
	}
	err := m.copySeed(ramSeedFile)
	if err == nil {
		id, failed := identity.Load(ramIdentityDir, ramSeedFile)
		if failed == nil {
			return id, nil
		}
		err = failed
	}
	// A seed that can't be read lets nobody in: the code on the console does.
	slog.Error("the stick's seed is not used", "error", err)
	return identity.Load(ramIdentityDir, "")
}

func (m *machine) copySeed(to string) error {
	var seed []byte
	err := m.boot.WithESP(disk.ReadOnly, func(esp string) (err error) {
		seed, err = os.ReadFile(filepath.Join(esp, disk.SeedFile))
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return fmt.Errorf("keep the seed: %w", err)
	}
	return os.WriteFile(to, seed, 0o600)
}

// disksEvery is how often a machine that is to be installed is asked for its disks.
const disksEvery = 2 * time.Second

// watchDisks shows the disks of the machine with what is on them, and again when one
// comes or goes. Nothing of them is read but then: a disk may be asleep.
func (m *machine) watchDisks(ctx context.Context, i *installer.Installer) {
	tick := time.NewTicker(disksEvery)
	defer tick.Stop()
	for known := []disk.Device(nil); ; {
		if now := disk.Devices(i.Sysfs); known == nil || !slices.Equal(now, known) {
			known = now
			var text strings.Builder
			for _, c := range i.Disks() {
				text.WriteString(c.String() + "\n")
			}
			m.update(func(s *shown) { s.disks = text.String() })
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
