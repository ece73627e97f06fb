package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/durable"
	"capsule/internal/store"
	"capsule/internal/volume"
)

// Names below /perm.
const (
	draftDir = "restore.new"
	readyDir = "restore.ready"
	markFile = "restored.json"
)

// Restored says which backup a capsule came from.
type Restored struct {
	ID        []byte    `json:"id"`
	CreatedAt time.Time `json:"createdAt"` // of the backup
	At        time.Time `json:"at"`        // by a clock that nobody may have set yet
	// Cleaned: nothing of it is left on the ESP.
	Cleaned bool `json:"cleaned,omitempty"`
}

// ReadRestored gives what it is in the folder of the state; nil when it is no restored
// capsule.
func ReadRestored(perm string) (*Restored, error) {
	text, err := os.ReadFile(filepath.Join(perm, markFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	r := &Restored{}
	if err == nil {
		err = json.Unmarshal(text, r)
	}
	if err != nil {
		return nil, fmt.Errorf("read which backup the capsule was restored from: %w", err)
	}
	return r, nil
}

// Pending tells whether Take may have something to do: without, the ESP is left alone.
func Pending(perm string) bool {
	if _, err := os.Lstat(filepath.Join(perm, readyDir)); err == nil {
		return true
	}
	if _, err := os.Lstat(filepath.Join(perm, storeFile)); err != nil {
		return true
	}
	r, err := ReadRestored(perm)
	return err == nil && r != nil && !r.Cleaned
}

// Take makes the capsule in the folder perm, which is new, the one of the backup in
// file, if there is such a file, and removes it. It's called before anything else reads
// perm. An error means that the capsule must not start as a new one.
func Take(perm, file string, follows func(version string) bool) error {
	if err := take(perm, file, follows); err != nil {
		return fmt.Errorf("restore the capsule from its backup: %w", err)
	}
	return nil
}

func take(perm, file string, follows func(version string) bool) error {
	ready := filepath.Join(perm, readyDir)
	if _, err := os.Lstat(ready); errors.Is(err, fs.ErrNotExist) {
		if more, err := prepare(perm, file, follows); err != nil || !more {
			return err
		}
	}
	if err := settle(perm); err != nil {
		return err
	}
	return clean(perm, file)
}

// prepare makes the folder that only has to be moved; more tells whether there is one.
func prepare(perm, file string, follows func(version string) bool) (more bool, err error) {
	if _, err := os.Lstat(filepath.Join(perm, storeFile)); err == nil { // a capsule's already
		return false, clean(perm, file)
	}
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	draft := filepath.Join(perm, draftDir)
	if err := os.RemoveAll(draft); err != nil {
		return false, err
	}
	h, err := Unpack(f, draft, follows)
	if err != nil {
		return false, err
	}
	if err := adapt(filepath.Join(draft, storeFile), h); err != nil {
		return false, err
	}
	mark, err := json.Marshal(Restored{ID: h.GetId(), CreatedAt: h.GetCreatedAt().AsTime(), At: time.Now().UTC()})
	if err != nil {
		return false, err
	}
	if err := durable.Create(filepath.Join(draft, markFile), mark, 0o600); err != nil {
		return false, err
	}
	for _, dir := range []string{filepath.Join(draft, identityDir), draft} {
		if err := durable.Sync(dir); err != nil {
			return false, err
		}
	}
	return true, durable.Rename(draft, filepath.Join(perm, readyDir))
}

// adapt takes from a store what was of the other machine's disk.
func adapt(path string, h *v1.BackupHeader) error {
	st, err := store.Open(path)
	if err != nil {
		return err
	}
	var names []string
	for _, v := range h.GetVolumes() {
		names = append(names, v.GetName())
	}
	err = volume.Await(st, names)
	if err == nil {
		err = st.Bucket("updates").Clear() // of the other disk's slots
	}
	return errors.Join(err, st.Close())
}

// settle moves what is ready to its place, the store last. What was moved before a cut
// isn't there any more.
func settle(perm string) error {
	ready := filepath.Join(perm, readyDir)
	for _, name := range []string{identityDir, keysFile, markFile, storeFile} {
		from, to := filepath.Join(ready, name), filepath.Join(perm, name)
		if _, err := os.Lstat(from); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if name == identityDir {
			if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) { // made empty at the boot
				return err
			}
		}
		if err := durable.Rename(from, to); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(ready); err != nil {
		return err
	}
	return durable.Sync(perm)
}

// clean removes the file, which holds keys, from the ESP, and notes that. A file that
// can't be removed keeps no capsule from starting: the next boot tries again.
func clean(perm, file string) error {
	r, err := ReadRestored(perm)
	if err != nil || r == nil || r.Cleaned {
		return err
	}
	err = os.Remove(file)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	} else if err == nil {
		err = durable.Sync(filepath.Dir(file))
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLeft, err)
	}
	r.Cleaned = true
	mark, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(perm, markFile), mark, 0o600)
}

// ErrLeft says that the capsule is restored, and the file with its keys could not be removed.
var ErrLeft = errors.New("a file with the capsule's keys is left on the boot partition, and is removed at a later boot")
