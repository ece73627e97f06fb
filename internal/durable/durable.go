// Package durable writes files that a power cut leaves whole: the old or the new
// content, never a piece. FAT promises less; internal/slot cares for its own.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFile replaces path by way of path.new, and returns once both the content
// and the name are on the disk. Each path has one writer at a time.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	draft := path + ".new"
	if err := os.Remove(draft); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := Create(draft, data, perm); err != nil {
		return err
	}
	return Rename(draft, path)
}

// Create writes a file that must not be there yet. Its name is on the disk only
// after Sync of its folder.
func Create(path string, data []byte, perm fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// Rename gives a file or folder, itself on the disk already, its name for good.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return Sync(filepath.Dir(to))
}

// Sync returns once the entries of a folder are on the disk.
func Sync(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
