package installer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"capsule/internal/disk"
)

// takenFile names the disk that has this capsule's identity, or may have it. It lives
// as long as the identity does, also when the daemon is started again.
const takenFile = "/run/capsule/installed.json"

// taken is that disk, nil when there's none.
func (i *Installer) taken() (*disk.Device, error) {
	text, err := os.ReadFile(i.takenFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	d := &disk.Device{}
	if err == nil {
		err = json.Unmarshal(text, d)
	}
	if err != nil {
		return nil, fmt.Errorf("which disk has this capsule's identity: %w", err)
	}
	return d, nil
}

func (i *Installer) take(d disk.Device) error {
	text, err := json.Marshal(d)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(i.takenFile), 0o755); err != nil {
		return err
	}
	return os.WriteFile(i.takenFile, append(text, '\n'), 0o644)
}

// once refuses a second disk, and tells who has lost the answer that it was done.
func (i *Installer) once(p Plan, choice Choice, planned error) (Plan, error) {
	d, err := i.taken()
	if err != nil {
		return Plan{}, err
	}
	if d == nil || planned != nil && d.Is(choice.Disk) || planned == nil && equal(*d, p.Disk.Device) {
		return p, planned
	}
	return Plan{}, fmt.Errorf("disk %q has got this capsule's identity already: pull the stick, and start the machine from that disk; to install another capsule, restart from the stick: %w",
		d.ID(), errdefs.ErrFailedPrecondition)
}

// equal compares disks but for their names of this boot.
func equal(a, b disk.Device) bool {
	a.Name, b.Name = "", ""
	return a == b
}

// finish notes which disk gets the identity before it can have it, and forgets that
// only when it's sure to boot nothing.
func (i *Installer) finish(w *writer, d disk.Device) error {
	if err := i.take(d); err != nil {
		return fmt.Errorf("note the disk: %w", err)
	}
	err := w.finish()
	if err != nil && !errors.Is(err, errMayBoot) {
		return errors.Join(err, os.Remove(i.takenFile))
	}
	return err
}
