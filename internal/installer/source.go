package installer

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"capsule/internal/disk"
	"capsule/internal/fat"
	"capsule/internal/slot"
)

const (
	loaderFile = "EFI/BOOT/BOOTX64.EFI"
	confFile   = "loader/loader.conf"
	fileMax    = 512 << 20 // bytes of one file of the ESP
)

// A Personality is who the new capsule is.
type Personality struct {
	Seed      []byte // its authority, with its operators; nil when Restore has it
	MachineID string
	// Restore is a file with the state of the capsule that it's to be; "" for a new one.
	Restore string
	// Reclaim is the file of the ESP that lets one more admin in; "" for none.
	Reclaim string
}

// espFiles are those of a new capsule: loader, kernel and entry as on the stick that
// is mounted at dir, and who it is. The caller closes what was opened.
func espFiles(dir, running string, root slot.Root, p Personality) (files []fat.File, closeAll func(), err error) {
	var open []*os.File
	closeAll = func() {
		for _, f := range open {
			_ = f.Close() // only read
		}
	}
	defer func() {
		if err != nil {
			closeAll()
		}
	}()
	entry, err := runningEntry(dir, running, root)
	if err != nil {
		return nil, nil, err
	}
	add := func(name string, f *os.File) error {
		open = append(open, f)
		info, err := f.Stat()
		if err == nil && info.Size() > fileMax {
			err = fmt.Errorf("%q has %d bytes: %w", name, info.Size(), errdefs.ErrFailedPrecondition)
		}
		if err == nil {
			files = append(files, fat.File{Path: name, Content: f, Bytes: info.Size()})
		}
		return err
	}
	uki, err := slot.OpenUKI(dir, entry)
	if err != nil {
		return nil, nil, err
	}
	kernel := slot.KernelFile(entry.Version)
	if err := add(kernel, uki); err != nil {
		return nil, nil, err
	}
	for _, name := range []string{loaderFile, confFile} {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return nil, nil, err
		}
		if err := add(name, f); err != nil {
			return nil, nil, err
		}
	}
	name, text, err := slot.FirstEntry(disk.SlotA, entry.Version, kernel)
	if err != nil {
		return nil, nil, err
	}
	if p.Restore != "" {
		f, err := os.Open(p.Restore)
		if err != nil {
			return nil, nil, err
		}
		if err := add(disk.RestoreFile, f); err != nil {
			return nil, nil, err
		}
	} else {
		files = append(files, fat.Text(disk.SeedFile, p.Seed))
	}
	if p.Reclaim != "" {
		files = append(files, fat.Text(p.Reclaim, []byte("One more admin may be let in.\n")))
	}
	return append(files,
		fat.Text(name, text),
		fat.Text(disk.MachineIDFile, []byte(strings.TrimSpace(p.MachineID)+"\n")),
		fat.Text(disk.StayFile, []byte("A capsule lives on this disk.\n")),
	), closeAll, nil
}

// runningEntry is the entry of the system that runs.
func runningEntry(dir, running string, root slot.Root) (slot.Entry, error) {
	entries, err := slot.Entries(dir)
	if err != nil {
		return slot.Entry{}, err
	}
	for _, e := range entries {
		if e.Slot != running {
			continue
		}
		if found, err := slot.RootOf(dir, e); err != nil || found != root {
			return slot.Entry{}, fmt.Errorf("boot entry %q of the stick is not that of the running system: %w", path.Base(e.File), errdefs.ErrFailedPrecondition)
		}
		return e, nil
	}
	return slot.Entry{}, fmt.Errorf("boot entry of %s on the stick: %w", running, errdefs.ErrNotFound)
}
