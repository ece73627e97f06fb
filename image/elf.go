package main

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// libraryDirs are where Debian's loader looks, in this order.
var libraryDirs = []string{"usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/lib"}

// fileClosure is the set of paths that files need to run: themselves, the targets
// of links on the way, the loader, and the libraries that they name, with theirs.
type fileClosure struct {
	tree  string          // unpacked packages
	paths map[string]bool // relative to tree
}

// add takes in a path and all that it needs.
func (c *fileClosure) add(path string) error {
	path = mergedPath(filepath.Clean(strings.TrimPrefix(path, "/")))
	if c.paths[path] {
		return nil
	}
	info, err := os.Lstat(filepath.Join(c.tree, path))
	if err != nil {
		return err
	}
	c.paths[path] = true
	if info.Mode()&fs.ModeSymlink != 0 {
		return c.addTarget(path)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is neither file nor link", path)
	}
	needs, err := elfNeeds(filepath.Join(c.tree, path))
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	for _, need := range needs {
		found, err := c.find(need)
		if err != nil {
			return fmt.Errorf("%s needs %w", path, err)
		}
		if err := c.add(found); err != nil {
			return err
		}
	}
	return nil
}

func (c *fileClosure) addTarget(link string) error {
	target, err := os.Readlink(filepath.Join(c.tree, link))
	if err != nil {
		return err
	}
	if !filepath.IsAbs(target) {
		target = filepath.Join(filepath.Dir(link), target)
	}
	if err := c.add(target); err != nil {
		return fmt.Errorf("link %s: %w", link, err)
	}
	return nil
}

// find is the path of a library by its name, or of the loader by its path.
func (c *fileClosure) find(need string) (string, error) {
	if filepath.IsAbs(need) {
		return need, nil
	}
	for _, dir := range libraryDirs {
		path := filepath.Join(dir, need)
		if _, err := os.Lstat(filepath.Join(c.tree, path)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("library %q, which no package has: %w", need, fs.ErrNotExist)
}

// sorted gives the paths in order.
func (c *fileClosure) sorted() []string {
	var paths []string
	for path := range c.paths {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	return paths
}

// elfNeeds gives the libraries and the loader that a file names; none when the
// file is not an ELF file.
func elfNeeds(path string) ([]string, error) {
	f, err := elf.Open(path)
	var format *elf.FormatError
	if errors.As(err, &format) || errors.Is(err, io.EOF) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	needs, err := f.ImportedLibraries()
	if err != nil {
		return nil, err
	}
	for _, program := range f.Progs {
		if program.Type != elf.PT_INTERP {
			continue
		}
		name := make([]byte, program.Filesz)
		if _, err := program.ReadAt(name, 0); err != nil {
			return nil, err
		}
		needs = append(needs, strings.TrimRight(string(name), "\x00"))
	}
	return needs, nil
}
