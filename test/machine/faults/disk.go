package faults

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"capsule/internal/run"
)

// FlipBit changes the lowest bit of a byte; a second time it is as it was.
func FlipBit(f interface {
	io.ReaderAt
	io.WriterAt
}, at int64) error {
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		return err
	}
	b[0] ^= 1
	_, err := f.WriteAt(b[:], at)
	return err
}

// superblockEnd is an offset in the first block of a root that EROFS doesn't use, and
// that is read with the superblock: what finds a change there is dm-verity.
const superblockEnd = 4000

// extent is a line of dump.erofs: number, where in the file, how much of it, and
// where in the image that is, with how many bytes.
var extent = regexp.MustCompile(`(?m)^ *\d+: +\d+\.\. *\d+ \| +\d+ : +(\d+)\.\. *(\d+) \|`)

// InRoot finds a byte that reading a file of a root needs, in the middle of the file;
// "" is the superblock. The root starts at the offset start of the image, and so
// does what is found. packages is the tree of packages that the image was built with.
func InRoot(ctx context.Context, packages, image string, start int64, file string) (int64, error) {
	if file == "" {
		return start + superblockEnd, nil
	}
	const dumpMax = time.Minute
	out, err := run.Output(ctx, dumpMax, filepath.Join(packages, "usr/lib64/ld-linux-x86-64.so.2"),
		"--library-path", filepath.Join(packages, "usr/lib/x86_64-linux-gnu"), filepath.Join(packages, "usr/bin/dump.erofs"),
		"-e", "--path="+file, "--offset="+strconv.FormatInt(start, 10), image)
	if err != nil {
		return 0, err
	}
	extents := extent.FindAllSubmatch(out, -1)
	if len(extents) == 0 {
		return 0, fmt.Errorf("no extents of %s in:\n%s", file, out)
	}
	at, err := strconv.ParseInt(string(extents[len(extents)/2][1]), 10, 64)
	return start + at, err
}

// fat is a FAT32 volume. Format: Microsoft's FAT specification, 1.03.
type fat struct {
	f                   *os.File
	start               int64 // of the volume, bytes
	sector, cluster     int64 // bytes
	tables, tableSize   int64 // number, bytes of each
	table, data, fsinfo int64 // where they are, bytes
	root                uint32
	next                []uint32 // by cluster
}

const (
	fatEnd       = 0x0fffffff
	fatLast      = 0x0ffffff8 // from here on all are ends
	fatUnknown   = 0xffffffff // of how much is free
	fatMask      = 0x0fffffff
	fatFirst     = 2
	fatEntry     = 32
	fatDeleted   = 0xe5
	fatSizeMax   = 1<<32 - 1
	fatShortName = 11
)

func openFAT(f *os.File, start int64) (*fat, error) {
	b := make([]byte, 512)
	if _, err := f.ReadAt(b, start); err != nil {
		return nil, err
	}
	if string(b[82:87]) != "FAT32" {
		return nil, fmt.Errorf("no FAT32 at %d", start)
	}
	le := binary.LittleEndian
	v := &fat{f: f, start: start, sector: int64(le.Uint16(b[11:])), tables: int64(b[16]), root: le.Uint32(b[44:])}
	v.cluster = v.sector * int64(b[13])
	v.tableSize = int64(le.Uint32(b[36:])) * v.sector
	v.table = start + int64(le.Uint16(b[14:]))*v.sector
	v.data = v.table + v.tables*v.tableSize
	v.fsinfo = start + int64(le.Uint16(b[48:]))*v.sector
	raw := make([]byte, v.tableSize)
	if _, err := f.ReadAt(raw, v.table); err != nil {
		return nil, err
	}
	clusters := (start + int64(le.Uint32(b[32:]))*v.sector - v.data) / v.cluster
	v.next = make([]uint32, min(clusters+fatFirst, v.tableSize/4))
	return v, binary.Read(bytes.NewReader(raw), le, v.next)
}

// FillFAT makes a file in the top folder of the FAT32 volume that starts at the
// offset start: so large that only so many bytes stay free, rounded down to clusters.
// Its content is what is there, so that a sparse image stays one.
func FillFAT(f *os.File, start int64, name string, free int64) error {
	v, err := openFAT(f, start)
	if err != nil {
		return err
	}
	var unused []uint32
	for i, next := range v.next[fatFirst:] {
		if next&fatMask == 0 {
			unused = append(unused, uint32(i+fatFirst))
		}
	}
	take := int64(len(unused)) - free/v.cluster
	if take <= 0 || take*v.cluster > fatSizeMax {
		return fmt.Errorf("%d bytes are free, which can't become %d by one file more", int64(len(unused))*v.cluster, free)
	}
	chain := unused[:take]
	for i, cluster := range chain[1:] {
		v.next[chain[i]] = cluster
	}
	v.next[chain[take-1]] = fatEnd
	if err := v.enter(name, chain[0], uint32(take*v.cluster)); err != nil {
		return err
	}
	return v.writeTables(uint32(int64(len(unused)) - take))
}

// EmptyFAT removes a file with a short name from the top folder of a FAT32 volume, and
// frees what it holds.
func EmptyFAT(f *os.File, start int64, name string) error {
	v, err := openFAT(f, start)
	if err != nil {
		return err
	}
	short, err := shortName(name)
	if err != nil {
		return err
	}
	at, e, err := v.find(func(e []byte) bool { return string(e[:fatShortName]) == short })
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	cluster := uint32(binary.LittleEndian.Uint16(e[20:]))<<16 | uint32(binary.LittleEndian.Uint16(e[26:]))
	for cluster >= fatFirst && cluster&fatMask < fatLast {
		cluster, v.next[cluster] = v.next[cluster], 0
	}
	if _, err := f.WriteAt([]byte{fatDeleted}, at); err != nil {
		return err
	}
	return v.writeTables(fatUnknown)
}

// enter writes the file's entry over the first unused one of the top folder.
func (v *fat) enter(name string, first, size uint32) error {
	short, err := shortName(name)
	if err != nil {
		return err
	}
	if _, _, err := v.find(func(e []byte) bool { return string(e[:fatShortName]) == short }); err == nil {
		return fmt.Errorf("%s is there already", name)
	}
	at, _, err := v.find(func(e []byte) bool { return e[0] == 0 || e[0] == fatDeleted })
	if err != nil {
		return fmt.Errorf("enter %s: %w", name, err)
	}
	e := make([]byte, fatEntry)
	copy(e, short)
	e[11] = 0x20 // a file
	binary.LittleEndian.PutUint16(e[20:], uint16(first>>16))
	binary.LittleEndian.PutUint16(e[26:], uint16(first))
	binary.LittleEndian.PutUint32(e[28:], size)
	_, err = v.f.WriteAt(e, at)
	return err
}

// find gives the first entry of the top folder that is right, and where it is.
func (v *fat) find(right func(e []byte) bool) (at int64, e []byte, err error) {
	dir := make([]byte, v.cluster)
	for cluster := v.root; cluster&fatMask < fatLast; cluster = v.next[cluster] {
		at := v.data + int64(cluster-fatFirst)*v.cluster
		if _, err := v.f.ReadAt(dir, at); err != nil {
			return 0, nil, err
		}
		for i := 0; i < len(dir); i += fatEntry {
			if e := dir[i : i+fatEntry]; right(e) {
				return at + int64(i), e, nil
			}
		}
	}
	return 0, nil, errors.New("no such entry in the top folder")
}

// shortName is a name of the oldest form as it stands in a folder, in capitals.
func shortName(name string) (string, error) {
	if !regexp.MustCompile(`^[A-Z0-9_-]{1,8}\.[A-Z0-9_-]{1,3}$`).MatchString(strings.ToUpper(name)) {
		return "", fmt.Errorf("name %q: want at most 8 letters and digits, a dot, and at most 3", name)
	}
	name = strings.ToUpper(name)
	short := slices.Repeat([]byte{' '}, fatShortName)
	base, ext := name[:len(name)-len(filepath.Ext(name))], filepath.Ext(name)[1:]
	copy(short, base)
	copy(short[8:], ext)
	return string(short), nil
}

// writeTables writes all copies of the table, and how many clusters are left.
func (v *fat) writeTables(free uint32) error {
	var raw bytes.Buffer
	_ = binary.Write(&raw, binary.LittleEndian, v.next) // into memory
	for i := range v.tables {
		if _, err := v.f.WriteAt(raw.Bytes(), v.table+i*v.tableSize); err != nil {
			return err
		}
	}
	const freeAt = 488 // then comes where to look for more
	hint := binary.LittleEndian.AppendUint32(nil, free)
	_, err := v.f.WriteAt(append(hint, 0xff, 0xff, 0xff, 0xff), v.fsinfo+freeAt)
	return err
}
