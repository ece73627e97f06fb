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

// A medium is what the system was started from. What isn't known of it is decided
// neither way: nothing is installed, and no data are made there.
type medium struct {
	known     bool
	removable bool
	perm      lvm.Content
	stay      bool // the file says that a capsule lives here
}

// installs is the rule: a medium that can be pulled out, and on which no capsule ever
// lived nor is to live, installs. Everything else is a capsule. That PERM is not new
// can't be undone by pulling a cable or cutting power: it's what a capsule writes
// first of all.
func (m medium) installs() bool { return m.known && m.removable && !m.stay && isNew(m.perm) }

// creates tells whether a new PERM may become a capsule's.
func (m medium) creates() bool { return m.known && (!m.removable || m.stay) }

func isNew(c lvm.Content) bool { return c == lvm.New || c == lvm.Blank }

// look asks for no more than is needed: a capsule that lives on a USB disk starts
// although its ESP can't be read.
func look(removable bool, perm func() (lvm.Content, error), stay func() (bool, error)) (m medium, err error) {
	m.removable = removable
	if removable {
		if m.perm, err = perm(); err != nil {
			return m, err
		}
		if isNew(m.perm) {
			if m.stay, err = stay(); err != nil {
				return m, err
			}
		}
	}
	m.known = true
	return m, nil
}

// lookMedium decides whether this is the installer.
func (m *machine) lookMedium() (err error) {
	d, ok := disk.Describe(sysfs, m.boot.Disk)
	if !ok || m.boot.PERM == "" {
		return nil // recovery mode says why
	}
	m.medium, err = look(d.Removable, func() (lvm.Content, error) { return lvm.Inspect(m.boot.PERM) }, m.stays)
	if m.medium.installs() {
		m.installer, m.reason = true, whyInstaller
		m.log.important("%s", whyInstaller)
	}
	return err
}

func (m *machine) stays() (bool, error) { return m.boot.OnESP(disk.StayFile) }

// errUnsure is what the operator of a new medium reads that can't be told from a stick.
var errUnsure = errors.New("PERM is new, but it can't be told whether this disk is an installation stick or is to become a capsule's, and nothing is written to it: " +
	"switch the machine off and on; when that doesn't help, write the image to the disk once more, or make the file " + disk.StayFile + " on its ESP if a capsule is to live on it")

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
