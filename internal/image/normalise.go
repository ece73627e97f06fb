package image

import (
	"archive/tar"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// normaliser copies the tar of a layer so that mkfs.erofs makes of it what
// containers expect. It differs from the tar in these points:
//   - Sparse files are written as what they appear to be: mkfs.erofs knows none.
//   - Folders that the layer implies get the attributes that they have in the
//     layers below, because overlayfs shows those of the topmost.
//   - An entry below a symbolic link of the same layer goes where that points.
//   - Nothing can speak to overlayfs but the whiteouts of the format.
//   - What is too large is refused before any of it is written.
type normaliser struct {
	out     *tar.Writer
	free    func() (int64, error)
	lower   lower
	seen    map[string]bool   // paths of the layer; folders true
	links   map[string]string // symbolic links of the layer
	entries int
	bytes   int64
}

func newNormaliser(out io.Writer, free func() (int64, error), below lower) *normaliser {
	return &normaliser{
		out: tar.NewWriter(out), free: free, lower: below,
		seen: map[string]bool{"": true}, links: map[string]string{},
	}
}

// linksMax bounds how many symbolic links one path may lead through, as Linux
// does.
const linksMax = 40

// resolve cleans a path and follows the layer's own symbolic links in the
// folders above it. Nothing leads out of the root.
func (n *normaliser) resolve(name string) (string, error) {
	rest := strings.Split(strings.TrimPrefix(path.Clean("/"+name), "/"), "/")
	at, followed := "", 0
	for len(rest) > 1 {
		at, rest = path.Join(at, rest[0]), rest[1:]
		target, ok := n.links[at]
		if !ok {
			continue
		}
		if followed++; followed > linksMax {
			return "", fmt.Errorf("entry %q leads through too many links: %w", name, errdefs.ErrInvalidArgument)
		}
		if !path.IsAbs(target) {
			target = path.Join("/", path.Dir(at), target)
		}
		clean := strings.TrimPrefix(path.Clean(target), "/")
		at = ""
		if clean != "" {
			rest = append(strings.Split(clean, "/"), rest...)
		}
	}
	return path.Join(at, rest[0]), nil
}

// note remembers an entry for those after it.
func (n *normaliser) note(name string, h *tar.Header) {
	n.seen[name] = h.Typeflag == tar.TypeDir
	delete(n.links, name)
	if h.Typeflag == tar.TypeSymlink {
		n.links[name] = h.Linkname
	}
}

func (n *normaliser) copy(in *tar.Reader) error {
	for {
		h, err := in.Next()
		if err == io.EOF {
			return n.out.Close()
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := n.entry(h, in); err != nil {
			return err
		}
	}
}

// entry copies one entry.
func (n *normaliser) entry(h *tar.Header, data io.Reader) error {
	name, err := n.resolve(h.Name)
	if err != nil {
		return err
	}
	base := path.Base(name)
	if strings.HasPrefix(base, ".wh..wh.") && base != opaqueMarker || strings.Contains(name, ".wh..wh.plnk/") {
		return nil // of the aufs file system itself
	}
	if base == ".wh." || base == ".wh.." || base == ".wh..." {
		return fmt.Errorf("entry %q hides no name: %w", h.Name, errdefs.ErrInvalidArgument)
	}
	if err := n.room(h); err != nil {
		return err
	}
	if err := n.parents(path.Dir(name)); err != nil {
		return err
	}
	clean, err := cleanHeader(h, name)
	if err != nil {
		return err
	}
	if clean.Typeflag == tar.TypeLink {
		if clean.Linkname, err = n.resolve(h.Linkname); err != nil {
			return err
		}
		if folder, ok := n.seen[clean.Linkname]; !ok || folder {
			return fmt.Errorf("entry %q is a hard link to %q, which the layer lacks: %w", h.Name, h.Linkname, errdefs.ErrInvalidArgument)
		}
	}
	if !strings.HasPrefix(base, ".wh.") {
		n.note(name, clean)
	}
	if err := n.out.WriteHeader(clean); err != nil {
		return fmt.Errorf("entry %q: %w", h.Name, err)
	}
	if clean.Size == 0 {
		return nil
	}
	_, err = io.Copy(n.out, data)
	return err
}

// opaqueMarker in a folder hides what the layers below have there.
const opaqueMarker = ".wh..wh..opq"

// room refuses an entry that is too much, before any of it is written.
func (n *normaliser) room(h *tar.Header) error {
	n.entries++
	if n.entries > entriesMax {
		return fmt.Errorf("has more than %d entries: %w", entriesMax, errdefs.ErrInvalidArgument)
	}
	if h.Size > expandedMax-n.bytes {
		return fmt.Errorf("%q expands to %s, the limit is %s for a layer: %w", h.Name, size(h.Size), size(expandedMax), errdefs.ErrInvalidArgument)
	}
	n.bytes += h.Size
	free, err := n.free()
	if err != nil {
		return err
	}
	if h.Size*spreadFactor > free-spaceReserve {
		return fmt.Errorf("%q needs %s, the image store has %s free: %w", h.Name, size(h.Size), size(max(0, free-spaceReserve)/spreadFactor), errdefs.ErrResourceExhausted)
	}
	return nil
}

// parents adds the folders above an entry that the layer left out, as they are
// in the layers below: overlayfs shows the attributes of the topmost.
func (n *normaliser) parents(dir string) error {
	if dir == "." || dir == "/" {
		return nil
	}
	if known, ok := n.seen[dir]; ok && known {
		return nil
	}
	if err := n.parents(path.Dir(dir)); err != nil {
		return err
	}
	n.seen[dir] = true
	h := n.lower.folder(dir)
	h.Typeflag, h.Name, h.Format = tar.TypeDir, dir+"/", tar.FormatPAX
	return n.out.WriteHeader(&h)
}

// cleanHeader keeps of a header what a file system can have.
func cleanHeader(h *tar.Header, name string) (*tar.Header, error) {
	clean := &tar.Header{
		Typeflag: h.Typeflag, Name: name, Linkname: h.Linkname, Size: h.Size,
		Mode: h.Mode & 0o7777, Uid: h.Uid, Gid: h.Gid, ModTime: h.ModTime,
		Devmajor: h.Devmajor, Devminor: h.Devminor, Format: tar.FormatPAX,
	}
	switch h.Typeflag {
	case tar.TypeReg, '\x00', tar.TypeCont, tar.TypeGNUSparse:
		clean.Typeflag = tar.TypeReg
	case tar.TypeDir:
		clean.Name += "/"
		if name == "" {
			clean.Name = "./"
		}
	case tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
	default:
		return nil, fmt.Errorf("entry %q has the unknown type %q: %w", h.Name, h.Typeflag, errdefs.ErrInvalidArgument)
	}
	if name == "" && clean.Typeflag != tar.TypeDir {
		return nil, fmt.Errorf("entry %q is no folder: %w", h.Name, errdefs.ErrInvalidArgument)
	}
	if clean.Typeflag != tar.TypeReg {
		clean.Size = 0
	}
	if clean.ModTime.IsZero() {
		clean.ModTime = time.Unix(0, 0)
	}
	clean.PAXRecords = xattrs(h.PAXRecords)
	return clean, nil
}

// xattrs keeps the extended attributes, but those that overlayfs obeys.
func xattrs(records map[string]string) map[string]string {
	kept := map[string]string{}
	for key, value := range records {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if ok && !strings.HasPrefix(name, "trusted.overlay.") && !strings.HasPrefix(name, "user.overlay.") {
			kept[key] = value
		}
	}
	return kept
}
