package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"capsule/internal/run"
)

// unpackMax bounds the unpacking of one package.
const unpackMax = 5 * time.Minute

// mergedDirs are the top folders that are links into /usr on a merged system.
var mergedDirs = []string{"bin", "sbin", "lib", "lib64"}

// owners says which package each path of the unpacked tree came from.
type owners map[string]string

// unpack lays all packages over each other in one tree, merged into /usr.
func (b *builder) unpack() error {
	tree, index := b.debian(""), filepath.Join(b.work, "owners.json")
	return b.step("unpack", newKey("unpack 2", b.lock), []string{tree, index}, func() error {
		if err := os.RemoveAll(tree); err != nil {
			return err
		}
		parts := filepath.Join(b.work, "parts")
		defer os.RemoveAll(parts)
		if err := b.unpackParts(parts); err != nil {
			return err
		}
		found := owners{}
		for _, p := range b.lock {
			if err := found.merge(p.Name, filepath.Join(parts, p.Name), tree); err != nil {
				return fmt.Errorf("unpack %s: %w", p.Name, err)
			}
		}
		for _, dir := range mergedDirs {
			if err := os.Symlink("usr/"+dir, filepath.Join(tree, dir)); err != nil {
				return err
			}
		}
		content, err := json.Marshal(found)
		if err != nil {
			return err
		}
		return os.WriteFile(index, content, 0o644)
	})
}

// unpackParts unpacks each package into a folder of its own, some at a time.
func (b *builder) unpackParts(parts string) error {
	if err := os.RemoveAll(parts); err != nil {
		return err
	}
	if err := os.MkdirAll(parts, 0o755); err != nil {
		return err
	}
	var group sync.WaitGroup
	errs := make([]error, len(b.lock))
	slots := make(chan struct{}, runtime.NumCPU())
	for i, p := range b.lock {
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			deb := filepath.Join(b.cache, "debs", p.File)
			_, errs[i] = run.Output(b.ctx, unpackMax, "dpkg-deb", "-x", deb, filepath.Join(parts, p.Name))
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

// merge moves the files of one package into the tree.
func (o owners) merge(name, part, tree string) error {
	return filepath.WalkDir(part, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(part, path)
		if err != nil {
			return err
		}
		target := mergedPath(relative)
		if entry.IsDir() {
			return os.MkdirAll(filepath.Join(tree, target), 0o755)
		}
		if entry.Type()&fs.ModeSymlink != 0 && isMergedDir(relative) {
			return nil // the link of a merged system itself
		}
		o[target] = name
		return os.Rename(path, filepath.Join(tree, target))
	})
}

// mergedPath is where a packaged path lands on a system with everything in /usr.
func mergedPath(path string) string {
	first, _, _ := strings.Cut(path, "/")
	if isMergedDir(first) {
		return "usr/" + path
	}
	return path
}

func isMergedDir(path string) bool {
	for _, dir := range mergedDirs {
		if path == dir {
			return true
		}
	}
	return false
}

// tool runs a program of the unpacked packages through the loader and libraries
// that came with it: results don't depend on what the machine has installed.
func (b *builder) tool(limit time.Duration, program string, args ...string) ([]byte, error) {
	loader := []string{"--library-path", b.debian("usr/lib/x86_64-linux-gnu"), b.debian(program)}
	return run.Output(b.ctx, limit, b.debian("usr/lib64/ld-linux-x86-64.so.2"), append(loader, args...)...)
}
