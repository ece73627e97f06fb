//go:build unix

package main

import (
	"io/fs"
	"syscall"
)

type inode struct{ device, number uint64 }

// linked gives a file's identity when it has several names.
func linked(info fs.FileInfo) (inode, bool) {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok || s.Nlink < 2 {
		return inode{}, false
	}
	return inode{uint64(s.Dev), uint64(s.Ino)}, true //nolint:unconvert,gosec // differs by system
}
