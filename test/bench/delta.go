package main

import (
	"context"
	"crypto/sha256"
	"fmt"

	"capsule/internal/bundle"
	"capsule/internal/slot"
)

const bundleMethod = `A bundle has header, kernel image and root. What a push has to send of it is counted from two bundles as the
capsule does it: the header, the root's hash tree, each block of 4 KiB of the root whose hash is not in the tree of
the running one, and each piece of 128 KiB of the kernel image that the running one does not have at the same place.
One Go package: a file more in ` + "`internal/server`" + `, and another version linked into ` + "`capsuled`" + `. One Debian package:
another version linked in, and the package's files are those of another version that the mirror has.`

// changedFile is what a changed Go package has more: code before its other code.
const (
	changedFile   = "internal/server/bench.go"
	changedSource = "package server\n\nimport \"os\"\n\nfunc init() {\n\tif os.Getenv(\"CAPSULE_BENCH\") != \"\" {\n\t\tpanic(\"changed\")\n\t}\n}\n"
)

// changedPackages are Debian packages that get other versions often.
var changedPackages = []string{"libssl3t64", "qemu-system-x86"}

func (b *bench) bundle(ctx context.Context) error {
	built, err := b.built(ctx)
	if err != nil {
		return err
	}
	head("What", "MiB", "Goal")
	row("bundle", fmt.Sprintf("%.1f", built.mib()), "")
	row("of that, kernel image", fmt.Sprintf("%.1f", float64(built.Manifest.UKI.Size)/mib), "")
	row("of that, root", fmt.Sprintf("%.1f", float64(built.Manifest.Root.Size)/mib), "")
	row("of that, hash tree, which every push sends", fmt.Sprintf("%.1f", float64(built.Manifest.Root.Size-built.Manifest.Root.DataBytes)/mib), "")
	fmt.Println()
	head("Next version differs in", "sent of the root, MiB", "of the kernel image", "**share of the bundle**", "Goal")
	s, err := b.variant(ctx, "version", after(built, "version")...)
	if err != nil {
		return err
	}
	if err := tellDelta("its version, linked into `capsuled`", built, s); err != nil {
		return err
	}
	if s, err = b.changed(ctx, built, "package", changedFile, changedSource); err != nil {
		return err
	}
	if err := tellDelta("one Go package", built, s); err != nil {
		return err
	}
	for _, name := range changedPackages {
		s, what, err := b.otherPackage(ctx, built, name)
		if err != nil {
			return err
		}
		if err := tellDelta("one Debian package, "+what, built, s); err != nil {
			return err
		}
	}
	return nil
}

func tellDelta(what string, old, next *system) error {
	d, err := between(old, next)
	if err != nil {
		return err
	}
	row(what, fmt.Sprintf("%.1f", float64(d.root)/mib), fmt.Sprintf("%.1f", float64(d.uki)/mib),
		fmt.Sprintf("%.1f %%", float64(d.root+d.uki)*100/float64(next.Size)), "≤ 20 %")
	return nil
}

// delta is what must be sent, in bytes.
type delta struct {
	root int64 // with header and hash tree
	uki  int64
}

// between is what a capsule that runs one system lacks of another.
func between(old, next *system) (d delta, err error) {
	oldFile, oldRoot, err := old.open()
	if err != nil {
		return d, err
	}
	defer oldFile.Close()
	nextFile, nextRoot, err := next.open()
	if err != nil {
		return d, err
	}
	defer nextFile.Close()
	had, err := slot.OpenTree(oldRoot, old.Manifest.Root.DataBytes, old.Manifest.Root.VerityHash)
	if err != nil {
		return d, err
	}
	want, err := slot.OpenTree(nextRoot, next.Manifest.Root.DataBytes, next.Manifest.Root.VerityHash)
	if err != nil {
		return d, err
	}
	d.root = next.UKIAt + int64(len(want.Bytes())) + lacks(had, want)*slot.BlockSize
	d.uki = lacksPieces(old.Manifest.UKI, next.Manifest.UKI)
	return d, nil
}

// lacks counts the blocks whose hashes a tree does not have.
func lacks(had, want *slot.Tree) (blocks int64) {
	hashes := map[[sha256.Size]byte]bool{}
	for i := range had.Blocks() {
		hashes[had.Leaf(i)] = true
	}
	for i := range want.Blocks() {
		if !hashes[want.Leaf(i)] {
			blocks++
		}
	}
	return blocks
}

// lacksPieces counts the bytes of a kernel image that another one does not have at
// the same place.
func lacksPieces(had, want bundle.Part) (bytes int64) {
	for at := int64(0); at < want.Size; at += bundle.PieceSize {
		if at >= had.Size || had.PieceAt(at) != want.PieceAt(at) || want.PieceAt(at) == "" {
			bytes += min(bundle.PieceSize, want.Size-at)
		}
	}
	return bytes
}
