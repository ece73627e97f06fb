//go:build linux

package filecopy

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Extract makes in an empty folder what a stream of PackAll, or of another tar,
// holds, devices and all owners included. It's strict, as nothing is to be
// merged: no entry may lead out of the folder, through a link, or over another
// entry. Files of more than bytesMax bytes together, holes counted, are refused.
// Zeros become holes. first is an entry that was read already, or nil.
//
// Nothing is synced, and on an error what was made is left behind.
func Extract(root *Root, first *tar.Header, r *tar.Reader, bytesMax int64) (Tally, error) {
	top, err := root.Open(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return Tally{}, err
	}
	x := &extractor{tar: r, bytesMax: bytesMax, open: []folder{{f: top}}}
	defer x.close()
	err = x.run(first)
	return x.tally, err
}

type extractor struct {
	tar      *tar.Reader
	bytesMax int64
	tally    Tally
	open     []folder // the way to the last entry's folder, root first
	buf      []byte
}

// folder is one that is being filled.
type folder struct {
	name string
	f    *os.File
	h    *tar.Header // set when it's left; nil leaves it as it is
}

func (x *extractor) run(h *tar.Header) (err error) {
	if h == nil {
		h, err = x.tar.Next()
	}
	for ; err == nil; h, err = x.tar.Next() {
		if err := x.put(h); err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, outOfSpace(err))
		}
	}
	if !errors.Is(err, io.EOF) {
		return badStream(err)
	}
	return x.leave(0)
}

func outOfSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	}
	return err
}

// refuse is the error of an entry that no honest archive has.
func refuse(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}

// elements splits the name of an entry; none is the root itself.
func elements(name string) ([]string, error) {
	if path.IsAbs(name) {
		return nil, refuse("%q is an absolute path", name)
	}
	var elems []string
	for e := range strings.SplitSeq(name, "/") {
		switch e {
		case "", ".":
		case "..":
			return nil, refuse("%q leads out of the archive", name)
		default:
			elems = append(elems, e)
		}
	}
	if len(elems) > depthMax {
		return nil, refuse("folders nest deeper than %d", depthMax)
	}
	return elems, nil
}

// idMax is the largest owner that a file can have.
const idMax = 1<<32 - 2

func (x *extractor) put(h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	elems, err := elements(h.Name)
	if err != nil {
		return err
	}
	if h.Uid < 0 || h.Uid > idMax || h.Gid < 0 || h.Gid > idMax {
		return refuse("owner %d:%d is none", h.Uid, h.Gid)
	}
	if len(elems) == 0 {
		if h.Typeflag != tar.TypeDir {
			return refuse("it has no name")
		}
		return x.putDir(nil, h)
	}
	if h.Typeflag == tar.TypeDir {
		return x.putDir(elems, h)
	}
	dir, err := x.enter(elems[:len(elems)-1])
	if err != nil {
		return err
	}
	x.tally.Files++
	return x.place(dir, elems[len(elems)-1], h)
}

// place makes all but folders.
func (x *extractor) place(dir *os.File, base string, h *tar.Header) error {
	var err error
	fd := int(dir.Fd())
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return x.putFile(fd, base, h)
	case tar.TypeLink:
		return x.putLink(fd, base, h)
	case tar.TypeSymlink:
		err = unix.Symlinkat(h.Linkname, fd, base)
	case tar.TypeFifo:
		err = unix.Mknodat(fd, base, unix.S_IFIFO|0o600, 0)
	case tar.TypeChar:
		err = unix.Mknodat(fd, base, unix.S_IFCHR|0o600, device(h))
	case tar.TypeBlock:
		err = unix.Mknodat(fd, base, unix.S_IFBLK|0o600, device(h))
	default:
		return refuse("it is of kind %q, which is not known", h.Typeflag)
	}
	if err != nil {
		return twice(err)
	}
	return setMetaAt(fd, base, h)
}

func device(h *tar.Header) int {
	return int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
}

func twice(err error) error {
	if errors.Is(err, unix.EEXIST) {
		return refuse("it is in the archive twice")
	}
	return err
}

// enter opens a folder of the archive, without following any link, and leaves
// those that aren't on its way. A folder without entry of its own is made.
func (x *extractor) enter(elems []string) (*os.File, error) {
	same := 0
	for same < len(elems) && same+1 < len(x.open) && x.open[same+1].name == elems[same] {
		same++
	}
	if err := x.leave(same + 1); err != nil {
		return nil, err
	}
	for _, name := range elems[same:] {
		if err := x.push(name, nil); err != nil {
			return nil, err
		}
	}
	return x.open[len(x.open)-1].f, nil
}

// push opens the folder of that name in the last open one, made if need be.
func (x *extractor) push(name string, h *tar.Header) error {
	parent := int(x.open[len(x.open)-1].f.Fd())
	err := unix.Mkdirat(parent, name, 0o700)
	made := err == nil
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return refuse("%q on its way is no folder", name)
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	if made && h == nil {
		if err := f.Chmod(0o755); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	x.open = append(x.open, folder{name: name, f: f, h: h})
	return nil
}

// leave closes all open folders but the outermost so many, and sets what
// filling them would have changed.
func (x *extractor) leave(keep int) error {
	for len(x.open) > keep {
		last := x.open[len(x.open)-1]
		x.open = x.open[:len(x.open)-1]
		var err error
		if last.h != nil {
			err = setMeta(last.f, last.h, everything)
		}
		if err := errors.Join(err, last.f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// close is leave after an error.
func (x *extractor) close() {
	for _, dir := range x.open {
		dir.f.Close()
	}
}

func (x *extractor) putDir(elems []string, h *tar.Header) error {
	if _, err := x.enter(elems); err != nil {
		return err
	}
	x.open[len(x.open)-1].h = h
	return nil
}

func (x *extractor) putFile(dir int, base string, h *tar.Header) error {
	if h.Size > x.bytesMax-x.tally.Bytes {
		return fmt.Errorf("the files have more than %d bytes, holes counted: %w", x.bytesMax, errdefs.ErrResourceExhausted)
	}
	x.tally.Bytes += h.Size
	fd, err := unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return twice(err)
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	if err := x.fill(f, h.Size); err != nil {
		return badStream(err)
	}
	return setMeta(f, h, everything)
}

// holeBytes is the piece that is left out of a file when it's all zero.
const holeBytes = 64 << 10

var zeros [holeBytes]byte

// fill writes the entry's content to f, with holes for zeros.
func (x *extractor) fill(f *os.File, size int64) error {
	if x.buf == nil {
		x.buf = make([]byte, holeBytes)
	}
	for at := int64(0); at < size; {
		b := x.buf[:min(holeBytes, size-at)]
		if _, err := io.ReadFull(x.tar, b); err != nil {
			return err
		}
		if !slices.Equal(b, zeros[:len(b)]) {
			if _, err := f.WriteAt(b, at); err != nil {
				return err
			}
		}
		at += int64(len(b))
	}
	return f.Truncate(size)
}

// putLink makes a hard link to an earlier entry.
func (x *extractor) putLink(dir int, base string, h *tar.Header) error {
	elems, err := elements(h.Linkname)
	if err != nil {
		return err
	}
	if len(elems) == 0 {
		return refuse("it links to nothing")
	}
	old, err := x.walk(elems[:len(elems)-1])
	if err != nil {
		return refuse("it links to %q, which is not in the archive before it", h.Linkname)
	}
	defer old.Close()
	err = unix.Linkat(int(old.Fd()), elems[len(elems)-1], dir, base, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPERM) {
		return refuse("it links to %q, which is no file in the archive before it", h.Linkname)
	}
	return twice(err)
}

// walk opens a folder without following links, and leaves none.
func (x *extractor) walk(elems []string) (*os.File, error) {
	at, err := reopen(x.open[0].f, unix.O_PATH|unix.O_DIRECTORY)
	for _, name := range elems {
		if err != nil {
			return nil, err
		}
		fd, openErr := unix.Openat(int(at.Fd()), name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		at.Close()
		at, err = os.NewFile(uintptr(fd), name), openErr
	}
	return at, err
}

// setMetaAt is setMeta for what can't be opened.
func setMetaAt(dir int, base string, h *tar.Header) error {
	if err := unix.Fchownat(dir, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "chown", Path: base, Err: err}
	}
	if h.Typeflag != tar.TypeSymlink { // it was made just now, so it is none
		if err := unix.Fchmodat(dir, base, uint32(h.Mode&0o7777), 0); err != nil {
			return &os.PathError{Op: "chmod", Path: base, Err: err}
		}
	}
	self := fmt.Sprintf("/proc/self/fd/%d/%s", dir, base)
	err := writeXattrs(h, everything, func(name string, value []byte) error {
		return unix.Lsetxattr(self, name, value, 0)
	})
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(dir, base, times(h), unix.AT_SYMLINK_NOFOLLOW)
}
