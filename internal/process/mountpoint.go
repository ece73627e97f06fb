package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// MountPoint checks that a folder can be mounted at name, where a folder or
// nothing is: what is missing is made.
func (r FS) MountPoint(name string) error {
	info, err := r.point(name)
	if info == nil || err != nil {
		return err
	}
	if !info.IsDir() {
		return mountRefused(name, "is a file")
	}
	root, err := r.Open("/", unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	top, err := root.Stat()
	if err == nil && os.SameFile(top, info) {
		err = mountRefused(name, "is a link to /")
	}
	return err
}

// FilePoint checks that a file can be shown at name, where a file or nothing is.
func (r FS) FilePoint(name string) error {
	info, err := r.point(name)
	if err == nil && info != nil && info.IsDir() {
		err = fmt.Errorf("file path %q is a folder: %w", name, errdefs.ErrInvalidArgument)
	}
	return err
}

// point looks at what is to be mounted over; nil when nothing is there.
func (r FS) point(name string) (os.FileInfo, error) {
	f, err := r.Open(name, unix.O_PATH, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, unix.ENOTDIR):
		return nil, mountRefused(name, "leads through a file")
	case errors.Is(err, unix.ELOOP):
		return nil, mountRefused(name, "leads through links that never end")
	case err != nil:
		return nil, err
	}
	defer f.Close()
	return f.Stat()
}

func mountRefused(name, what string) error {
	return fmt.Errorf("mount path %q %s; a volume needs a folder of its own: %w", name, what, errdefs.ErrInvalidArgument)
}
