package image

import (
	"archive/tar"
	"io/fs"
	"os"
	"time"

	"github.com/erofs/go-erofs"
)

// lower are the layer files below one, topmost first.
type lower []string

// folder returns the attributes that a folder has in the layers below, or
// those of a new one. What can't be read counts as absent: the mount of such a
// layer fails loudly enough.
func (l lower) folder(dir string) tar.Header {
	fresh := tar.Header{Mode: 0o755, ModTime: time.Unix(0, 0)}
	for _, file := range l {
		h, exists := entryIn(file, dir)
		if !exists {
			continue
		}
		if h.Typeflag != tar.TypeDir {
			break // hidden, or something else
		}
		return h
	}
	return fresh
}

// entryIn reads the attributes of a path in one layer file.
func entryIn(file, name string) (h tar.Header, exists bool) {
	f, err := os.Open(file)
	if err != nil {
		return h, false
	}
	defer f.Close()
	image, err := erofs.Open(f)
	if err != nil {
		return h, false
	}
	info, err := fs.Lstat(image, name)
	if err != nil {
		return h, false
	}
	if !info.IsDir() {
		return h, true
	}
	h.Typeflag, h.Mode, h.ModTime = tar.TypeDir, unixMode(info.Mode()), info.ModTime()
	if s, ok := info.Sys().(*erofs.Stat); ok {
		h.Uid, h.Gid = int(s.UID), int(s.GID)
		h.PAXRecords = map[string]string{}
		for key, value := range s.Xattrs {
			h.PAXRecords["SCHILY.xattr."+key] = value
		}
		h.PAXRecords = xattrs(h.PAXRecords)
	}
	return h, true
}

// unixMode is a mode as in a tar header. The reader of EROFS leaves the bits
// beyond the permissions where the file system has them.
func unixMode(m fs.FileMode) int64 {
	mode := int64(m & 0o7777)
	for bit, unix := range map[fs.FileMode]int64{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&bit != 0 {
			mode |= unix
		}
	}
	return mode
}
