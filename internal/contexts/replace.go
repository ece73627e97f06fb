package contexts

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
)

// syncFolder puts the names in a folder on the disk. Windows does so by itself,
// and opens no folders.
func syncFolder(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// replace writes a file so that a reader or a crash meets the old or the new
// one, never a piece. CreateTemp makes it 0600.
func replace(path string, data []byte) error { return write(path, data, os.Rename) }

// create writes a file that is not there yet: of several programs at once, one
// succeeds, and the others get an error of os.ErrExist.
func create(path string, data []byte) error { return write(path, data, os.Link) }

// write makes the file whole under another name, then gives it its own.
func write(path string, data []byte, place func(from, to string) error) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(data); err != nil {
		f.Close()
		return err
	}
	if err := f.Sync(); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := place(f.Name(), path); err != nil {
		return err
	}
	return syncFolder(dir)
}
