// Package fat writes FAT32 volumes: once, each file in one piece, to a file or to a
// partition with whatever old content. It reads none and changes none. The format is
// that of Microsoft's FAT specification, 1.03.
package fat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/containerd/errdefs"
)

const (
	fatCluster      = 4096 // bytes
	fatReserved     = 32   // sectors before the first table
	fatTables       = 2
	fatInfoSector   = 1
	fatBackupSector = 6
	fatRoot         = 2 // first cluster
	fatMinClusters  = 65525
	fatMedia        = 0x0ffffff8
	fatEnd          = 0x0fffffff
	fatEntrySize    = 32
	fatLongChars    = 13 // UTF-16 units in one long-name entry

	fatAttrLabel = 0x08
	fatAttrDir   = 0x10
	fatAttrFile  = 0x20
	fatAttrLong  = 0x0f
)

// A Volume is where a file system is made and what is told of it.
type Volume struct {
	Out    io.WriterAt // starts at the volume
	Bytes  int64
	Sector int    // bytes, those of the disk: 512 or 4096
	Hidden uint32 // sectors before the volume on its disk
	Serial uint32
	Label  string
	When   time.Time // of every file
}

// A File is one of the volume's files. Its folders are made.
type File struct {
	Path    string
	Content io.ReaderAt
	Bytes   int64
}

// Text is a file with this content.
func Text(path string, content []byte) File {
	return File{Path: path, Content: bytes.NewReader(content), Bytes: int64(len(content))}
}

// layout is the volume while it is laid out.
type layout struct {
	Volume
	perCluster   uint32 // sectors
	tableSectors uint32
	table        []uint32 // the allocation table, as far as it is used
}

// node is a file or a folder.
type node struct {
	name     string
	dir      bool
	children []*node
	content  io.ReaderAt
	size     int64
	first    uint32 // cluster, 0 for an empty file
}

// add puts a file into the tree, with its folders.
func (n *node) add(name string, file File) {
	first, rest, more := strings.Cut(strings.TrimPrefix(name, "/"), "/")
	i := slices.IndexFunc(n.children, func(c *node) bool { return c.name == first })
	if i < 0 {
		i = len(n.children)
		n.children = append(n.children, &node{name: first, dir: more})
	}
	if more {
		n.children[i].add(rest, file)
		return
	}
	n.children[i].content, n.children[i].size = file.Content, file.Bytes
}

// Write makes the volume with these files. All that counts is written, so that no
// old content shows through.
func Write(volume Volume, files []File) error {
	if volume.Sector != 512 && volume.Sector != fatCluster {
		return fmt.Errorf("write FAT32: sectors of %d bytes: %w", volume.Sector, errdefs.ErrNotImplemented)
	}
	root := &node{}
	for _, file := range files {
		root.add(file.Path, file)
	}
	v := &layout{Volume: volume, perCluster: uint32(fatCluster / volume.Sector)}
	return v.write(root)
}

func (v *layout) write(root *node) error {
	sectors := uint32(v.Bytes / int64(v.Sector))
	// One table entry is 4 bytes; the tables take room from what they describe.
	clusters := (sectors - fatReserved) / v.perCluster
	v.tableSectors = (clusters+2)*4/uint32(v.Sector) + 1
	clusters = (sectors - fatReserved - fatTables*v.tableSectors) / v.perCluster
	if clusters < fatMinClusters {
		return fmt.Errorf("write FAT32: %d clusters, at least %d are needed: %w", clusters, fatMinClusters, errdefs.ErrInvalidArgument)
	}
	v.table = []uint32{fatMedia, fatEnd}
	root.dir = true
	if err := v.place(root); err != nil {
		return err
	}
	if used := uint32(len(v.table)) - 2; used > clusters {
		return fmt.Errorf("write FAT32: files need %d clusters, the volume has %d: %w", used, clusters, errdefs.ErrResourceExhausted)
	}
	if err := v.writeTree(root, root); err != nil {
		return err
	}
	return v.writeTables(sectors, clusters)
}

// place gives clusters to a node and all below it.
func (v *layout) place(n *node) error {
	size := n.size
	if n.dir {
		size = int64(v.dirSize(n))
	}
	if size > 0 {
		n.first = uint32(len(v.table))
		count := uint32((size + fatCluster - 1) / fatCluster)
		for i := range count - 1 {
			v.table = append(v.table, n.first+i+1)
		}
		v.table = append(v.table, fatEnd)
	}
	for _, child := range n.children {
		if child.name == "" || len(utf16.Encode([]rune(child.name))) > 255 {
			return fmt.Errorf("write FAT32: bad name %q", child.name)
		}
		if err := v.place(child); err != nil {
			return err
		}
	}
	return nil
}

// dirSize is the size of a folder: its own two entries or the label, those of the
// children, and one that ends it.
func (v *layout) dirSize(n *node) int {
	entries := 3
	for _, child := range n.children {
		entries += 1 + longEntries(child.name)
	}
	return entries * fatEntrySize
}

// longEntries is how many extra entries a name needs.
func longEntries(name string) int {
	if _, ok := plainShortName(name); ok {
		return 0
	}
	return (len(utf16.Encode([]rune(name))) + fatLongChars - 1) / fatLongChars
}

// writeTree writes a node's clusters and those of all below it.
func (v *layout) writeTree(n, parent *node) error {
	content, size := n.content, n.size
	if n.dir {
		entries := v.dirContent(n, parent)
		content, size = bytes.NewReader(entries), int64(len(entries))
	}
	if size > 0 {
		at := fatReserved + fatTables*int64(v.tableSectors) + int64(n.first-fatRoot)*int64(v.perCluster)
		if err := v.copy(content, size, at*int64(v.Sector)); err != nil {
			return fmt.Errorf("write FAT32: %q: %w", n.name, err)
		}
	}
	for _, child := range n.children {
		if err := v.writeTree(child, n); err != nil {
			return err
		}
	}
	return nil
}

// copyBytes of a file are in memory at once.
const copyBytes = 1 << 20

// copy writes whole clusters, the last one with zeros at its end.
func (v *layout) copy(content io.ReaderAt, size, to int64) error {
	buffer := make([]byte, copyBytes)
	for at := int64(0); at < size; at += copyBytes {
		n := min(copyBytes, size-at)
		if got, err := content.ReadAt(buffer[:n], at); int64(got) < n {
			return errors.Join(err, io.ErrUnexpectedEOF)
		}
		whole := (n + fatCluster - 1) / fatCluster * fatCluster
		clear(buffer[n:whole])
		if _, err := v.Out.WriteAt(buffer[:whole], to+at); err != nil {
			return err
		}
	}
	return nil
}

func (v *layout) dirContent(n, parent *node) []byte {
	var out bytes.Buffer
	if n == parent {
		out.Write(v.entry(padded(v.Label, 11), fatAttrLabel, 0, 0))
	} else {
		up := parent.first
		if up == fatRoot {
			up = 0 // the root is written so
		}
		out.Write(v.entry(padded(".", 11), fatAttrDir, n.first, 0))
		out.Write(v.entry(padded("..", 11), fatAttrDir, up, 0))
	}
	taken := map[string]bool{}
	for _, child := range n.children {
		short, plain := plainShortName(child.name)
		if !plain {
			short = shortName(child.name, taken)
			out.Write(longName(child.name, short))
		}
		taken[short] = true
		attr := byte(fatAttrFile)
		if child.dir {
			attr = fatAttrDir
		}
		out.Write(v.entry(short, attr, child.first, int(child.size)))
	}
	// A whole cluster: an old one on the disk must not show through behind the end.
	return append(out.Bytes(), make([]byte, -out.Len()&(fatCluster-1))...)
}

// entry is one folder entry under a name of eleven bytes.
func (v *layout) entry(short string, attr byte, first uint32, size int) []byte {
	when := v.When.UTC()
	date := uint16(max(when.Year()-1980, 0)<<9 | int(when.Month())<<5 | when.Day())
	clock := uint16(when.Hour()<<11 | when.Minute()<<5 | when.Second()/2)
	e := make([]byte, fatEntrySize)
	copy(e, short)
	e[11] = attr
	binary.LittleEndian.PutUint16(e[14:], clock)
	binary.LittleEndian.PutUint16(e[16:], date)
	binary.LittleEndian.PutUint16(e[18:], date)
	binary.LittleEndian.PutUint16(e[20:], uint16(first>>16))
	binary.LittleEndian.PutUint16(e[22:], clock)
	binary.LittleEndian.PutUint16(e[24:], date)
	binary.LittleEndian.PutUint16(e[26:], uint16(first))
	binary.LittleEndian.PutUint32(e[28:], uint32(size))
	return e
}

const shortChars = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"

// plainShortName gives the eleven bytes of a name that needs no long form.
func plainShortName(name string) (string, bool) {
	base, ext, _ := strings.Cut(name, ".")
	if base == "" || len(base) > 8 || len(ext) > 3 || strings.Trim(base+ext, shortChars) != "" {
		return "", false
	}
	for _, r := range base + ext {
		if !strings.ContainsRune(shortChars, r) {
			return "", false
		}
	}
	return padded(base, 8) + padded(ext, 3), true
}

// shortName makes one up for a long name: CAPSUL~1EFI.
func shortName(name string, taken map[string]bool) string {
	keep := func(s string, most int) string {
		s = strings.Map(func(r rune) rune {
			if !strings.ContainsRune(shortChars, r) {
				return -1
			}
			return r
		}, strings.ToUpper(s))
		return s[:min(len(s), most)]
	}
	ext := path.Ext(name)
	base := strings.TrimSuffix(name, ext)
	for n := 1; ; n++ {
		tail := fmt.Sprintf("~%d", n)
		short := padded(keep(base, 8-len(tail))+tail, 8) + padded(keep(ext, 3), 3)
		if !taken[short] {
			return short
		}
	}
}

// longName is the entries that carry a long name, last part first.
func longName(name, short string) []byte {
	var sum byte
	for i := range len(short) {
		sum = sum>>1 + sum<<7 + short[i]
	}
	units := utf16.Encode([]rune(name))
	count := longEntries(name)
	if len(units) < count*fatLongChars {
		units = append(units, 0)
	}
	for len(units) < count*fatLongChars {
		units = append(units, 0xffff)
	}
	var out []byte
	for n := count; n > 0; n-- {
		e := make([]byte, fatEntrySize)
		e[0], e[11], e[13] = byte(n), fatAttrLong, sum
		if n == count {
			e[0] |= 0x40
		}
		for i, unit := range units[(n-1)*fatLongChars : n*fatLongChars] {
			at := [fatLongChars]int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30}[i]
			binary.LittleEndian.PutUint16(e[at:], unit)
		}
		out = append(out, e...)
	}
	return out
}

// writeTables writes the boot sector, the free-space hint, their copies, and both
// allocation tables: all of them, since what they don't use must be zero.
func (v *layout) writeTables(sectors, clusters uint32) error {
	head := make([]byte, fatReserved*v.Sector)
	boot := v.bootSector(sectors)
	info := head[fatInfoSector*v.Sector:]
	copy(info, "RRaA")
	copy(info[484:], "rrAa")
	binary.LittleEndian.PutUint32(info[488:], clusters+2-uint32(len(v.table)))
	binary.LittleEndian.PutUint32(info[492:], uint32(len(v.table)))
	info[510], info[511] = 0x55, 0xaa
	copy(head, boot)
	copy(head[fatBackupSector*v.Sector:], boot)
	copy(head[(fatBackupSector+fatInfoSector)*v.Sector:], info[:v.Sector])
	table := make([]byte, int(v.tableSectors)*v.Sector)
	for i, next := range v.table {
		binary.LittleEndian.PutUint32(table[4*i:], next)
	}
	for i, content := range [][]byte{head, table, table} {
		at := fatReserved*min(i, 1) + int(v.tableSectors)*max(i-1, 0)
		if _, err := v.Out.WriteAt(content, int64(at)*int64(v.Sector)); err != nil {
			return err
		}
	}
	return nil
}

func (v *layout) bootSector(sectors uint32) []byte {
	s := make([]byte, v.Sector)
	copy(s, "\xeb\x58\x90CAPSULE ")
	binary.LittleEndian.PutUint16(s[11:], uint16(v.Sector))
	s[13] = byte(v.perCluster)
	binary.LittleEndian.PutUint16(s[14:], fatReserved)
	s[16] = fatTables
	s[21] = byte(fatMedia & 0xff)
	binary.LittleEndian.PutUint16(s[24:], 63)  // sectors per track, for show
	binary.LittleEndian.PutUint16(s[26:], 255) // heads, for show
	binary.LittleEndian.PutUint32(s[28:], v.Hidden)
	binary.LittleEndian.PutUint32(s[32:], sectors)
	binary.LittleEndian.PutUint32(s[36:], v.tableSectors)
	binary.LittleEndian.PutUint32(s[44:], fatRoot)
	binary.LittleEndian.PutUint16(s[48:], fatInfoSector)
	binary.LittleEndian.PutUint16(s[50:], fatBackupSector)
	s[64], s[66] = 0x80, 0x29
	binary.LittleEndian.PutUint32(s[67:], v.Serial)
	copy(s[71:], padded(v.Label, 11))
	copy(s[82:], "FAT32   ")
	s[510], s[511] = 0x55, 0xaa
	return s
}

func padded(s string, size int) string { return s + strings.Repeat(" ", size-len(s)) }
