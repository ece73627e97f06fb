package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// differencesMax is how many differing paths an error names.
const differencesMax = 10

// sharedInputs lie in the cache and serve both builds: the packages, and the kernel
// of microVMs, which takes minutes and is a package of our own. That two builds of it
// are the same was compared by hand (docs/decisions/0013-guest-kernel.md).
var sharedInputs = []string{"debs", "guest", filepath.Join("steps", guestKernelStep)}

// checkReproducible builds the root again from the same packages and sources in
// another folder, with no other step taken from the cache, and compares every byte.
func (b *builder) checkReproducible() error {
	first, err := b.buildRoot()
	if err != nil {
		return err
	}
	again := *b
	again.work = filepath.Join(b.out, "again")
	again.cache = filepath.Join(again.work, "cache")
	defer os.RemoveAll(again.work)
	if err := os.RemoveAll(again.work); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(again.cache, "steps"), 0o755); err != nil {
		return err
	}
	for _, name := range sharedInputs {
		if err := os.Symlink(filepath.Join(b.cache, name), filepath.Join(again.cache, name)); err != nil {
			return err
		}
	}
	second, err := again.assemble()
	if err != nil {
		return err
	}
	if first.Digest != second.Digest {
		paths, err := differences(filepath.Join(b.work, "root"), filepath.Join(again.work, "root"))
		if err != nil {
			return err
		}
		return fmt.Errorf("compare two builds of %s: sha256 %s and %s; different: %s",
			b.version, first.Digest, second.Digest, strings.Join(paths, ", "))
	}
	fmt.Printf("root is reproducible: sha256 %s\n", first.Digest)
	return nil
}

// differences names paths that are not the same in two trees, the first few.
func differences(one, two string) ([]string, error) {
	var paths []string
	err := filepath.WalkDir(one, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(one, path)
		if err != nil {
			return err
		}
		a, _ := newKey().tree(path).sum()
		b, err := newKey().tree(filepath.Join(two, name)).sum()
		if a != b || err != nil {
			paths = append(paths, name)
		}
		if len(paths) == differencesMax {
			return filepath.SkipAll
		}
		return nil
	})
	return paths, err
}
