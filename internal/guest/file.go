package guest

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"

	guestv1 "capsule/api/capsule/guest/v1"
	"capsule/internal/process"
)

// filesDir is where files of the payload are, in memory and out of its sight.
const filesDir = "/run/files"

// addFiles keeps the files in a folder, for the payload's first process to show. Those
// without an owner are the program's.
func addFiles(dir string, fs process.FS, program process.Account, files []*guestv1.File) ([]showing, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var shown []showing
	for i, f := range files {
		s, err := addFile(fs, program, f, filepath.Join(dir, strconv.Itoa(i)))
		if err != nil {
			return nil, fmt.Errorf("file %q: %w", f.GetPath(), err)
		}
		shown = append(shown, s)
	}
	return shown, nil
}

func addFile(fs process.FS, owner process.Account, f *guestv1.File, source string) (showing, error) {
	if at := f.GetPath(); !path.IsAbs(at) || path.Clean(at) == "/" || f.GetMode() > 0o777 {
		return showing{}, fmt.Errorf("mode %o at %q: %w", f.GetMode(), at, errdefs.ErrInvalidArgument)
	}
	if f.GetOwner() != "" {
		var err error
		if owner, err = fs.Account(f.GetOwner()); err != nil {
			return showing{}, err
		}
	}
	err := os.WriteFile(source, f.GetContent(), 0o600)
	if err == nil {
		err = os.Chown(source, int(owner.UID), int(owner.GID))
	}
	if err == nil {
		err = os.Chmod(source, os.FileMode(f.GetMode()))
	}
	return showing{Source: source, Path: f.GetPath(), ReadOnly: true}, err
}
