package slot

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// UKIMax is the largest kernel image in bytes: an eighth of the ESP.
	UKIMax = 128 << 20
	// spare is what a UKI leaves free on the ESP: entries and folders need a few
	// clusters of at most 32 KiB each.
	spare    = 256 << 10
	namesMax = 100 // UKIs of one version
)

func good(e Entry) bool { return !e.Counted }

func bootable(e Entry) bool { return !e.Exhausted() }

// Frees is how many bytes Forget of this slot would give back.
func Frees(dir, slot string) (int64, error) {
	e := esp{dir: dir}
	files, err := e.list()
	if err != nil {
		return 0, err
	}
	var gone []string
	for _, f := range files {
		if f.Slot == slot {
			gone = append(gone, f.File)
		}
	}
	kernels, err := e.unnamed(gone...)
	if err != nil {
		return 0, err
	}
	sum := int64(0)
	for _, file := range kernels {
		info, err := os.Stat(filepath.Join(dir, file))
		if err != nil {
			return 0, err
		}
		sum += info.Size()
	}
	return sum, nil
}

// Forget removes the slot's entries and then the UKIs that no entry names any more,
// so that the slot can be written. The other slot must have a good entry
// (FailedPrecondition): it's all that is left to boot.
func Forget(dir, slot string) error { return esp{dir: dir}.forget(slot) }

func (e esp) forget(slot string) error {
	if err := e.dismiss(slot, good); err != nil {
		return err
	}
	kernels, err := e.unnamed()
	if err != nil {
		return err
	}
	for _, file := range kernels {
		if err := e.remove(file); err != nil {
			return fmt.Errorf("remove UKI %q: %w", file, err)
		}
	}
	return nil
}

// givenUp lists the entries of a slot that the machine can do without.
func (e esp) givenUp(slot string, left func(Entry) bool) ([]entryFile, error) {
	if err := checkSlot(slot); err != nil {
		return nil, err
	}
	files, err := e.list()
	if err != nil {
		return nil, err
	}
	if err := keeps(files, Other(slot), left); err != nil {
		return nil, err
	}
	var own []entryFile
	for _, f := range files {
		if f.Slot == slot {
			own = append(own, f)
		}
	}
	return own, nil
}

// Condemn removes a slot's entries, so that the other slot boots. When that one has
// nothing to boot it's FailedPrecondition, and nothing is removed.
func Condemn(dir, slot string) error { return esp{dir: dir}.condemn(slot) }

func (e esp) condemn(slot string) error { return e.dismiss(slot, bootable) }

// dismiss removes a slot's entries if the other one has what's asked for.
func (e esp) dismiss(slot string, left func(Entry) bool) error {
	files, err := e.givenUp(slot, left)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := e.remove(f.path()); err != nil {
			return fmt.Errorf("remove boot entry %q: %w", f.File, err)
		}
	}
	return nil
}

// Install writes a UKI of size bytes under a name that no file has, reads it back,
// and returns its path for Activate. Nothing boots it yet, so a piece of it is only
// a leftover. What is too large for the ESP is ResourceExhausted; a failed one
// leaves no file. Use it on an ESP that's mounted disk.Buffered.
func Install(dir, slot, version string, uki io.Reader, size int64) (written string, err error) {
	return esp{dir: dir}.install(slot, version, uki, size)
}

func (e esp) install(slot, version string, uki io.Reader, size int64) (string, error) {
	if _, err := e.givenUp(slot, good); err != nil {
		return "", err
	}
	if size <= 0 || size > UKIMax || !versionForm.MatchString(version) {
		return "", fmt.Errorf("UKI of version %q with %d bytes: %w", version, size, errdefs.ErrInvalidArgument)
	}
	have, err := Space(e.dir)
	if err != nil {
		return "", err
	}
	if need := size + spare; have < need {
		return "", fmt.Errorf("the boot partition has %d bytes left, the UKI needs %d: %w", have, need, errdefs.ErrResourceExhausted)
	}
	file, err := e.newKernel(version)
	if err != nil {
		return "", err
	}
	if err := e.copy(file, uki, size); err != nil {
		_ = e.remove(file)
		return "", fmt.Errorf("write UKI %q: %w", file, err)
	}
	return "/" + file, nil
}

// newKernel is a UKI's name that no file has in any case of letters: an update to
// the version that runs doesn't touch the file that runs.
func (e esp) newKernel(version string) (string, error) {
	for i := 1; i <= namesMax; i++ {
		name := fmt.Sprintf("capsule-%s.efi", version)
		if i > 1 {
			name = fmt.Sprintf("capsule-%s-%d.efi", version, i)
		}
		if file := path.Join(kernelsDir, name); !e.has(file) {
			return file, nil
		}
	}
	return "", fmt.Errorf("%d UKIs of version %q: %w", namesMax, version, errdefs.ErrResourceExhausted)
}

func (e esp) has(file string) bool {
	_, ok := e.find(file)
	return ok
}

// copy writes a file of exactly this size and reads it back from the disk.
func (e esp) copy(file string, r io.Reader, size int64) (err error) {
	if err := e.before("create", file); err != nil {
		return err
	}
	target := filepath.Join(e.dir, file)
	if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := e.before("fill", file); err != nil {
		return err
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum), io.LimitReader(r, size+1))
	if err != nil {
		return err
	}
	if n != size {
		return fmt.Errorf("%d bytes or more came, want %d: %w", n, size, errdefs.ErrDataLoss)
	}
	if err := e.sync(); err != nil {
		return err
	}
	return readBack(f, sum)
}

// readBack compares a synced file with the hash of what was written. What the kernel
// still has in memory is dropped first: it's the disk that's asked.
func readBack(f *os.File, want hash.Hash) error {
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	got := sha256.New()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if _, err := io.Copy(got, f); err != nil {
		return err
	}
	if string(got.Sum(nil)) != string(want.Sum(nil)) {
		return fmt.Errorf("the disk gives back other content: %w", errdefs.ErrDataLoss)
	}
	return nil
}

// Activate gives the slot its entry, counted, of the next generation: the next
// boot is one of its tries. Entries that the slot has go first: they tell of content
// that isn't there any more. The other slot must have a good entry
// (FailedPrecondition), to which the loader goes back.
func Activate(dir, slot, version, uki string) error {
	return esp{dir: dir}.activate(Entry{Slot: slot, Version: version, UKI: uki})
}

func (e esp) activate(entry Entry) error {
	if !e.has(entry.UKI) {
		return fmt.Errorf("UKI %q: %w", entry.UKI, errdefs.ErrNotFound)
	}
	files, err := e.list()
	if err != nil {
		return err
	}
	entry.File, entry.Generation = EntryName(entry.Slot, triesMax), next(files)
	if runs := best(files, Other(entry.Slot)); runs != nil { // its arguments are the machine's
		if entry.Options, err = e.options(entry.UKI, addedTo(runs.Options)); err != nil {
			return err
		}
	}
	text, err := entry.text()
	if err != nil {
		return err
	}
	if err := e.dismiss(entry.Slot, good); err != nil {
		return err
	}
	return e.put(entry.File, text)
}

// Prefer makes a slot's good system the one that boots next, counted: when it doesn't
// come up any more, the loader goes back. FailedPrecondition says that it never was
// good or that its tries are used up, NotFound that there's none.
func Prefer(dir, slot string) error { return esp{dir: dir}.prefer(slot) }

func (e esp) prefer(slot string) error {
	if err := checkSlot(slot); err != nil {
		return err
	}
	files, err := e.list()
	if err != nil {
		return err
	}
	f := best(files, slot)
	switch {
	case f == nil:
		return fmt.Errorf("%s has no system to boot: %w", slot, errdefs.ErrNotFound)
	case f.Exhausted():
		return fmt.Errorf("%s didn't come up, its boot tries are used up: %w", slot, errdefs.ErrFailedPrecondition)
	case f.Counted && !f.Again:
		return fmt.Errorf("%s was never confirmed: %w", slot, errdefs.ErrFailedPrecondition)
	case f.Generation == next(files)-1:
		return nil
	}
	// Another name than that of the present entry, which is good until the new one is whole.
	entry := f.Entry
	entry.Generation = next(files)
	entry.File = preferredName(slot, entry.Generation)
	text, err := entry.text()
	if err != nil {
		return err
	}
	if err := e.put(entry.File, text); err != nil {
		return err
	}
	return e.only(slot, entry.File)
}

// Kept makes sure that a slot has a good entry, so that the other one may be written;
// FailedPrecondition says that it has none.
func Kept(dir, slot string) error {
	files, err := esp{dir: dir}.list()
	if err != nil {
		return err
	}
	return keeps(files, slot, good)
}

func (e esp) put(name string, text []byte) error {
	if err := e.write(path.Join(entriesDir, name), text); err != nil {
		return fmt.Errorf("write boot entry %q: %w", name, err)
	}
	return nil
}
