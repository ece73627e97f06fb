package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/bundle"
	"capsule/internal/disk"
	"capsule/internal/slot"
	"capsule/internal/update"
)

// What the version is that is brought after every cut.
const (
	nextVersion = "v9999.0.0"
	nextBytes   = 128 << 10 // of its kernel image, which nothing starts
)

// firmwareDir is where the loader tells what it did; there is no firmware here.
const firmwareDir = "/sys/firmware"

func mountFirmware() error {
	return errors.Join(unix.Mount("tmpfs", firmwareDir, "tmpfs", 0, ""), os.MkdirAll(disk.EFIVars, 0o755))
}

// start counts a try as the loader does, and says which entry it took.
func (b *boot) start(context.Context) error {
	first := b.systems[0]
	b.booted.Slot = first.slot
	file := filepath.Join(disk.EFIVars, "LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")
	if err := os.RemoveAll(file); err != nil || first.entry.left == unlimited {
		return err
	}
	dir := "loader/entries"
	counted := tries.ReplaceAllString(first.entry.file, fmt.Sprintf("+%d-%d.conf", first.entry.left-1, first.entry.done+1))
	err := b.booted.WithESP(disk.Writable, func(esp string) error {
		return os.Rename(filepath.Join(esp, dir, first.entry.file), filepath.Join(esp, dir, counted))
	})
	if err != nil {
		return err
	}
	told := strings.ReplaceAll("/"+path.Join(dir, counted), "/", `\`) + "\x00"
	text := binary.LittleEndian.AppendUint32(nil, 6) // its attributes
	for _, unit := range utf16.Encode([]rune(told)) {
		text = binary.LittleEndian.AppendUint16(text, unit)
	}
	return os.WriteFile(file, text, 0o600)
}

// nextUpdate goes on as the daemon does: it writes down what became of updates,
// tidies the ESP, keeps a system that is on trial, and takes the next update.
func (b *boot) nextUpdate(ctx context.Context) error {
	key, err := bundle.Generate()
	if err != nil {
		return err
	}
	m, err := b.manager(key.Public())
	if err != nil {
		return err
	}
	ended, cancel := context.WithCancel(ctx)
	cancel() // Run only looks once at a system on trial
	if err := m.Run(ended); err != nil {
		return err
	}
	if err := b.checkHistory(ctx, m); err != nil {
		return err
	}
	offer, err := b.nextOffer(key)
	if err != nil {
		return err
	}
	if m.Tentative() != nil {
		if _, err := m.Push(ctx, offer, noBundle, nil); !errdefs.IsFailedPrecondition(err) {
			return fmt.Errorf("an update while one is on trial: %w", err)
		}
		if _, err := m.Confirm(ctx); err != nil {
			return err
		}
	}
	if _, err := m.Push(ctx, offer, noBundle, nil); !errors.Is(err, errNoBundle) {
		return fmt.Errorf("the next update is refused: %w", err)
	}
	return b.replaceOther()
}

func (b *boot) manager(key bundle.PublicKey) (*update.Manager, error) {
	first := b.systems[0]
	return update.New(update.Options{
		Bucket: b.store.Bucket("updates"), Machine: machine{b.booted}, Keys: []bundle.PublicKey{key},
		Version: first.Version, BuiltUnix: 1, Architecture: "amd64",
		Event:  func(string, string) {},
		Uptime: func() time.Duration { return 0 },
		Root:   func() (slot.Root, error) { return first.root, nil },
	})
}

// machine is a capsule that is all right.
type machine struct{ boot disk.Boot }

func (m machine) Boot() disk.Boot   { return m.boot }
func (machine) Normal() bool        { return true }
func (machine) Addressed() bool     { return true }
func (machine) Reboot(string) error { return errors.New("no restart is asked for") }
func (machine) Tell(string) error   { return nil }
func (machine) Unready() []string   { return nil }

// checkHistory wants an outcome of all updates but of the one that is on trial.
func (b *boot) checkHistory(ctx context.Context, m *update.Manager) error {
	s, err := m.Status(ctx)
	if err != nil {
		return err
	}
	trial := s.GetTentative() != nil
	for i, r := range s.GetHistory() {
		open := r.GetOutcome() == v1.UpdateOutcome_UPDATE_OUTCOME_INSTALLED || r.GetOutcome() == v1.UpdateOutcome_UPDATE_OUTCOME_TENTATIVE
		if open != (trial && i == 0) {
			return fmt.Errorf("version %s in %s runs, on trial: %v, and record %d of the history is %v", s.GetVersion(), s.GetSlot(), trial, i, r)
		}
	}
	if trial && len(s.GetHistory()) == 0 {
		return errors.New("a system on trial has no record")
	}
	return nil
}

var errNoBundle = errors.New("there is no bundle")

// noBundle is asked when nothing stands against an update.
func noBundle(context.Context, []update.Range, func(int64, []byte) error) error { return errNoBundle }

// nextOffer is of an update that is as large as the system that runs.
func (b *boot) nextOffer(key *bundle.PrivateKey) (update.Offer, error) {
	root := b.systems[0].root
	h, err := bundle.NewHeader(bundle.Manifest{
		Product: bundle.Product, Version: nextVersion, Architecture: "amd64", BuiltUnix: 2,
		UKI: bundle.Part{Size: nextBytes, SHA256: b.systems[0].UKI},
		Root: bundle.Root{
			Size: root.DataBytes + slot.TreeBytes(root.DataBytes), DataBytes: root.DataBytes, VerityHash: root.Hash,
		},
	}, key)
	if err != nil {
		return update.Offer{}, err
	}
	return update.Offer{Header: h.Bytes(), Size: h.Size, AllowDowngrade: true}, nil
}

// replaceOther changes the ESP as an update does; the loader must start it then, and
// keep the system that runs.
func (b *boot) replaceOther() error {
	other := slot.Other(b.booted.Slot)
	kernel := bytes.Repeat([]byte("next"), nextBytes/4)
	var written string
	for _, step := range []struct {
		access disk.Access
		do     func(esp string) error
	}{
		{disk.Writable, func(esp string) error { return slot.Forget(esp, other) }},
		{disk.Buffered, func(esp string) (err error) {
			written, err = slot.Install(esp, other, nextVersion, bytes.NewReader(kernel), nextBytes)
			return err
		}},
		{disk.Writable, func(esp string) error { return slot.Activate(esp, other, nextVersion, written) }},
		{disk.ReadOnly, func(esp string) error { return b.replaced(esp, written) }},
	} {
		if err := b.booted.WithESP(step.access, step.do); err != nil {
			return err
		}
	}
	return nil
}

func (b *boot) replaced(esp, written string) error {
	entries, err := menu(esp)
	if err != nil {
		return err
	}
	if len(entries) != 2 || entries[0].kernel != written || entries[0].left == unlimited || entries[1].left != unlimited {
		return fmt.Errorf("the menu after the next update: %+v", entries)
	}
	s, err := b.readSystem(esp, entries[1])
	if err == nil && s.Version != b.systems[0].Version {
		err = fmt.Errorf("version %s is kept, want %s", s.Version, b.systems[0].Version)
	}
	return err
}
