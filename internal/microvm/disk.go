package microvm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"time"
	"unicode/utf16"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"capsule/internal/durable"
	"capsule/internal/jail"
	"capsule/internal/run"
)

const (
	sectorBytes = 512
	alignment   = mib / sectorBytes // sectors from one partition's start to what may be another's

	// layersMax is what Linux reads of a disk's partitions.
	layersMax = 255

	entryBytes   = 128
	headerBytes  = 92
	entriesLeast = 128 // by the UEFI specification
)

// mkfsMax bounds the making of a file system; it writes a few MiB.
const mkfsMax = 2 * time.Minute

// imageFiles are those of the image's disk beside its layers.
const imageFiles = 2

// imageDisk makes one read-only disk of an image's layers, the lowest first: a
// GPT with a partition for each. Nothing is copied: a descriptor in VMware's
// format, which QEMU reads, tells from which file each part of the disk comes.
// It gives the numbers of all files, the descriptor's first, and the files that
// it made itself, which the caller has to close as well.
func imageDisk(layers []*os.File, files *jail.Files) (numbers []int, made []*os.File, err error) {
	sizes := make([]int64, len(layers))
	for i, l := range layers {
		info, err := l.Stat()
		if err != nil {
			return nil, nil, err
		}
		sizes[i] = info.Size()
	}
	plan, err := planDisk(sizes)
	if err != nil {
		return nil, nil, err
	}
	table, err := memoryFile("table", plan.table())
	if err != nil {
		return nil, nil, err
	}
	number := files.Add(table)
	numbers = append(numbers, 0, number)
	paths := []string{fdPath(number)}
	for _, l := range layers {
		number := files.Add(l)
		numbers, paths = append(numbers, number), append(paths, fdPath(number))
	}
	descriptor, err := memoryFile("descriptor", plan.descriptor(paths))
	if err != nil {
		return nil, nil, errors.Join(err, table.Close())
	}
	numbers[0] = files.Add(descriptor)
	return numbers, []*os.File{table, descriptor}, nil
}

// memoryFile is a file without a name, open for reading only.
func memoryFile(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		return nil, err
	}
	// QEMU takes no file that it could write to for one to be read.
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// part of a disk, in sectors.
type part struct{ start, sectors int64 }

func (p part) end() int64 { return p.start + p.sectors }

// diskPlan is where the layers are on the disk:
//
//	protective MBR, GPT, zeros up to 1 MiB │ layer │ zeros │ layer │ zeros │ GPT again
type diskPlan struct {
	layers  []part
	entries int   // of the partition table
	end     int64 // of the last layer, where the second GPT is
}

func planDisk(sizes []int64) (diskPlan, error) {
	if len(sizes) > layersMax {
		return diskPlan{}, fmt.Errorf("the image has %d layers, a microVM takes %d: %w", len(sizes), layersMax, errdefs.ErrInvalidArgument)
	}
	p := diskPlan{end: alignment, entries: max(entriesLeast, roundUp(len(sizes), sectorBytes/entryBytes))}
	for i, size := range sizes {
		if size <= 0 {
			return diskPlan{}, fmt.Errorf("layer %d of the image is empty: %w", i+1, errdefs.ErrInvalidArgument)
		}
		l := part{p.end, (size + sectorBytes - 1) / sectorBytes}
		p.layers = append(p.layers, l)
		p.end = roundUp(l.end(), alignment)
	}
	return p, nil
}

func roundUp[N int | int64](n, to N) N { return (n + to - 1) / to * to }

func (p diskPlan) entrySectors() int64 { return int64(p.entries) * entryBytes / sectorBytes }

// sectors of the whole disk.
func (p diskPlan) sectors() int64 { return p.end + p.entrySectors() + 1 }

// What the file of the table holds, in sectors: the start of the disk, as many
// zeros, its end.
const (
	zerosAt  = alignment
	secondAt = 2 * alignment
)

// descriptor tells QEMU where the parts of the disk are: in the table's file,
// the first of paths, and in those of the layers.
func (p diskPlan) descriptor(paths []string) []byte {
	var b bytes.Buffer
	// Without an empty line, by which QEMU would take the next one twice.
	b.WriteString("# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentFlat\"\n")
	extent := func(sectors int64, path string, at int64) {
		if sectors > 0 {
			fmt.Fprintf(&b, "RW %d FLAT %q %d\n", sectors, path, at)
		}
	}
	extent(alignment, paths[0], 0)
	for i, l := range p.layers {
		extent(l.sectors, paths[i+1], 0)
		extent(roundUp(l.end(), alignment)-l.end(), paths[0], zerosAt)
	}
	extent(p.sectors()-p.end, paths[0], secondAt)
	return b.Bytes()
}

// table is the content of the table's file.
func (p diskPlan) table() []byte {
	b := make([]byte, (secondAt+p.entrySectors()+1)*sectorBytes)
	p.protect(b)
	entries := p.gptEntries()
	copy(b[sectorBytes:], p.gptHeader(1, p.sectors()-1, 2, entries))
	copy(b[2*sectorBytes:], entries)
	second := b[secondAt*sectorBytes:]
	copy(second, entries)
	copy(second[len(entries):], p.gptHeader(p.sectors()-1, 1, p.end, entries))
	return b
}

// protect writes an MBR that says that the disk is in use.
func (p diskPlan) protect(b []byte) {
	const entry, size, gpt = 446, 12, 0xee
	copy(b[entry:], []byte{0, 0, 2, 0, gpt, 0xff, 0xff, 0xff, 1})
	binary.LittleEndian.PutUint32(b[entry+size:], uint32(min(p.sectors()-1, 0xffffffff))) //nolint:gosec // bounded
	b[510], b[511] = 0x55, 0xaa
}

// guid of this disk (0) or of a partition. They are the same on all disks:
// nobody looks for a layer by it.
func guid(n int) []byte {
	return []byte{0xc5, 0xc5, 0xc5, 0xc5, 0, 0, 0, 0x40, 0x80, 0, 0, 0, 0, 0, 0, byte(n)}
}

// linuxData is the partition type 0FC63DAF-8483-4772-8E79-3D69D8477DE4.
var linuxData = []byte{0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4}

func (p diskPlan) gptEntries() []byte {
	b := make([]byte, p.entries*entryBytes)
	for i, l := range p.layers {
		e := b[i*entryBytes:]
		copy(e, linuxData)
		copy(e[16:], guid(i+1))
		put64(e[32:], l.start)
		put64(e[40:], l.end()-1)
		for j, c := range utf16.Encode([]rune(fmt.Sprintf("layer%d", i+1))) {
			binary.LittleEndian.PutUint16(e[56+2*j:], c)
		}
	}
	return b
}

// gptHeader is the one at that sector; the other one is the other copy.
func (p diskPlan) gptHeader(at, other, entriesAt int64, entries []byte) []byte {
	b := make([]byte, headerBytes)
	copy(b, "EFI PART")
	put32 := func(at int, n uint32) { binary.LittleEndian.PutUint32(b[at:], n) }
	put32(8, 0x10000) // version 1.0
	put32(12, headerBytes)
	put64(b[24:], at)
	put64(b[32:], other)
	put64(b[40:], 2+p.entrySectors()) // first usable sector
	put64(b[48:], p.end-1)            // last usable sector
	copy(b[56:], guid(0))
	put64(b[72:], entriesAt)
	put32(80, uint32(p.entries)) //nolint:gosec // at most 256
	put32(84, entryBytes)
	put32(88, crc32.ChecksumIEEE(entries))
	put32(16, crc32.ChecksumIEEE(b))
	return b
}

func put64(b []byte, n int64) { binary.LittleEndian.PutUint64(b, uint64(n)) } //nolint:gosec // sectors

// makeDisk makes an instance's writable disk, an empty file system in a sparse
// file, unless it is there.
func makeDisk(ctx context.Context, path string, size int64) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	draft := path + ".new"
	err := sparse(draft, size)
	if err == nil {
		err = format(ctx, draft)
	}
	if err != nil {
		return fmt.Errorf("make disk: %w", errors.Join(err, os.Remove(draft)))
	}
	return durable.Rename(draft, path)
}

// sparse makes an empty file with room for size bytes, in place of what a cut left.
func sparse(path string, size int64) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// format makes a file system on the disk for good. Of a sparse file nothing must
// be zeroed, neither now nor by the guest later, which would fill the file.
func format(ctx context.Context, path string) error {
	_, err := run.Output(ctx, mkfsMax, "mkfs.ext4", "-q", "-F", "-m", "0",
		"-E", "assume_storage_prezeroed=1,nodiscard,root_owner=0:0", path)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
