// Package slot knows the two system slots: which one runs, how its content is
// verified, and how the boot loader counts tries of its entry. It never sets the
// loader's default entry: that would boot an exhausted slot for ever.
package slot

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"capsule/internal/disk"
)

// Order is the sequence in which slots are tried: the one that the loader says it
// started, then the one that the kernel command line names, then the rest.
func Order(entry, hint string) []string {
	var out []string
	add := func(name string) {
		for _, have := range out {
			if have == name {
				return
			}
		}
		out = append(out, name)
	}
	for _, name := range []string{ofEntry(entry), hint, disk.SlotA, disk.SlotB} {
		if name == disk.SlotA || name == disk.SlotB {
			add(name)
		}
	}
	return out
}

// ofEntry is the slot in the id of a boot entry, as "capsule-slot_a.conf".
func ofEntry(id string) string {
	name := strings.TrimPrefix(strings.ToLower(id), "capsule-")
	name, _, _ = strings.Cut(name, ".")
	name, _, _ = strings.Cut(name, "+")
	return name
}

// counter is the loader's count of tries left and done at the end of a name
// (systemd.io/AUTOMATIC_BOOT_ASSESSMENT).
var counter = regexp.MustCompile(`\+\d+(-\d+)?(\.[A-Za-z]+)$`)

// blessedName is an entry's file name without its counter; the same name when it
// has none.
func blessedName(name string) string { return counter.ReplaceAllString(name, "$2") }

// EntryName is the file name of a slot's entry that has this many tries.
func EntryName(slot string, tries int) string {
	return fmt.Sprintf("capsule-%s+%d-0.conf", slot, tries)
}

// countPath turns the loader's "\loader\entries\x+2-1.conf" into a path below the
// ESP. What leads out of the ESP is refused.
func countPath(text string) (string, error) {
	file := strings.TrimPrefix(strings.ReplaceAll(text, `\`, "/"), "/")
	if !filepath.IsLocal(file) {
		return "", fmt.Errorf("loader's boot count path %q: %w", text, errdefs.ErrInvalidArgument)
	}
	return file, nil
}

// Bless marks the running entry as good: the loader stops counting it. An entry
// that isn't counted needs nothing.
func Bless(b disk.Boot) error {
	text, err := disk.LoaderVar(disk.EFIVars, "LoaderBootCountPath")
	if errdefs.IsNotFound(err) || text == "" {
		return nil
	}
	if err != nil {
		return err
	}
	file, err := countPath(text)
	if err != nil {
		return err
	}
	if err := b.WithESP(disk.Writable, func(root string) error { return bless(filepath.Join(root, file)) }); err != nil {
		return fmt.Errorf("bless boot entry %q: %w", file, err)
	}
	return nil
}

// bless copies the entry to its name without counter and then removes the counted
// one. FAT has no atomic rename: a cut between its two writes would leave two
// names on one chain of clusters. With a copy the worst is both entries side by
// side, or an empty one that the loader ignores.
func bless(file string) error {
	target := filepath.Join(filepath.Dir(file), blessedName(filepath.Base(file)))
	if target == file {
		return nil
	}
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) { // blessed before, in this boot
		return nil
	}
	if err != nil {
		return err
	}
	if have, err := os.ReadFile(target); err != nil || !bytes.Equal(have, text) {
		if err := writeDurable(target, text); err != nil {
			return err
		}
	}
	return os.Remove(file)
}

func writeDurable(file string, text []byte) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = unix.Syncfs(int(f.Fd()))
	}
	return errors.Join(err, f.Close())
}
