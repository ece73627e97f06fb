package main

import (
	"errors"
	"log/slog"
	"path/filepath"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/disk"
	"capsule/internal/identity"
	"capsule/internal/installer"
	"capsule/internal/state"
	"capsule/internal/update"
	"capsule/internal/version"
)

const (
	permDir       = "/perm"
	tempDir       = "/perm/tmp"
	ramRestoreDir = "/run/capsule/restore"
)

// follows tells whether this system goes on with what one of that version wrote.
func follows(of string) bool { return update.Follows(version.Version, of) }

// takeBackup makes a new disk the capsule of the backup that the installer left on it.
// Where that fails the disk must not become another capsule: it's left as it is, and the
// next boot tries again.
func (d *daemon) takeBackup() {
	m := d.machine
	if !m.normal() || !state.Pending(permDir) {
		return
	}
	mount := m.boot.WithESP(disk.Writable, func(esp string) error {
		err := state.Take(permDir, filepath.Join(esp, disk.RestoreFile), follows)
		if errors.Is(err, state.ErrLeft) {
			slog.Error("restored", "error", err)
		} else if err != nil {
			m.recover(err.Error())
		}
		return nil
	})
	if mount != nil {
		m.recover("the boot partition can't be read, and may hold the backup that this capsule is to be restored from: " + mount.Error())
	}
}

// restored is who the capsule of a backup is.
func (d *daemon) restored(digest string) (installer.Personality, error) {
	staged, err := d.stage.Get(digest)
	if err != nil {
		return installer.Personality{}, err
	}
	who := installer.Personality{MachineID: staged.Header.GetMachineId(), Restore: staged.File}
	if staged.Reclaim {
		who.Reclaim = identity.ReclaimFile
	}
	return who, nil
}

// backups is what the API backs the capsule up with.
func (d *daemon) backups(id *identity.Identity) *state.Source {
	return &state.Source{
		Store: d.store, Secrets: d.secrets, Volumes: d.volumes, Identity: identityDir, Temp: tempDir, Perm: permDir,
		Header: func() *capsulev1.BackupHeader {
			return &capsulev1.BackupHeader{
				Version: version.Version, Name: d.machine.called(), MachineId: readWord(machineIDFile), Fingerprint: id.Fingerprint(),
			}
		},
	}
}
