// Package faults makes bundles and disks that are wrong in one way each, for the
// tests of whole machines. Each folder below it is a program that stands in for one
// of ours in a root that is to fail.
package faults

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"capsule/internal/bundle"
)

// slotSize in bytes, as image/disk.go lays disks out.
const slotSize = 1 << 30

// A copied bundle before it is written.
type copied struct {
	key    *bundle.PrivateKey // that capsules trust
	was    *bundle.Header
	header []byte
	size   int64 // of the file
	flip   int64 // offset of a byte of the file to change, 0 for none
}

// rewritings are the faults of a bundle that a copy of a good one can have.
var rewritings = map[string]func(*copied) error{
	"unsigned":        func(c *copied) error { return c.change(nil, func(*bundle.Manifest) {}) },
	"foreign-key":     foreignKey,
	"forged":          func(c *copied) error { return c.edit([]byte(`"builtUnix"`), []byte(`"builtunix"`)) },
	"garbled":         func(c *copied) error { return c.edit([]byte(`{"product"`), []byte(`["product"`)) },
	"not-a-bundle":    func(c *copied) error { return c.edit([]byte("CAPSULE"), []byte("CAPSULA")) },
	"other-product":   manifest(func(m *bundle.Manifest) { m.Product = "other" }),
	"other-arch":      manifest(func(m *bundle.Manifest) { m.Architecture = "riscv64" }),
	"older":           manifest(func(m *bundle.Manifest) { m.BuiltUnix -= 24 * 60 * 60 }),
	"cannot-follow":   manifest(func(m *bundle.Manifest) { m.Follows = m.Version }),
	"too-large":       manifest(tooLarge),
	"short":           func(c *copied) error { c.size--; return nil },
	"long":            func(c *copied) error { c.size++; return nil },
	"flipped-kernel":  func(c *copied) error { c.flip = c.was.UKIAt + c.was.Manifest.UKI.Size/2; return nil },
	"flipped-root":    func(c *copied) error { c.flip = c.was.RootAt + c.was.Manifest.Root.DataBytes/2; return nil },
	"flipped-hashes":  func(c *copied) error { c.flip = c.was.Size - 100; return nil },
	"other-root-hash": manifest(func(m *bundle.Manifest) { m.Root.VerityHash = m.UKI.SHA256 }),
}

// Rewritings are the faults that Rewrite knows, by name.
func Rewritings() []string { return slices.Sorted(maps.Keys(rewritings)) }

// Rewrite writes a copy of a bundle that has the fault. key signs what it has to.
func Rewrite(to, from, fault string, key *bundle.PrivateKey) (err error) {
	rewrite, ok := rewritings[fault]
	if !ok {
		return fmt.Errorf("no fault %q: want one of %q", fault, Rewritings())
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	c := &copied{key: key}
	if c.was, err = bundle.ReadHeader(in); err != nil {
		return err
	}
	c.header, c.size = c.was.Bytes(), c.was.Size
	if err := rewrite(c); err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := out.Write(c.header); err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	if err := out.Truncate(c.size); err != nil || c.flip == 0 {
		return err
	}
	return FlipBit(out, c.flip)
}

// manifest is a rewriting with another manifest, signed as it should be.
func manifest(change func(*bundle.Manifest)) func(*copied) error {
	return func(c *copied) error { return c.change(c.key, change) }
}

func (c *copied) change(key *bundle.PrivateKey, change func(*bundle.Manifest)) error {
	m := c.was.Manifest
	change(&m)
	h, err := bundle.NewHeader(m, key)
	if err != nil {
		return err
	}
	c.header, c.size = h.Bytes(), h.Size
	return nil
}

// edit changes the header behind the back of who signed it.
func (c *copied) edit(from, to []byte) error {
	if !bytes.Contains(c.header, from) || len(from) != len(to) {
		return fmt.Errorf("no %q in the bundle's header", from)
	}
	c.header = bytes.Replace(c.header, from, to, 1)
	return nil
}

func foreignKey(c *copied) error {
	key, err := bundle.Generate()
	if err != nil {
		return err
	}
	c.header = c.was.Sign(key).Bytes()
	return nil
}

// tooLarge is one block over a slot, or a few where the tree grows with it.
func tooLarge(m *bundle.Manifest) {
	size := func(data int64) int64 { return data + bundle.TreeSize(data) }
	data := int64(slotSize)
	for size(data-bundle.BlockSize) > slotSize {
		data -= bundle.BlockSize
	}
	m.Root.DataBytes, m.Root.Size = data, size(data)
}
