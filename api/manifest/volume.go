package manifest

import (
	"fmt"
	"time"

	capsulev1 "capsule/api/capsule/v1"
)

// Limits of what a volume may declare.
const (
	VolumeMin       = 32 << 20 // bytes; less can't hold a file system with its journal
	VolumeMax       = 16 << 40 // bytes; the largest ext4 with blocks of 4 KiB
	extentBytes     = 4 << 20  // sizes are whole numbers of the volume group's extents
	everyMin        = 10 * time.Minute
	everyMax        = 365 * 24 * time.Hour
	keepMax         = 100
	keepDefault     = 7
	volumeSizeField = "size"
)

// RoundUp makes a volume's size, within VolumeMax, a whole number of extents.
func RoundUp(sizeBytes int64) int64 {
	return (sizeBytes + extentBytes - 1) / extentBytes * extentBytes
}

// defaultVolume is Default for a volume.
func defaultVolume(s *capsulev1.VolumeSpec) (notes []string) {
	if size := s.GetSize(); size > 0 && size <= VolumeMax && size != RoundUp(size) {
		s.Size = RoundUp(size)
		notes = append(notes, fmt.Sprintf("size %s (%d bytes) is rounded up to %d bytes, whole extents of %s",
			FormatSize(size), size, s.Size, FormatSize(extentBytes)))
	}
	if schedule := s.GetSnapshots(); schedule != nil && schedule.Keep == 0 {
		schedule.Keep = keepDefault
	}
	return notes
}

func (c *check) volume(s *capsulev1.VolumeSpec) {
	switch size := s.GetSize(); {
	case size == 0:
		c.add(volumeSizeField, "size is missing; want one such as \"10GiB\"")
	case size < VolumeMin || size > VolumeMax:
		c.add(volumeSizeField, "size must be within %s and %s, found %d bytes", FormatSize(VolumeMin), FormatSize(VolumeMax), size)
	}
	schedule := s.GetSnapshots()
	if schedule == nil {
		return
	}
	switch every := schedule.GetEvery(); {
	case every == nil:
		c.add("snapshots.every", "snapshots.every is missing; want the time between two such as \"24h\"")
	case !every.IsValid() || every.AsDuration() < everyMin || every.AsDuration() > everyMax:
		c.add("snapshots.every", "snapshots.every must be within %s and %s", formatDuration(everyMin), formatDuration(everyMax))
	}
	if schedule.GetKeep() > keepMax {
		c.add("snapshots.keep", "snapshots.keep must be within 1 and %d", keepMax)
	}
}
