package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"capsule/internal/filecopy"
)

// unpacker writes a tar stream from a workload to this machine. All names are
// resolved inside the destination by os.Root: no entry and no link in the
// stream leads out of it. Extended attributes are not taken over.
type unpacker struct {
	source, destination string

	root    *os.Root
	base    string // of the source below root
	dirs    []entry
	files   int64
	bytes   int64
	skipped []string
}

type entry struct {
	name string
	info fs.FileInfo
	h    *tar.Header
}

func (u *unpacker) run(r io.Reader) error {
	in := tar.NewReader(r)
	first, err := in.Next()
	if errors.Is(err, io.EOF) {
		return errors.New("the capsule sent nothing")
	}
	if err != nil {
		return err
	}
	if err := u.open(first); err != nil {
		return err
	}
	defer u.root.Close()
	top := path.Clean(first.Name)
	for h := first; ; {
		rest, err := below(top, path.Clean(h.Name))
		if err != nil {
			return err
		}
		if err := u.put(in, top, entry{path.Join(u.base, rest), h.FileInfo(), h}); err != nil {
			return fmt.Errorf("write %q: %w", filepath.Join(u.root.Name(), filepath.FromSlash(path.Join(u.base, rest))), err)
		}
		h, err = in.Next()
		if errors.Is(err, io.EOF) {
			return u.finishDirs()
		}
		if err != nil {
			return err
		}
	}
}

// open decides where the source goes and opens the folder that nothing leaves.
func (u *unpacker) open(first *tar.Header) error {
	kind := filecopy.File
	if first.Typeflag == tar.TypeDir {
		kind = filecopy.Dir
	}
	target, err := filecopy.Target(u.source, kind, u.destination, localKind)
	if err != nil {
		return err
	}
	dir := filepath.FromSlash(target)
	u.base = "."
	if kind == filecopy.File {
		dir, u.base = filepath.Dir(dir), filepath.Base(dir)
	} else if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	u.root, err = os.OpenRoot(dir)
	return err
}

func localKind(name string) filecopy.Kind {
	info, err := os.Stat(filepath.FromSlash(name))
	switch {
	case err != nil:
		return filecopy.Missing
	case info.IsDir():
		return filecopy.Dir
	}
	return filecopy.File
}

func (u *unpacker) put(in io.Reader, top string, e entry) error {
	switch e.h.Typeflag {
	case tar.TypeDir:
		u.dirs = append(u.dirs, e)
		err := u.root.Mkdir(e.name, 0o700)
		if errors.Is(err, fs.ErrExist) {
			return u.mustBeDir(e.name)
		}
		return err
	case tar.TypeReg:
		return u.putFile(in, e)
	case tar.TypeSymlink:
		if err := u.clear(e.name); err != nil {
			return err
		}
		u.files++
		return u.root.Symlink(filepath.FromSlash(e.h.Linkname), e.name)
	case tar.TypeLink:
		first, err := below(top, path.Clean(e.h.Linkname))
		if err == nil {
			err = u.clear(e.name)
		}
		if err != nil {
			return err
		}
		u.files++
		return u.root.Link(path.Join(u.base, first), e.name)
	}
	u.skipped = append(u.skipped, fmt.Sprintf("%q is neither file, folder nor link; left out", e.h.Name))
	return nil
}

func (u *unpacker) mustBeDir(name string) error {
	info, err := u.root.Stat(name)
	if err == nil && !info.IsDir() {
		return errors.New("a file is in the way of a folder")
	}
	return err
}

// clear makes room for a link, but not at the price of a folder.
func (u *unpacker) clear(name string) error {
	info, err := u.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.IsDir() {
		return errors.New("a folder is in the way of a file")
	}
	return u.root.Remove(name)
}

func (u *unpacker) putFile(in io.Reader, e entry) error {
	info, err := u.root.Lstat(e.name)
	if err == nil && !info.Mode().IsRegular() {
		if err := u.clear(e.name); err != nil {
			return err
		}
	}
	f, err := u.root.OpenFile(e.name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, in)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	u.files, u.bytes = u.files+1, u.bytes+n
	return u.attributes(e)
}

// attributes are the owner where we may set it, the mode and the time.
func (u *unpacker) attributes(e entry) error {
	mode := e.info.Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
	if u.root.Lchown(e.name, e.h.Uid, e.h.Gid) != nil {
		mode &^= fs.ModeSetuid | fs.ModeSetgid // they were another owner's
	}
	if err := u.root.Chmod(e.name, mode); err != nil {
		return err
	}
	return u.root.Chtimes(e.name, e.h.ModTime, e.h.ModTime)
}

// finishDirs comes last: a folder may be read-only, and its time is changed by
// what is put into it.
func (u *unpacker) finishDirs() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		if err := u.attributes(u.dirs[i]); err != nil {
			return err
		}
	}
	return nil
}
