//go:build linux

package filecopy

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Unpack reads a tar stream made by Pack from a source so named and puts it at
// dest inside the root. Nothing is created when Target refuses. Files that are
// there are overwritten in place, so that bind mounts and open files see it.
func Unpack(root *Root, dest, source string, r io.Reader) (files, bytes uint64, err error) {
	u := &unpacker{root: root, tar: tar.NewReader(r)}
	first, err := u.tar.Next()
	if errors.Is(err, io.EOF) {
		return 0, 0, fmt.Errorf("copy to %q: the stream is empty: %w", dest, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("copy to %q: %w", dest, badStream(err))
	}
	kind := File
	if first.Typeflag == tar.TypeDir {
		kind = Dir
	}
	u.top = path.Clean(first.Name)
	if u.target, err = Target(source, kind, dest, u.root.Kind); err != nil {
		return 0, 0, err // names both
	}
	if err := u.run(first); err != nil {
		return u.files, u.bytes, fmt.Errorf("copy to %q: %w", dest, err)
	}
	return u.files, u.bytes, nil
}

type unpacker struct {
	root   *Root
	tar    *tar.Reader
	top    string // name of the first entry
	target string // what it becomes
	dirs   []*tar.Header
	files  uint64
	bytes  uint64
}

// run unpacks all entries, of which the first is read already.
func (u *unpacker) run(h *tar.Header) (err error) {
	for ; err == nil; h, err = u.tar.Next() {
		name, err := u.name(h.Name)
		if err != nil {
			return err
		}
		if err := u.put(name, h); err != nil {
			return err
		}
	}
	if !errors.Is(err, io.EOF) {
		return badStream(err)
	}
	return u.finishDirs()
}

func badStream(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the stream is damaged: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return err
}

// name is where the entry goes. Entries stay below the first one.
func (u *unpacker) name(entry string) (string, error) {
	clean := path.Clean(entry)
	if clean == u.top {
		return u.target, nil
	}
	rest, below := strings.CutPrefix(clean, u.top+"/")
	if u.top == "." {
		rest, below = clean, !path.IsAbs(clean)
	}
	if !below || rest == ".." || strings.HasPrefix(rest, "../") {
		return "", fmt.Errorf("entry %q lies outside of %q: %w", entry, u.top, errdefs.ErrInvalidArgument)
	}
	return strings.TrimSuffix(u.target, "/") + "/" + rest, nil
}

func (u *unpacker) put(name string, h *tar.Header) error {
	for key := range h.PAXRecords { // a few bytes could fill the disk
		if strings.HasPrefix(key, "GNU.sparse.") {
			return fmt.Errorf("entry %q is sparse, which is not copied: %w", h.Name, errdefs.ErrInvalidArgument)
		}
	}
	var err error
	switch h.Typeflag {
	case tar.TypeReg:
		err = u.putFile(name, h)
	case tar.TypeDir:
		err = u.putDir(name, h)
	case tar.TypeSymlink:
		err = u.replace(name, h, func(dir int, base string) error {
			return unix.Symlinkat(h.Linkname, dir, base)
		})
	case tar.TypeLink:
		err = u.putLink(name, h)
	case tar.TypeFifo:
		err = u.replace(name, h, func(dir int, base string) error {
			return unix.Mkfifoat(dir, base, uint32(h.Mode&0o7777))
		})
	default:
		return fmt.Errorf("entry %q is a device or of another kind that is not copied: %w", h.Name, errdefs.ErrInvalidArgument)
	}
	if errors.Is(err, unix.EROFS) {
		return fmt.Errorf("%q is read-only: %w", name, errdefs.ErrFailedPrecondition)
	}
	if err == nil && h.Typeflag != tar.TypeDir {
		u.files++
	}
	return err
}

func (u *unpacker) putFile(name string, h *tar.Header) error {
	f, err := u.create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.Copy(f, u.tar)
	u.bytes += uint64(n)
	if err != nil {
		return badStream(err)
	}
	return setMeta(f, h, portable)
}

// create opens name for writing, empty. The first entry may be a link to a
// file that is then written, all others replace a link.
func (u *unpacker) create(name string) (*os.File, error) {
	flags := unix.O_WRONLY | unix.O_CREAT | unix.O_TRUNC | unix.O_NONBLOCK
	if name != u.target {
		flags |= unix.O_NOFOLLOW
	}
	f, err := u.root.Open(name, flags, 0o600)
	switch {
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ETXTBSY), errors.Is(err, unix.ENXIO):
		// A link, a program that runs, or a pipe: make a new file.
	case errors.Is(err, unix.EISDIR):
		return nil, fmt.Errorf("a folder is in the way of file %q: %w", name, errdefs.ErrInvalidArgument)
	case err != nil:
		return nil, err
	default:
		return f, regular(f)
	}
	dir, base, err := u.root.parent(name)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := unix.Unlinkat(int(dir.Fd()), base, 0); err != nil {
		return nil, &os.PathError{Op: "replace", Path: name, Err: err}
	}
	fd, err := unix.Openat(int(dir.Fd()), base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "create", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// regular refuses to write to a device or pipe.
func regular(f *os.File) error {
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%q is no regular file: %w", f.Name(), errdefs.ErrInvalidArgument)
	}
	if err != nil {
		f.Close()
	}
	return err
}

func (u *unpacker) putDir(name string, h *tar.Header) error {
	if u.root.Kind(name) != Dir {
		dir, base, err := u.root.parent(name)
		if err != nil {
			return err
		}
		defer dir.Close()
		err = unix.Mkdirat(int(dir.Fd()), base, 0o700)
		if errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("a file is in the way of folder %q: %w", name, errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return &os.PathError{Op: "mkdir", Path: name, Err: err}
		}
	}
	if name == u.target && u.top == "." {
		return nil // contents only: the folder that takes them keeps its own
	}
	kept := *h
	kept.Name = name
	u.dirs = append(u.dirs, &kept)
	return nil
}

// finishDirs sets what writing into folders would have changed, inner first.
func (u *unpacker) finishDirs() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		h := u.dirs[i]
		f, err := u.root.Open(h.Name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		err = setMeta(f, h, portable)
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// putLink makes a hard link to an earlier entry of the stream.
func (u *unpacker) putLink(name string, h *tar.Header) error {
	oldname, err := u.name(h.Linkname)
	if err != nil {
		return err
	}
	old, oldBase, err := u.root.parent(oldname)
	if err != nil {
		return err
	}
	defer old.Close()
	return u.replace(name, nil, func(dir int, base string) error {
		return unix.Linkat(int(old.Fd()), oldBase, dir, base, 0)
	})
}

// replace puts something new at name, in place of a file that is there.
func (u *unpacker) replace(name string, h *tar.Header, place func(dir int, base string) error) error {
	dir, base, err := u.root.parent(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	err = place(int(dir.Fd()), base)
	if errors.Is(err, unix.EEXIST) {
		if err = unix.Unlinkat(int(dir.Fd()), base, 0); err == nil {
			err = place(int(dir.Fd()), base)
		}
	}
	if errors.Is(err, unix.EISDIR) {
		return fmt.Errorf("a folder is in the way of %q: %w", name, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return &os.PathError{Op: "create", Path: name, Err: err}
	}
	if h == nil {
		return nil
	}
	fd := int(dir.Fd())
	if err := unix.Fchownat(fd, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "chown", Path: name, Err: err}
	}
	return unix.UtimesNanoAt(fd, base, times(h), unix.AT_SYMLINK_NOFOLLOW)
}

func times(h *tar.Header) []unix.Timespec {
	mtime := unix.Timespec{Sec: h.ModTime.Unix(), Nsec: int64(h.ModTime.Nanosecond())}
	return []unix.Timespec{mtime, mtime}
}

// setMeta sets owner, mode, attributes and time, in the order that keeps them.
func setMeta(f *os.File, h *tar.Header, kept func(string) bool) error {
	if err := f.Chown(h.Uid, h.Gid); err != nil {
		return err
	}
	if err := unix.Fchmod(int(f.Fd()), uint32(h.Mode&0o7777)); err != nil {
		return &os.PathError{Op: "chmod", Path: f.Name(), Err: err}
	}
	err := writeXattrs(h, kept, func(name string, value []byte) error {
		return unix.Fsetxattr(int(f.Fd()), name, value, 0)
	})
	if err != nil {
		return err
	}
	self := fmt.Sprintf("/proc/self/fd/%d", f.Fd()) // to the nanosecond, unlike futimes
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, self, times(h), 0); err != nil {
		return &os.PathError{Op: "set time of", Path: f.Name(), Err: err}
	}
	return nil
}

// writeXattrs gives set those attributes of the entry that are kept.
func writeXattrs(h *tar.Header, kept func(string) bool, set func(string, []byte) error) error {
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrs)
		if name = unescapeXattr.Replace(name); !ok || !kept(name) {
			continue
		}
		if err := set(name, []byte(value)); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return &os.PathError{Op: "set attribute of", Path: h.Name, Err: err}
		}
	}
	return nil
}
