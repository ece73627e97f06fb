package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"capsule/internal/blocklog"
	"capsule/internal/disk"
	"capsule/internal/slot"
	"capsule/test/powercut/plan"
)

// A system is what one entry of the boot loader starts.
type system struct {
	entry menuEntry
	slot  string
	root  slot.Root
	plan.System
}

// checkSystems proves that all that the loader could start is whole: a kernel image
// of one version with that version's root in its slot. So no cut leaves a mix.
func (b *boot) checkSystems(ctx context.Context) error {
	if err := b.openSystems(); err != nil {
		return err
	}
	err := b.booted.WithESP(disk.ReadOnly, func(esp string) (err error) {
		if b.systems, err = b.readSystems(esp); err == nil {
			err = b.agrees(esp)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, s := range b.systems {
		if err := b.slotWhole(ctx, s.slot, s.root); err != nil {
			return fmt.Errorf("%s starts version %s, but %s: %w", s.entry.file, s.Version, s.slot, err)
		}
	}
	return nil
}

// openSystems gives ESP and slots devices, as the first stage does.
func (b *boot) openSystems() error {
	f, err := os.Open(b.disk.path)
	if err != nil {
		return err
	}
	defer f.Close()
	table, err := readTable(f)
	if err != nil {
		return err
	}
	for label, into := range map[string]*string{disk.ESP: &b.booted.ESP, disk.SlotA: &b.booted.SlotA, disk.SlotB: &b.booted.SlotB} {
		if *into, err = b.disk.partition(table, label); err != nil {
			return err
		}
	}
	return nil
}

// readSystems gives what the loader can start, the one that it starts first.
func (b *boot) readSystems(esp string) ([]system, error) {
	entries, err := menu(esp)
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		return nil, errors.New("the boot loader finds nothing to start")
	}
	var all []system
	for _, e := range entries {
		s, err := b.readSystem(esp, e)
		if err != nil {
			return nil, fmt.Errorf("entry %s starts %s: %w", e.file, e.kernel, err)
		}
		all = append(all, s)
	}
	return all, nil
}

var slotOf = regexp.MustCompile(`^capsule-(slot_[ab])[-+.]`)

func (b *boot) readSystem(esp string, e menuEntry) (s system, err error) {
	m := slotOf.FindStringSubmatch(strings.ToLower(e.file))
	if m == nil {
		return s, errors.New("it's of no slot")
	}
	sum, err := sumOf(filepath.Join(esp, e.kernel))
	if err != nil {
		return s, err
	}
	i := slices.IndexFunc(b.plan.Systems, func(k plan.System) bool { return k.UKI == sum })
	if i < 0 {
		return s, fmt.Errorf("SHA-256 %s is of no version", sum)
	}
	root, err := slot.RootOf(esp, slot.Entry{UKI: e.kernel})
	return system{e, m[1], root, b.plan.Systems[i]}, err
}

func sumOf(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	_, err = io.Copy(sum, f)
	return fmt.Sprintf("%x", sum.Sum(nil)), err
}

// agrees compares what our own code takes for the system that starts next.
func (b *boot) agrees(esp string) error {
	entries, err := slot.Entries(esp)
	if err != nil {
		return err
	}
	slices.SortFunc(entries, func(x, y slot.Entry) int {
		return cmp.Or(less(x.Exhausted(), y.Exhausted()), cmp.Compare(y.Generation, x.Generation))
	})
	first := b.systems[0]
	if len(entries) == 0 || entries[0].Slot != first.slot || entries[0].Version != first.Version || entries[0].UKI != first.entry.kernel {
		return fmt.Errorf("the loader starts %s, and our code takes the first of %+v for that", first.entry.file, entries)
	}
	return nil
}

// slotWhole proves every block of the root in a slot, unless an earlier cut's check
// did and nothing was written to the slot since.
func (b *boot) slotWhole(ctx context.Context, name string, want slot.Root) error {
	p := b.proven[name]
	if p.root == want && !b.written(p.slot, p.at) {
		return nil
	}
	device, err := b.booted.Device(name)
	if err != nil {
		return err
	}
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := rootWhole(ctx, f, want); err != nil {
		return err
	}
	if p, err = b.proofOf(name, want); err != nil {
		return err
	}
	if !b.written(p.slot, p.at) {
		b.proven[name] = p
	}
	return nil
}

// rootWhole reads all of a root.
func rootWhole(ctx context.Context, r io.ReaderAt, want slot.Root) error {
	tree, err := slot.OpenTree(r, want.DataBytes, want.Hash)
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for block := int64(0); block < tree.Blocks() && ctx.Err() == nil; {
		data := buf[:min(int64(len(buf)), (tree.Blocks()-block)*slot.BlockSize)]
		if _, err := r.ReadAt(data, block*slot.BlockSize); err != nil {
			return err
		}
		for ; len(data) > 0; data = data[slot.BlockSize:] {
			if err := tree.Verify(block, data[:slot.BlockSize]); err != nil {
				return err
			}
			block++
		}
	}
	return ctx.Err()
}

// A proof is of a root that was whole after so many log entries.
type proof struct {
	root slot.Root
	at   int
	slot blocklog.Entry // the range of the disk
}

// proofOf a slot goes back to the cut's base: of what follows it, a cut may lose a part.
func (b *boot) proofOf(name string, root slot.Root) (proof, error) {
	f, err := os.Open(b.disk.path)
	if err != nil {
		return proof{}, err
	}
	defer f.Close()
	table, err := readTable(f)
	if err != nil {
		return proof{}, err
	}
	p, err := table.ByName(name)
	return proof{root, b.log.Flushed(b.cut.N), blocklog.Entry{At: int64(p.First) * sectorBytes, Len: int64(table.Bytes(p))}}, err
}

// written tells whether the log has anything for a range between an entry and the cut.
func (b *boot) written(area blocklog.Entry, from int) bool {
	return slices.ContainsFunc(b.log.Entries[from:b.cut.N], func(e blocklog.Entry) bool {
		return e.Len > 0 && e.At < area.At+area.Len && area.At < e.At+e.Len
	})
}

// checkStarts compares the system that starts with what was promised.
func (b *boot) checkStarts(want *plan.Starts) error {
	first := b.systems[0]
	if first.Version != want.Version {
		return fmt.Errorf("version %s starts, want %s", first.Version, want.Version)
	}
	if want.Confirmed && first.entry.left != unlimited {
		return fmt.Errorf("version %s is on trial again: %s", first.Version, first.entry.file)
	}
	return nil
}

// checkKeeps looks whether a version can be started, if only after the other one.
func (b *boot) checkKeeps(version string) error {
	if !slices.ContainsFunc(b.systems, func(s system) bool { return s.Version == version && s.entry.left > 0 }) {
		return fmt.Errorf("version %s can't be started any more", version)
	}
	return nil
}
