package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// key identifies the inputs of a step. The first error sticks and is given by sum.
type key struct {
	hash hash.Hash
	err  error
}

func newKey(parts ...any) *key {
	return (&key{hash: sha256.New()}).text(parts...)
}

// text adds values as they print.
func (k *key) text(parts ...any) *key {
	for _, part := range parts {
		fmt.Fprintf(k.hash, "%q\n", fmt.Sprint(part))
	}
	return k
}

// file adds the content of a file.
func (k *key) file(path string) *key {
	f, err := os.Open(path)
	if err != nil {
		k.err = errors.Join(k.err, err)
		return k
	}
	defer f.Close()
	if _, err := io.Copy(k.hash, f); err != nil {
		k.err = errors.Join(k.err, err)
	}
	fmt.Fprintf(k.hash, "\nend %q\n", filepath.Base(path))
	return k
}

// tree adds names, modes, link targets and contents of everything below dir.
func (k *key) tree(dir string) *key {
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		fmt.Fprintf(k.hash, "%q %v\n", name, info.Mode())
		switch {
		case info.Mode().IsRegular():
			k.file(path)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			fmt.Fprintf(k.hash, "%q\n", target)
			return err
		}
		return nil
	})
	k.err = errors.Join(k.err, err)
	return k
}

func (k *key) sum() (string, error) { return hex.EncodeToString(k.hash.Sum(nil)), k.err }

// step runs fn and remembers its key, unless the last run had the same key and
// its outputs are still there. It prints what the step cost in time and bytes.
func (b *builder) step(name string, k *key, outputs []string, fn func() error) error {
	start := time.Now()
	sum, err := k.sum()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	stamp := b.stamp(name)
	if last, err := os.ReadFile(stamp); err == nil && string(last) == sum && allExist(outputs) {
		report(name, time.Since(start), sizeOf(outputs), "cached")
		return nil
	}
	if err := os.Remove(stamp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	fmt.Printf("  %-14s ...\r", name)
	if err := fn(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	report(name, time.Since(start), sizeOf(outputs), "")
	return os.WriteFile(stamp, []byte(sum), 0o644)
}

// stamp is the file with the key of a step's last run.
func (b *builder) stamp(name string) string { return filepath.Join(b.cache, "steps", name) }

func report(name string, took time.Duration, bytes int64, note string) {
	fmt.Printf("  %-14s %6.1f s %9.1f MiB  %s\n", name, took.Seconds(), float64(bytes)/(1<<20), note)
}

func allExist(paths []string) bool {
	for _, path := range paths {
		if _, err := os.Stat(path); err != nil {
			return false
		}
	}
	return true
}

// sizeOf is the sum of the bytes in files and trees; what can't be read counts as nothing.
func sizeOf(paths []string) int64 {
	var total int64
	for _, path := range paths {
		_ = filepath.WalkDir(path, func(_ string, entry fs.DirEntry, err error) error {
			if err == nil && entry.Type().IsRegular() {
				if info, err := entry.Info(); err == nil {
					total += info.Size()
				}
			}
			return nil
		})
	}
	return total
}

// copyFile copies content and gives the copy exactly mode, whatever the umask.
func copyFile(from, to string, mode fs.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return errors.Join(err, out.Close())
	}
	return errors.Join(out.Chmod(mode), out.Close())
}

// replaceByLink gives the file a second name in one move: who reads the old one
// keeps it, and no reader sees half a file.
func replaceByLink(from, to string) error {
	source, err := os.Stat(from)
	if err != nil {
		return err
	}
	if target, err := os.Stat(to); err == nil && os.SameFile(source, target) {
		return nil // renaming one name of a file onto another would leave both
	}
	next := to + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Link(from, next); err != nil {
		return err
	}
	return os.Rename(next, to)
}
