package disk

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A Disk is the disk that we booted from, as the kernel calls it in this boot.
// Its names are never stored.
type Disk struct {
	Name  string // "vda", "nvme0n1"
	Table *Table
	// Copies are other disks with the same ids: copies of this one, or it of them.
	Copies []string
	sysfs  string
}

// Find looks for the disk with the partition of this unique id among those that
// the kernel knows now; NotFound when it isn't there (yet). Copies of a disk have its
// ids: of several it's the one at the place where the firmware booted. When that is
// not told, or no disk is there, it's one that can't be pulled out, and the first by
// its way through the machine, which is the same at each boot. Whatever is chosen,
// nothing of another disk is used beside it.
//
// It's sure unless the firmware names a place and this disk is at another one: then
// the right one may still come.
func Find(sysfs, id string, place Place) (d *Disk, sure bool, err error) {
	entries, _ := os.ReadDir(filepath.Join(sysfs, "block"))
	var found []*Disk
	for _, e := range entries {
		if skip(e.Name()) {
			continue
		}
		d, err := Open(sysfs, e.Name())
		if err != nil {
			continue
		}
		if _, ok := d.Table.ByID(id); ok {
			found = append(found, d)
		}
	}
	if len(found) == 0 {
		return nil, false, fmt.Errorf("disk with partition %s: %w", id, errdefs.ErrNotFound)
	}
	names := make([]string, len(found))
	for i, d := range found {
		names[i] = d.Name
	}
	name, sure := choose(sysfs, names, place)
	d = found[slices.Index(names, name)]
	d.Copies = slices.DeleteFunc(names, func(n string) bool { return n == name })
	return d, sure, nil
}

// choose is one of the disks that carry the same ids.
func choose(sysfs string, names []string, place Place) (name string, sure bool) {
	if place.Known() {
		for _, name := range names {
			if place.Holds(sysfs, name) {
				return name, true
			}
		}
	}
	return slices.MinFunc(names, func(a, b string) int {
		one, _ := Describe(sysfs, a)
		other, _ := Describe(sysfs, b)
		if one.Removable != other.Removable {
			if one.Removable {
				return 1
			}
			return -1
		}
		return cmp.Compare(resolved(filepath.Join(sysfs, "block", a)), resolved(filepath.Join(sysfs, "block", b)))
	}), !place.Known()
}

// skip leaves out what can't be a boot disk.
func skip(name string) bool {
	for _, prefix := range []string{"loop", "ram", "dm-", "zram", "sr", "fd", "md", "nbd"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// Open reads a disk's table.
func Open(sysfs, name string) (*Disk, error) {
	size, err := sysfsUint(sysfs, "block", name, "size")
	if err != nil {
		return nil, err
	}
	sector, err := sysfsUint(sysfs, "block", name, "queue/logical_block_size")
	if err != nil || sector < 512 {
		sector = 512
	}
	f, err := os.Open(filepath.Join("/dev", name))
	if err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	defer f.Close()
	// The kernel counts in units of 512 bytes whatever the sector size is.
	table, err := ReadTable(f, int(sector), size*512/sector)
	if err != nil {
		return nil, fmt.Errorf("disk %q: %w", name, err)
	}
	return &Disk{Name: name, Table: table, sysfs: sysfs}, nil
}

// Path is the device of the disk itself.
func (d *Disk) Path() string { return filepath.Join("/dev", d.Name) }

// Device is the device of one partition; NotFound until the kernel has it.
func (d *Disk) Device(p Partition) (string, error) {
	files, _ := filepath.Glob(filepath.Join(d.sysfs, "block", d.Name, "*", "partition"))
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err == nil && strings.TrimSpace(string(b)) == strconv.Itoa(p.Number) {
			return filepath.Join("/dev", filepath.Base(filepath.Dir(file))), nil
		}
	}
	return "", fmt.Errorf("partition %q of disk %q has no device: %w", p.Name, d.Name, errdefs.ErrNotFound)
}

// DeviceByName is Device of the partition with this name.
func (d *Disk) DeviceByName(name string) (string, error) {
	p, err := d.Table.ByName(name)
	if err != nil {
		return "", fmt.Errorf("disk %q: %w", d.Name, err)
	}
	return d.Device(p)
}

// GrowPERM makes PERM reach to the end of the disk, on disk and in the kernel,
// and repairs a missing or misplaced backup table. It reports whether it wrote.
func (d *Disk) GrowPERM() (bool, error) {
	changed, err := d.Table.Grow(PERM)
	if err != nil || !changed {
		return false, err
	}
	f, err := os.OpenFile(d.Path(), os.O_RDWR, 0)
	if err != nil {
		return false, fmt.Errorf("open disk: %w", err)
	}
	defer f.Close()
	if err := d.Table.Write(f); err != nil {
		return false, fmt.Errorf("disk %q: %w", d.Name, err)
	}
	p, err := d.Table.ByName(PERM)
	if err != nil {
		return true, err
	}
	return true, d.tellKernel(f, p)
}

// A pair of structures of linux/blkpg.h.
type blkpgPartition struct {
	start, length int64 // bytes
	number        int32
	_             [128]byte
}

type blkpgArg struct {
	op, flags, size int32
	_               [4]byte
	data            *blkpgPartition
}

const (
	blkpgIoctl  = 0x1269
	blkpgResize = 3
)

// tellKernel changes a partition's size in the kernel while others are in use.
func (d *Disk) tellKernel(f *os.File, p Partition) error {
	part := &blkpgPartition{
		start:  int64(p.First) * int64(d.Table.Sector),
		length: int64(d.Table.Bytes(p)),
		number: int32(p.Number),
	}
	arg := &blkpgArg{op: blkpgResize, size: int32(unsafe.Sizeof(*part)), data: part}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), blkpgIoctl, uintptr(unsafe.Pointer(arg))); errno != 0 {
		return fmt.Errorf("resize partition %q of disk %q in the kernel: %w", p.Name, d.Name, errno)
	}
	return nil
}

func sysfsUint(parts ...string) (uint64, error) {
	b, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		return 0, fmt.Errorf("ask the kernel about a disk: %w", err)
	}
	return strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
}
