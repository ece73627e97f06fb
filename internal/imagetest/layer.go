// Package imagetest makes images for tests, byte by byte and in every form
// that people have, a registry to pull them from, and a containerd to put
// them in. It has no part in the product.
package imagetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Compression of a layer or of a whole archive.
type Compression string

// What images come in.
const (
	Plain Compression = ""
	Gzip  Compression = "gzip"
	Zstd  Compression = "zstd"
)

// Time is the modification time of everything made here, so that equal calls
// give equal bytes.
var Time = time.Unix(1_700_000_000, 0)

// Layer is a layer under construction. Its methods add entries in order and
// return it.
type Layer struct {
	Compression Compression
	// MediaType overrides what follows from the compression.
	MediaType string

	buf  bytes.Buffer
	tar  *tar.Writer
	pax  map[string]string // of the next entry
	uid  int
	gid  int
	done bool
}

// NewLayer returns an empty layer, compressed with gzip.
func NewLayer() *Layer {
	l := &Layer{Compression: Gzip}
	l.tar = tar.NewWriter(&l.buf)
	return l
}

// Owner sets the owner of the entries that follow.
func (l *Layer) Owner(uid, gid int) *Layer {
	l.uid, l.gid = uid, gid
	return l
}

// Xattr gives the next entry an extended attribute.
func (l *Layer) Xattr(name, value string) *Layer {
	return l.PAX("SCHILY.xattr."+name, value)
}

// PAX gives the next entry a PAX record.
func (l *Layer) PAX(key, value string) *Layer {
	if l.pax == nil {
		l.pax = map[string]string{}
	}
	l.pax[key] = value
	return l
}

// Entry adds an entry as it is, but for owner, time and records.
func (l *Layer) Entry(h tar.Header, data []byte) *Layer {
	h.Uid, h.Gid, h.ModTime, h.Size = l.uid, l.gid, Time, int64(len(data))
	if l.pax != nil {
		h.PAXRecords, h.Format = l.pax, tar.FormatPAX
		l.pax = nil
	}
	if err := l.tar.WriteHeader(&h); err != nil {
		panic(fmt.Sprintf("imagetest: entry %q: %v", h.Name, err))
	}
	if _, err := l.tar.Write(data); err != nil {
		panic(fmt.Sprintf("imagetest: entry %q: %v", h.Name, err))
	}
	return l
}

// File adds a file.
func (l *Layer) File(name string, mode int64, data string) *Layer {
	return l.Entry(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, []byte(data))
}

// Dir adds a folder.
func (l *Layer) Dir(name string, mode int64) *Layer {
	return l.Entry(tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimSuffix(name, "/") + "/", Mode: mode}, nil)
}

// Symlink adds a symbolic link.
func (l *Layer) Symlink(name, target string) *Layer {
	return l.Entry(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil)
}

// Link adds a hard link to an entry before it.
func (l *Layer) Link(name, target string) *Layer {
	return l.Entry(tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}, nil)
}

// Whiteout hides a name of the layers below.
func (l *Layer) Whiteout(name string) *Layer {
	dir, base := "", name
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		dir, base = name[:i+1], name[i+1:]
	}
	return l.File(dir+".wh."+base, 0o600, "")
}

// Opaque hides all that the layers below have in a folder.
func (l *Layer) Opaque(dir string) *Layer {
	return l.File(strings.TrimSuffix(dir, "/")+"/.wh..wh..opq", 0o600, "")
}

// Sparse adds a file of the apparent size whose first bytes are data and the
// rest a hole, in the PAX 1.0 form of GNU tar.
func (l *Layer) Sparse(name string, apparent int64, data string) *Layer {
	if err := l.tar.Flush(); err != nil {
		panic(fmt.Sprintf("imagetest: entry %q: %v", name, err))
	}
	records := paxRecord("GNU.sparse.major", "1") + paxRecord("GNU.sparse.minor", "0") +
		paxRecord("GNU.sparse.name", name) + paxRecord("GNU.sparse.realsize", fmt.Sprint(apparent))
	// Two extents: the data, and an empty one that marks the end.
	extents := fmt.Sprintf("2\n0\n%d\n%d\n0\n", len(data), apparent)
	body := pad(extents) + data
	l.raw('x', "PaxHeaders/"+name, records)
	l.raw('0', "GNUSparseFile.0/"+name, body)
	return l
}

// raw adds one ustar entry that tar.Writer would refuse.
func (l *Layer) raw(kind byte, name, body string) {
	var block [512]byte
	copy(block[0:100], name)
	copy(block[100:], fmt.Sprintf("%07o\x00%07o\x00%07o\x00%011o\x00%011o\x00", 0o644, l.uid, l.gid, len(body), Time.Unix()))
	copy(block[148:156], "        ")
	block[156] = kind
	copy(block[257:], "ustar\x0000")
	sum := 0
	for _, b := range block {
		sum += int(b)
	}
	copy(block[148:156], fmt.Sprintf("%06o\x00 ", sum))
	l.buf.Write(block[:])
	l.buf.WriteString(pad(body))
}

// pad fills up to a whole number of tar blocks.
func pad(s string) string {
	return s + strings.Repeat("\x00", (512-len(s)%512)%512)
}

// paxRecord is "LENGTH KEY=VALUE\n", where the length counts itself.
func paxRecord(key, value string) string {
	n := len(key) + len(value) + 3
	for size := n; ; size++ {
		if record := fmt.Sprintf("%d %s=%s\n", size, key, value); len(record) == size {
			return record
		}
	}
}

// Tar returns the layer's uncompressed bytes; nothing can be added after.
func (l *Layer) Tar() []byte {
	if !l.done {
		if err := l.tar.Close(); err != nil {
			panic(fmt.Sprintf("imagetest: layer: %v", err))
		}
		l.done = true
	}
	return l.buf.Bytes()
}

// DiffID is the digest of the uncompressed layer.
func (l *Layer) DiffID() digest.Digest { return digest.FromBytes(l.Tar()) }

// Blob returns the layer's bytes as they are distributed.
func (l *Layer) Blob() []byte { return Compress(l.Tar(), l.Compression) }

// mediaType of the blob in a docker or OCI manifest.
func (l *Layer) mediaType(docker bool) string {
	switch {
	case l.MediaType != "":
		return l.MediaType
	case docker && l.Compression == Gzip:
		return "application/vnd.docker.image.rootfs.diff.tar.gzip"
	case docker && l.Compression == Plain:
		return "application/vnd.docker.image.rootfs.diff.tar"
	case l.Compression == Plain:
		return ocispec.MediaTypeImageLayer
	}
	return ocispec.MediaTypeImageLayer + "+" + string(l.Compression)
}

// Compress compresses bytes, the same way each time.
func Compress(data []byte, c Compression) []byte {
	var buf bytes.Buffer
	switch c {
	case Gzip:
		w := gzip.NewWriter(&buf)
		finish(w, data)
	case Zstd:
		w, err := zstd.NewWriter(&buf, zstd.WithEncoderConcurrency(1))
		if err != nil {
			panic(fmt.Sprintf("imagetest: zstd: %v", err))
		}
		finish(w, data)
	default:
		return data
	}
	return buf.Bytes()
}

// finish writes all of a compressed stream; memory takes everything.
func finish(w io.WriteCloser, data []byte) {
	_, err := w.Write(data)
	if err = errors.Join(err, w.Close()); err != nil {
		panic(fmt.Sprintf("imagetest: compress: %v", err))
	}
}
