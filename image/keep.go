package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"capsule/internal/durable"
)

// A keep is a file that takes minutes to make and is the same for the same key. It
// lies in the user's cache, as Go's own results do, for every checkout.
type keep struct{ path string }

// keepOf is the place for a file with this key; none for a user without a cache.
func keepOf(name, key string) keep {
	dir, err := os.UserCacheDir()
	if err != nil {
		return keep{}
	}
	return keep{filepath.Join(dir, "capsule", "image", name+"-"+key)}
}

// take puts the file that was kept under a name, and says whether there was one.
func (k keep) take(path string) (bool, error) {
	if k.path == "" {
		return false, nil
	}
	content, err := os.ReadFile(k.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err != nil {
		return false, err
	}
	return true, durable.WriteFile(path, content, 0o644)
}

// put keeps the file of that name. Another checkout may be doing so, too.
func (k keep) put(path string) error {
	if k.path == "" {
		return nil
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(k.path), 0o755); err != nil {
		return err
	}
	draft := fmt.Sprintf("%s.%d", k.path, os.Getpid())
	if err := durable.Create(draft, content, 0o644); err != nil {
		return err
	}
	return durable.Rename(draft, k.path)
}
