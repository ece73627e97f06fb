package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// debugDir is where the root of "capsulectl capsule debug" is in the image: a tree of
// its own, since the tools must not be in reach of anything else that runs.
const debugDir = "usr/lib/capsule/debug"

// debugDirs are mount points in it, and a place for the links of busybox.
var debugDirs = []string{"dev", "proc", "sys", "run", "tmp", "root", "mnt", "var", "usr/bin", "usr/sbin"}

// debugLinks are its links: those of the root, and the machine's own root as process 1
// sees it.
func debugLinks() map[string]string {
	links := map[string]string{"host": "/proc/1/root", "perm": "/proc/1/root/perm", "usr/lib/modules": "/proc/1/root/usr/lib/modules"}
	for name, target := range rootLinks {
		if !strings.HasPrefix(name, "etc/ssl/") {
			links[name] = target
		}
	}
	return links
}

// debugTexts are its small files.
func (b *builder) debugTexts() map[string]string {
	texts := b.rootTexts()
	// Tcpdump takes packets apart as a user of its own, and runs as no other.
	texts["etc/passwd"] = "root:x:0:0:root:/root:/usr/bin/sh\ntcpdump:x:100:100:tcpdump:/:/usr/bin/false\n" +
		"nobody:x:65534:65534:nobody:/:/usr/bin/false\n"
	texts["etc/group"] = "root:x:0:\ntcpdump:x:100:\nnogroup:x:65534:\n"
	return texts
}

// busyboxMax bounds the question for its commands.
const busyboxMax = time.Minute

// rootDebug makes the tools' tree. What the root has too becomes another name of the
// same file there, which the image holds once.
func (b *builder) rootDebug(tree string) error {
	dir := filepath.Join(tree, debugDir)
	if err := layFacade(dir, debugDirs, debugLinks(), b.debugTexts()); err != nil {
		return err
	}
	closure := &fileClosure{tree: b.debian(""), paths: map[string]bool{}}
	for _, name := range list("debug") {
		if err := closure.add(name); err != nil {
			return err
		}
	}
	for _, name := range closure.sorted() {
		if err := shareEntry(filepath.Join(tree, name), b.debian(name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	out, err := b.tool(busyboxMax, "usr/bin/busybox", "--list")
	if err != nil {
		return err
	}
	return linkCommands(dir, strings.Fields(string(out)))
}

// shareEntry makes a further name of what the root has as there, else a copy of from.
func shareEntry(there, from, to string) error {
	info, err := os.Lstat(there)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
		return copyEntry(from, to)
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.Link(there, to)
}

// linkCommands gives busybox the names of its commands, but for those that a program
// of its own has: the folders are searched in some order, and the better one must win.
func linkCommands(dir string, names []string) error {
	if len(names) == 0 {
		return errors.New("busybox names no commands")
	}
	for _, name := range names {
		if path.Base(name) != name || taken(dir, name) {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(dir, "usr/bin", name)); err != nil {
			return fmt.Errorf("link %q: %w", name, err)
		}
	}
	return nil
}

func taken(dir, name string) bool {
	for _, bin := range []string{"usr/bin", "usr/sbin"} {
		if _, err := os.Lstat(filepath.Join(dir, bin, name)); err == nil {
			return true
		}
	}
	return false
}
