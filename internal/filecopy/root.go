//go:build linux

package filecopy

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Root is a folder that no path leads out of: openat2 with RESOLVE_IN_ROOT
// treats it as "/" for every link on the way.
type Root struct{ dir *os.File }

// OpenRoot opens the folder at path, which may be /proc/PID/root: then the
// mounts of that process count.
func OpenRoot(path string) (*Root, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &Root{dir: os.NewFile(uintptr(fd), path)}, nil
}

// Close the root.
func (r *Root) Close() error { return r.dir.Close() }

// maxRaces bounds the retries when a tree changes while a path is resolved;
// see openat2(2) on EAGAIN.
const maxRaces = 128

// Open opens name inside the root.
func (r *Root) Open(name string, flags int, mode uint32) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	if flags&unix.O_CREAT != 0 {
		how.Mode = uint64(mode)
	}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(int(r.dir.Fd()), inside(name), &how)
		if err == nil {
			return os.NewFile(uintptr(fd), name), nil
		}
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) || try == maxRaces {
			return nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
	}
}

// inside makes name relative, so that an empty one is the root itself.
func inside(name string) string {
	if name = strings.TrimLeft(name, "/"); name == "" {
		return "."
	}
	return name
}

// Kind looks at name, following links.
func (r *Root) Kind(name string) Kind {
	f, err := r.Open(name, unix.O_PATH, 0)
	if err != nil {
		return Missing
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.IsDir() {
		return Dir
	}
	return File
}

// parent opens the folder that holds name and gives the last element. The
// name itself is not followed.
func (r *Root) parent(name string) (dir *os.File, base string, err error) {
	name = strings.TrimRight(name, "/")
	base = path.Base("/" + name)
	if base == "/" || base == "." || base == ".." {
		return nil, "", fmt.Errorf("%q has no name of its own", name)
	}
	dir, err = r.Open(strings.TrimSuffix(name, base), unix.O_PATH|unix.O_DIRECTORY, 0)
	return dir, base, err
}
