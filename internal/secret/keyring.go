package secret

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"capsule/internal/durable"
)

// unsealAgain is between two tries to open a key that the TPM did not open: each takes
// a slow TPM most of a second.
const unsealAgain = 2 * time.Second

// keyring is the file of the machine's keys, read once.
type keyring struct {
	path string
	tpm  TPM

	mu      sync.Mutex
	read    bool
	entries []entry // the current one first
	opened  map[string]*machineKey
	failed  map[string]failure
}

// entry is a key in the file: Plain, or only the TPM can open it.
type entry struct {
	ID    string `json:"id"`
	Plain []byte `json:"plain,omitempty"`
	TPM   *blob  `json:"tpm,omitempty"`
	// Why a TPM could not be used.
	Why string `json:"why,omitempty"`
}

type failure struct {
	err error
	at  time.Time
}

var (
	errDamaged = errors.New("the machine's keys are damaged")
	errNoKey   = errors.New("the key that sealed it is lost; declare it again")
)

// load reads the file; the lock is held.
func (k *keyring) load() error {
	if k.read {
		return nil
	}
	text, err := os.ReadFile(k.path)
	if errors.Is(err, fs.ErrNotExist) {
		text, err = []byte("[]"), nil
	}
	if err != nil {
		return fmt.Errorf("read the machine's keys: %w", err)
	}
	var entries []entry
	if err := json.Unmarshal(text, &entries); err != nil {
		return fmt.Errorf("%w: %s: %w", errDamaged, k.path, err)
	}
	k.entries, k.read = entries, true
	k.opened, k.failed = map[string]*machineKey{}, map[string]failure{}
	return nil
}

// save replaces the file; the lock is held.
func (k *keyring) save(entries []entry) error {
	text, err := json.Marshal(entries)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(k.path, text, 0o600); err != nil {
		return fmt.Errorf("keep the machine's keys: %w", err)
	}
	k.entries = entries
	return nil
}

// opener gives the key of an id.
func (k *keyring) opener(id string) (*machineKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.load(); err != nil {
		return nil, err
	}
	i := slices.IndexFunc(k.entries, func(e entry) bool { return e.ID == id })
	if i < 0 {
		return nil, errNoKey
	}
	return k.open(k.entries[i])
}

// open opens an entry, once; the lock is held.
func (k *keyring) open(e entry) (*machineKey, error) {
	if key := k.opened[e.ID]; key != nil {
		return key, nil
	}
	if f, failed := k.failed[e.ID]; failed && time.Since(f.at) < unsealAgain {
		return nil, f.err
	}
	plain, err := e.Plain, error(nil)
	if e.TPM != nil {
		plain, err = unseal(k.tpm, *e.TPM)
	}
	var key *machineKey
	if err == nil {
		key, err = newMachineKey(e.ID, plain)
	}
	if isLost(err) {
		err = fmt.Errorf("its key is bound to a TPM, and %w; declare it again", err)
	}
	if err != nil {
		k.failed[e.ID] = failure{err, time.Now()}
		return nil, err
	}
	k.opened[e.ID] = key
	return key, nil
}

// isLost tells that a key won't come back as long as the machine is as it is.
func isLost(err error) bool { return errors.Is(err, errForeign) || errors.Is(err, errNoTPM) }

// current gives the key to seal with. Where there is none, or it is lost, a new one is
// made, or nil given when that is not wanted.
func (k *keyring) current(create bool) (*machineKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := k.load()
	if errors.Is(err, errDamaged) && create {
		slog.Error("secrets: start with new keys", "error", err)
		if err := durable.Rename(k.path, k.path+".damaged"); err != nil {
			return nil, err
		}
		err = k.load()
	}
	if err != nil {
		return nil, err
	}
	if len(k.entries) > 0 {
		key, err := k.open(k.entries[0])
		if !isLost(err) {
			return key, err
		}
	}
	if !create {
		return nil, nil
	}
	return k.add(newEntry(k.tpm))
}

// add makes a new key the current one; the lock is held.
func (k *keyring) add(e entry, plain []byte) (*machineKey, error) {
	key, err := newMachineKey(e.ID, plain)
	if err != nil {
		return nil, err
	}
	if err := k.save(append([]entry{e}, k.entries...)); err != nil {
		return nil, err
	}
	k.opened[e.ID] = key
	return key, nil
}

// newEntry makes a key, sealed to the TPM where that is possible.
func newEntry(tpm TPM) (e entry, plain []byte) {
	random := make([]byte, keyBytes+8)
	rand.Read(random) // never fails: crypto/rand ends the program instead
	plain, e.ID = random[:keyBytes], hex.EncodeToString(random[keyBytes:])
	sealed, err := sealTo(tpm, plain)
	if err != nil {
		e.Plain, e.Why = plain, err.Error()
		return e, plain
	}
	e.TPM = &sealed
	return e, plain
}

// rebind adds a key that is sealed to the TPM where the current one is not and could
// be, and tells whether it did.
func (k *keyring) rebind() (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.load(); err != nil || len(k.entries) == 0 || k.entries[0].TPM != nil {
		return false, err
	}
	e, plain := newEntry(k.tpm)
	if e.TPM == nil {
		return false, nil
	}
	_, err := k.add(e, plain)
	return err == nil, err
}

// keep drops all keys but the current one and those named, once ready has succeeded,
// which is not asked when there is none to drop.
func (k *keyring) keep(ids map[string]bool, ready func() error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.load(); err != nil || len(k.entries) == 0 {
		return err
	}
	left := []entry{k.entries[0]}
	for _, e := range k.entries[1:] {
		if ids[e.ID] {
			left = append(left, e)
		}
	}
	if len(left) == len(k.entries) {
		return nil
	}
	if err := ready(); err != nil {
		return err
	}
	return k.save(left)
}

// state is the sentence of Book.State.
func (k *keyring) state() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.load(); err != nil {
		return err.Error()
	}
	if len(k.entries) == 0 {
		return "no secret was declared yet"
	}
	e := k.entries[0]
	if e.TPM == nil {
		return "key on the disk: " + e.Why
	}
	if _, err := k.open(e); err != nil {
		return "key bound to a TPM, and can't be opened: " + err.Error()
	}
	return "key sealed to the TPM"
}

// plain gives the file with all keys that can be opened as they are: bound to no
// machine. Those that are lost, with what was sealed by them, are left out.
func (k *keyring) plain() ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.load(); err != nil {
		return nil, err
	}
	entries := []entry{}
	for _, e := range k.entries {
		key, err := k.open(e)
		if isLost(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry{ID: e.ID, Plain: key.plain, Why: "it came from a backup"})
	}
	return json.Marshal(entries)
}
