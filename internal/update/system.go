package update

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"

	"capsule/internal/slot"
)

// A system is what a slot's boot entry starts.
type system struct {
	entry slot.Entry
	root  slot.Root
}

// system of a slot: its entry, whose kernel image names a root that the slot has.
// Only the tree's top is read; whole reads all. NotFound when there is none.
func (m *Manager) system(esp, name string) (*system, error) {
	entry, err := entryOf(esp, name)
	if err != nil {
		return nil, err
	}
	if entry == nil {
		return nil, fmt.Errorf("it has no boot entry: %w", errdefs.ErrNotFound)
	}
	if entry.Exhausted() {
		return nil, fmt.Errorf("version %s did not come up there: %w", entry.Version, errdefs.ErrFailedPrecondition)
	}
	s := &system{entry: *entry}
	if s.root, err = slot.RootOf(esp, s.entry); err != nil {
		return nil, fmt.Errorf("version %s: %w", entry.Version, err)
	}
	f, err := m.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := slot.ReadVerity(f, s.root.DataBytes, s.root.Hash); err != nil {
		return nil, fmt.Errorf("root of version %s: %w", entry.Version, err)
	}
	return s, nil
}

// former is the system that the running one can give way to. One that was installed
// and never started is no former one, unless the running one is on trial, too.
// onTrial must be known before: the ESP is opened by one at a time.
func (m *Manager) former(esp string, onTrial bool) (*system, error) {
	s, err := m.system(esp, m.other())
	if err == nil && !onTrial && s.entry.Counted && !s.entry.Again {
		return nil, fmt.Errorf("version %s was never confirmed there: restart the capsule to start it: %w", s.entry.Version, errdefs.ErrFailedPrecondition)
	}
	return s, err
}

// open a slot for reading.
func (m *Manager) open(name string) (*os.File, error) {
	device, err := m.boot.Device(name)
	if err != nil {
		return nil, err
	}
	return os.Open(device)
}

// entryOf is the entry of a slot; nil when it has none.
func entryOf(esp, name string) (*slot.Entry, error) {
	entries, err := slot.Entries(esp)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Slot == name {
			return &e, nil
		}
	}
	return nil, nil
}

var errDamaged = errors.New("damaged block")

// whole reads every block of a system: the loader would start a damaged one over
// and over, since nobody counts its tries any more.
func (m *Manager) whole(ctx context.Context, s *system) error {
	f, err := m.open(s.entry.Slot)
	if err != nil {
		return err
	}
	defer f.Close()
	t, err := slot.OpenTree(f, s.root.DataBytes, s.root.Hash)
	if err != nil {
		return fmt.Errorf("version %s: %w", s.entry.Version, err)
	}
	bad := int64(-1)
	err = scan(ctx, t, f, func(block int64, ok bool) error {
		if !ok {
			bad = block
			return errDamaged
		}
		return nil
	})
	if errors.Is(err, errDamaged) {
		return fmt.Errorf("version %s is damaged at block %d: %w", s.entry.Version, bad, errdefs.ErrDataLoss)
	}
	return err
}
