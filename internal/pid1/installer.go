package pid1

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"capsule/internal/disk"
	"capsule/internal/durable"
	"capsule/internal/lvm"
)

// ramIDFile is the id of a machine that keeps nothing.
const ramIDFile = "/run/capsule/machine-id"

// whyInstaller is what the operator reads instead of a reason for recovery.
const whyInstaller = "started from a stick, to be installed on a disk of this machine"

// A medium is what the system was started from.
type medium struct {
	removable bool
	perm      lvm.Content
	stay      bool // the file says that a capsule lives here
}

// installs is the rule: a medium that can be pulled out, and on which no capsule ever
// lived nor is to live, installs. Everything else is a capsule. That PERM is not new
// can't be undone by pulling a cable or cutting power: it's what a capsule writes
// first of all.
func (m medium) installs() bool {
	return m.removable && !m.stay && (m.perm == lvm.New || m.perm == lvm.Blank)
}

// lookMedium decides whether this is the installer. What can't be told is none: a
// capsule that can't find its own comes up in recovery mode, which says why.
func (m *machine) lookMedium() error {
	if m.boot.Disk == "" || m.boot.PERM == "" {
		return nil
	}
	d, ok := disk.Describe(sysfs, m.boot.Disk)
	if !ok || !d.Removable {
		return nil
	}
	content, err := lvm.Inspect(m.boot.PERM)
	if err != nil {
		return err
	}
	from := medium{removable: true, perm: content}
	if err := m.boot.WithESP(disk.ReadOnly, func(dir string) error {
		_, err := os.Stat(filepath.Join(dir, disk.StayFile))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		from.stay = err == nil
		return nil
	}); err != nil {
		return err
	}
	if from.installs() {
		m.installer, m.reason = true, whyInstaller
		m.log.important("%s", whyInstaller)
	}
	return nil
}

// givenID is the id that the installer gave to this machine; "" when there's none.
func givenID(dir string) string {
	b, err := os.ReadFile(filepath.Join(dir, disk.MachineIDFile))
	if err != nil || !validID(word(b)) {
		return ""
	}
	return word(b)
}

// takeID keeps the id that the installer left on the ESP, at the first start: the
// capsule's name, which operators know already, comes from it.
func (m *machine) takeID() error {
	if _, err := os.Stat(idFile); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	id := ""
	err := m.boot.WithESP(disk.ReadOnly, func(dir string) error {
		id = givenID(dir)
		return nil
	})
	if err != nil || id == "" {
		return err
	}
	return durable.WriteFile(idFile, []byte(id+"\n"), 0o644)
}
