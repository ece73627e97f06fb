package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"capsule/internal/disk"
	"capsule/internal/dm"
)

// copyDevice is vmexec's blank data disk: it takes what is written to snapshots.
const copyDevice = "/dev/vdc"

// Names of our devices.
const (
	snapshotName    = "powercut-disk"
	partitionPrefix = "powercut-part-"
	groupPrefix     = "capsule-"
)

const sectorBytes = 512

// A cutDisk is the disk that a cut left, and the partition PERM of it.
type cutDisk struct {
	control *dm.Control
	path    string // device of the disk
	perm    string // device of the partition, once it was opened
	made    []string
}

func (s *cutDisk) create(base string, size int64) error {
	d, err := s.control.Create(snapshotName, false, dm.Target{
		Sectors: uint64(size) / sectorBytes, Kind: "snapshot", Params: fmt.Sprintf("%s %s N 8", base, copyDevice),
	})
	if err != nil {
		return err
	}
	s.made, s.path = append(s.made, snapshotName), d.Path()
	return nil
}

// openPERM reads the partition table as a start does, brings it in order, and
// gives the partition a device.
func (s *cutDisk) openPERM() error {
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	table, err := readTable(f)
	if err != nil {
		return err
	}
	changed, err := table.Grow(disk.PERM)
	if err == nil && changed {
		err = table.Write(f)
	}
	if err != nil {
		return err
	}
	if _, err := readTable(f); err != nil {
		return err
	}
	s.perm, err = s.partition(table, disk.PERM)
	return err
}

// partition gives a partition a device.
func (s *cutDisk) partition(table *disk.Table, label string) (string, error) {
	p, err := table.ByName(label)
	if err != nil {
		return "", err
	}
	name := partitionPrefix + strings.ToLower(label)
	d, err := s.control.Create(name, false, dm.Target{
		Sectors: p.Last - p.First + 1, Kind: "linear", Params: fmt.Sprintf("%s %d", s.path, p.First),
	})
	if err != nil {
		return "", err
	}
	s.made = append(s.made, name)
	return d.Path(), nil
}

// readTable reads the partition table of a disk.
func readTable(f *os.File) (*disk.Table, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	return disk.ReadTable(f, sectorBytes, uint64(size)/sectorBytes)
}

// remove takes all devices away, first those of the volume group, whatever
// order they need.
func (s *cutDisk) remove() error {
	for {
		names, err := s.control.Names()
		if err != nil {
			return err
		}
		var errs []error
		removed, left := 0, 0
		for _, name := range names {
			if !strings.HasPrefix(name, groupPrefix) {
				continue
			}
			if err := s.control.Remove(name); err != nil {
				errs = append(errs, err)
				left++
				continue
			}
			removed++
		}
		if left == 0 {
			break
		}
		if removed == 0 {
			return errors.Join(errs...)
		}
	}
	var errs []error
	for len(s.made) > 0 {
		last := len(s.made) - 1
		errs = append(errs, s.control.Remove(s.made[last]))
		s.made = s.made[:last]
	}
	// lvm made these; without udev nobody else takes them away.
	return errors.Join(append(errs, os.RemoveAll("/dev/capsule"), removeNodes())...)
}

func removeNodes() error {
	nodes, err := os.ReadDir("/dev/mapper")
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range nodes {
		if strings.HasPrefix(n.Name(), groupPrefix) {
			errs = append(errs, os.Remove("/dev/mapper/"+n.Name()))
		}
	}
	return errors.Join(errs...)
}
