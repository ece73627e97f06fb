package identity

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"capsule/internal/durable"
)

// writeFolder makes dir appear with all its files or not at all, whenever the
// power goes.
func writeFolder(dir string, files map[string][]byte) error {
	draft := dir + ".new"
	if err := os.RemoveAll(draft); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(draft, 0o700); err != nil {
		return err
	}
	for name, data := range files {
		if err := durable.Create(filepath.Join(draft, name), data, 0o600); err != nil {
			return err
		}
	}
	if err := durable.Sync(draft); err != nil {
		return err
	}
	// An empty folder may be in the way; one with files in it stays.
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.Rename(draft, dir)
}

// removeFolder makes dir go with all its files or not at all, whenever the power
// goes: half of it would be damage.
func removeFolder(dir string) error {
	if err := clearFolder(dir); err != nil {
		return err
	}
	if err := durable.Rename(dir, removed(dir)); err != nil {
		return err
	}
	return clearFolder(dir)
}

// clearFolder takes away what a cut left of a folder that was removed.
func clearFolder(dir string) error { return os.RemoveAll(removed(dir)) }

func removed(dir string) string { return dir + ".old" }

// Files gives the files of the identity in dir by name, for a backup. With them in it
// another folder holds the same identity.
func Files(dir string) (map[string][]byte, error) {
	if _, err := read(dir); err != nil {
		return nil, fmt.Errorf("load identity from %s: %w", dir, err)
	}
	files := map[string][]byte{}
	for _, name := range FileNames {
		data, err := readFile(filepath.Join(dir, name), listMax)
		if err == nil {
			files[name] = data
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return files, nil
}

// FileNames are all that an identity's folder may hold.
var FileNames = []string{caCertFile, caKeyFile, operatorsFile, claimedFile}

// Secret is what only this capsule has: its CA's key, as it's in the file of Files.
func Secret(files map[string][]byte) []byte { return files[caKeyFile] }

func readFile(path string, most int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	if err == nil && len(data) > most {
		err = fmt.Errorf("%s is larger than %d bytes", path, most)
	}
	return data, err
}
