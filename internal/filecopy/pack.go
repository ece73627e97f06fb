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
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// depthMax bounds how deep folders may nest.
	depthMax = 512
	// linksMax bounds the memory for hard links of one copy; further links
	// become files of their own.
	linksMax = 100_000
	// linksMaxAll is that for an archive, which may not become larger than what
	// it's of.
	linksMaxAll = 300_000
	xattrMax    = 64 << 10 // of one value, XATTR_SIZE_MAX
	xattrs      = "SCHILY.xattr."
	sparsePad   = 64 << 10
)

// Tally is what an archive holds: all but folders, and the bytes of the files.
type Tally struct {
	Files uint64
	Bytes int64
}

// Pack writes the file or folder at source inside the root as a tar stream.
func Pack(root *Root, source string, w io.Writer) error {
	flags := unix.O_PATH | unix.O_NOFOLLOW
	if wantsDir(source) {
		flags = unix.O_PATH | unix.O_DIRECTORY
	}
	top, err := root.Open(source, flags, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("copy %q: no such file or folder: %w", source, errdefs.ErrNotFound)
	case errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("copy %q: not a folder: %w", source, errdefs.ErrInvalidArgument)
	case err != nil:
		return fmt.Errorf("copy: %w", err)
	}
	defer top.Close()
	p := &packer{tar: tar.NewWriter(w), links: map[inode]*link{}, linksMax: linksMax}
	if err := p.add(top, Base(source), 0); err != nil {
		return fmt.Errorf("copy %q: %w", source, err)
	}
	return p.tar.Close()
}

// PackAll writes the whole content of root, and the owner, mode, time and
// attributes of the folder itself, for Extract to make anew: beyond Pack also
// devices, and attributes that count on this machine only. It refuses files of
// more than bytesMax bytes together, holes counted.
func PackAll(root *Root, w *tar.Writer, bytesMax int64) (Tally, error) {
	top, err := root.Open(".", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return Tally{}, err
	}
	defer top.Close()
	p := &packer{tar: w, links: map[inode]*link{}, linksMax: linksMaxAll, all: true, bytesMax: bytesMax}
	err = p.add(top, ".", 0)
	return p.tally, err
}

type inode struct{ dev, ino uint64 }

// link is a file of which more names may follow.
type link struct {
	name string
	left uint64 // names that were not met yet
}

type packer struct {
	tar      *tar.Writer
	links    map[inode]*link
	linksMax int
	all      bool // PackAll
	bytesMax int64
	tally    Tally
}

// add writes the entry of f, an O_PATH descriptor, and all below it.
func (p *packer) add(f *os.File, name string, depth int) error {
	if depth > depthMax {
		return fmt.Errorf("%q: folders nest deeper than %d: %w", name, depthMax, errdefs.ErrInvalidArgument)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	h := header(name, &st)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return p.addFile(f, h, &st)
	case unix.S_IFDIR:
		return p.addDir(f, h, depth)
	}
	kept, err := p.special(f, h, &st)
	if !kept || err != nil {
		return err
	}
	if p.all {
		if err := readXattrs(f, h, everything); err != nil {
			return err
		}
	}
	p.tally.Files++
	return p.tar.WriteHeader(h)
}

// special completes the header of what is neither file nor folder, and tells
// whether it's kept.
func (p *packer) special(f *os.File, h *tar.Header, st *unix.Stat_t) (kept bool, err error) {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(f.Fd()), "", target)
		if err != nil {
			return false, err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, string(target[:n])
		return true, nil
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
		return true, nil
	case unix.S_IFCHR:
		h.Typeflag = tar.TypeChar
	case unix.S_IFBLK:
		h.Typeflag = tar.TypeBlock
	default: // a socket means nothing without its program
		return false, nil
	}
	h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	return p.all, nil // a device of this machine means nothing on another
}

func header(name string, st *unix.Stat_t) *tar.Header {
	return &tar.Header{
		Format:  tar.FormatPAX,
		Name:    name,
		Mode:    int64(st.Mode & 0o7777),
		Uid:     int(st.Uid),
		Gid:     int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()),
	}
}

// reopen turns an O_PATH descriptor into one that can be read, without
// resolving a name again.
func reopen(f *os.File, flags int) (*os.File, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: f.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func (p *packer) addFile(path *os.File, h *tar.Header, st *unix.Stat_t) error {
	p.tally.Files++
	key := inode{st.Dev, st.Ino}
	if first, ok := p.links[key]; ok {
		if first.left--; first.left == 0 {
			delete(p.links, key)
		}
		h.Typeflag, h.Linkname = tar.TypeLink, first.name
		return p.tar.WriteHeader(h)
	}
	if st.Nlink > 1 && len(p.links) < p.linksMax {
		p.links[key] = &link{name: h.Name, left: uint64(st.Nlink) - 1}
	}
	p.tally.Bytes += st.Size
	if p.bytesMax > 0 && p.tally.Bytes > p.bytesMax {
		return fmt.Errorf("files of more than %d bytes, holes counted: %w", p.bytesMax, errdefs.ErrResourceExhausted)
	}
	f, err := reopen(path, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	h.Typeflag, h.Size = tar.TypeReg, st.Size
	if err := readXattrs(f, h, p.kept()); err != nil {
		return err
	}
	if err := p.tar.WriteHeader(h); err != nil {
		return err
	}
	return copyFile(p.tar, f, st.Size)
}

// copyFile writes size bytes of f, without reading its holes. What a file lost
// meanwhile is made up with zeros.
func copyFile(w io.Writer, f *os.File, size int64) error {
	for at := int64(0); at < size; {
		start, end := nextData(f, at, size)
		if err := pad(w, start-at); err != nil {
			return err
		}
		n, err := io.Copy(w, io.NewSectionReader(f, start, end-start))
		if err != nil {
			return err
		}
		if err := pad(w, end-start-n); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// nextData is the first piece of f from at on that is no hole; where that can't
// be told, all the rest.
func nextData(f *os.File, at, size int64) (start, end int64) {
	start, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return size, size
	}
	if err != nil || start < at {
		return at, size
	}
	end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
	if err != nil || end <= start {
		end = size
	}
	return min(start, size), min(end, size)
}

func pad(w io.Writer, n int64) error {
	zeros := make([]byte, min(n, sparsePad))
	for n > 0 {
		m, err := w.Write(zeros[:min(n, int64(len(zeros)))])
		if err != nil {
			return err
		}
		n -= int64(m)
	}
	return nil
}

func (p *packer) addDir(dirPath *os.File, h *tar.Header, depth int) error {
	dir, err := reopen(dirPath, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer dir.Close()
	name := h.Name
	h.Typeflag, h.Name = tar.TypeDir, name+"/"
	if err := readXattrs(dir, h, p.kept()); err != nil {
		return err
	}
	if err := p.tar.WriteHeader(h); err != nil {
		return err
	}
	entries, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := p.addEntry(dir, entry, path.Join(name, entry), depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) addEntry(dir *os.File, entry, name string, depth int) error {
	fd, err := unix.Openat(int(dir.Fd()), entry, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) { // removed meanwhile
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	return p.add(f, name, depth)
}

// readXattrs adds those attributes of f, which may be O_PATH, that are kept.
func readXattrs(f *os.File, h *tar.Header, kept func(string) bool) error {
	self := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	names := make([]byte, xattrMax)
	n, err := unix.Listxattr(self, names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "list attributes of", Path: h.Name, Err: err}
	}
	var value []byte
	for name := range strings.SplitSeq(string(names[:n]), "\x00") {
		if !kept(name) {
			continue
		}
		if value == nil {
			value = make([]byte, xattrMax)
		}
		n, err := unix.Getxattr(self, name, value)
		if err != nil {
			continue // gone meanwhile, or not for us to read
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrs+escapeXattr.Replace(name)] = string(value[:n])
	}
	return nil
}

// A name of an attribute as key of a record, which has no "=": as GNU tar does.
var (
	escapeXattr   = strings.NewReplacer("%", "%25", "=", "%3D")
	unescapeXattr = strings.NewReplacer("%25", "%", "%3D", "=")
)

// kept picks the attributes that the packer takes.
func (p *packer) kept() func(string) bool {
	if p.all {
		return everything
	}
	return portable
}

// portable tells whether an attribute is copied: those of users, and the
// capabilities of programs.
func portable(name string) bool {
	return strings.HasPrefix(name, "user.") || name == "security.capability"
}

// everything is portable for copies that come back to a capsule: also access
// lists, and what only root sees.
func everything(name string) bool {
	return portable(name) || strings.HasPrefix(name, "trusted.") || strings.HasPrefix(name, "system.posix_acl_")
}
