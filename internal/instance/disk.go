package instance

import (
	"fmt"

	"golang.org/x/sys/unix"

	"capsule/internal/workload"
)

// What an instance may keep outside of its mounts when nobody said so: DiskDefault, but
// no more than the diskPart of the file system that it is kept in, so that one alone
// can't fill it.
const (
	DiskDefault = 10 << 30 // bytes
	diskPart    = 4
)

// filesPart is the part of a file system's files that an instance may keep in it.
const filesPart = 4

// DiskBound is how many bytes an instance may keep below dir outside of its mounts,
// and how many files where it shares the file system with others.
func DiskBound(r workload.Resources, dir string) (bytes, files int64, err error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, 0, fmt.Errorf("size of the file system of %s: %w", dir, err)
	}
	return diskBytes(r.DiskBytes, int64(fs.Blocks)*fs.Bsize), int64(fs.Files) / filesPart, nil //nolint:gosec // sizes
}

func diskBytes(wanted, room int64) int64 {
	if wanted > 0 {
		return wanted
	}
	return min(DiskDefault, room/diskPart)
}
