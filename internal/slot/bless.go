package slot

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"capsule/internal/disk"
)

// countedEntry is the file of the entry that runs, below the ESP, as it was named
// when it was started; "" when it isn't counted.
func countedEntry() (string, error) {
	text, err := disk.LoaderVar(disk.EFIVars, "LoaderBootCountPath")
	if errdefs.IsNotFound(err) || err == nil && text == "" {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return countPath(text)
}

// Counted says whether the loader counts the running entry and would go back after
// another restart or a few: its tries are not used up over and over, as those of an
// entry are that is the only one. It takes no look at the ESP.
func Counted() (bool, error) {
	e, err := runningName()
	return e.Counted && e.Done <= triesMax, err
}

// Again says whether the running entry was good before, and is counted since it was
// gone back to.
func Again() (bool, error) {
	e, err := runningName()
	return e.Again, err
}

// runningName is what the name of the running entry says; nothing when it isn't counted.
func runningName() (Entry, error) {
	file, err := countedEntry()
	e, _ := parseName(path.Base(file))
	return e, err
}

// Tentative says whether the running system is on trial: its entry is counted and
// the other slot has a system to go back to.
func Tentative(b disk.Boot) (on bool, err error) {
	file, err := countedEntry()
	if err != nil || file == "" {
		return false, err
	}
	err = b.WithESP(disk.ReadOnly, func(root string) error {
		on, err = esp{dir: root}.tentative(file)
		return err
	})
	return on, err
}

// ErrConfirmed says that a system isn't tentative any more.
var ErrConfirmed = fmt.Errorf("the system is confirmed: %w", errdefs.ErrFailedPrecondition)

// GiveUp removes the running system's entries, so that the other slot boots, unless
// it was confirmed meanwhile: that is ErrConfirmed. One look and the change are one
// step, between which nobody can confirm it.
func GiveUp(b disk.Boot) error {
	file, err := countedEntry()
	if err != nil {
		return err
	}
	if file == "" {
		return ErrConfirmed
	}
	return b.WithESP(disk.Writable, func(root string) error { return esp{dir: root}.giveUp(file) })
}

func (e esp) giveUp(counted string) error {
	on, err := e.tentative(counted)
	if err != nil {
		return err
	}
	if gave, err := e.giveUpArguments(counted); gave || err != nil {
		return err
	}
	if slot := ofEntry(counted); on || e.blessed(slot) != nil {
		return e.condemn(slot) // or it was given up before
	}
	return ErrConfirmed
}

// giveUpArguments takes away the running entry when the same system has a good one
// without its arguments, which boots then, and tells whether it did.
func (e esp) giveUpArguments(counted string) (bool, error) {
	files, err := e.list()
	if err != nil {
		return false, err
	}
	_, trials := tried(files, ofEntry(counted))
	for _, f := range trials {
		if strings.EqualFold(f.File, path.Base(counted)) {
			return true, e.keepFailed(f)
		}
	}
	return false, nil
}

func (e esp) tentative(counted string) (bool, error) {
	files, err := e.list()
	if err != nil {
		return false, err
	}
	other := best(files, Other(ofEntry(counted)))
	return unblessed(files, path.Base(counted)) && other != nil && !other.Exhausted(), nil
}

// unblessed says whether a counted file is there alone. The same entry without
// counter beside it is a blessing that was cut: it holds.
func unblessed(files []entryFile, name string) bool {
	at := slices.IndexFunc(files, func(f entryFile) bool { return strings.EqualFold(f.File, name) })
	if at < 0 {
		return false
	}
	return !slices.ContainsFunc(files, func(f entryFile) bool {
		return f.Slot == files[at].Slot && f.fault == "" && !f.Counted && f.Generation == files[at].Generation
	})
}

// Bless marks the running entry as good: the loader stops counting it. An entry
// that isn't counted needs nothing. FailedPrecondition says that the entry is gone:
// this system was given up.
func Bless(b disk.Boot) error {
	file, err := countedEntry()
	if err != nil || file == "" {
		return err
	}
	if err := b.WithESP(disk.Writable, func(root string) error { return esp{dir: root}.bless(file) }); err != nil {
		return fmt.Errorf("bless boot entry %q: %w", file, err)
	}
	return nil
}

// bless copies the entry to its name without counter and then removes the counted
// one: with a copy the worst is both entries side by side, or an empty one that the
// loader ignores.
func (e esp) bless(counted string) error {
	slot := ofEntry(counted)
	if err := checkSlot(slot); err != nil {
		return err
	}
	file, ok := e.find(counted)
	if !ok {
		return e.blessed(slot)
	}
	text, err := e.read(file)
	if err != nil {
		return err
	}
	entry, _ := parseName(path.Base(file))
	if err := entry.parseText(text); err != nil {
		return err
	}
	target := path.Join(path.Dir(file), blessedName(path.Base(file)))
	if target == file {
		return nil
	}
	if have, err := e.read(target); err != nil || !bytes.Equal(have, text) {
		err := e.write(target, text)
		if errors.Is(err, unix.ENOSPC) { // a rename needs no space: a risk, but a full ESP must not cost the system its blessing
			err = e.rename(file, target)
		}
		if err != nil {
			return err
		}
	}
	return e.only(slot, path.Base(target))
}

// blessed makes sure that a slot was blessed before, in this boot.
func (e esp) blessed(slot string) error {
	files, err := e.list()
	if err != nil {
		return err
	}
	if f := best(files, slot); f == nil || f.Counted {
		return fmt.Errorf("the entry is gone, this system was given up: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

func (e esp) rename(from, to string) error {
	if err := e.before("rename", from); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(e.dir, from), filepath.Join(e.dir, to)); err != nil {
		return err
	}
	return e.sync()
}

// only removes a slot's files but the one of this name, which FAT may know in
// another case of letters.
func (e esp) only(slot, name string) error {
	files, err := e.list()
	if err != nil {
		return err
	}
	for _, f := range files {
		if f.Slot == slot && !strings.EqualFold(f.File, name) {
			if err := e.remove(f.path()); err != nil {
				return err
			}
		}
	}
	return nil
}
