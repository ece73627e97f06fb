package image_test

import (
	"io/fs"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func checkOwner(t *testing.T, path string, mode fs.FileMode, id uint32) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Error(err)
		return
	}
	s := info.Sys().(*syscall.Stat_t)
	if info.Mode().Perm() != mode || s.Uid != id || s.Gid != id {
		t.Errorf("%s: %v %d:%d", path, info.Mode(), s.Uid, s.Gid)
	}
}

func checkXattr(t *testing.T, path, name, want string) {
	t.Helper()
	value := make([]byte, 64)
	n, err := unix.Getxattr(path, name, value)
	if err != nil || string(value[:n]) != want {
		t.Errorf("%s of %s: %q %v", name, path, value[:max(n, 0)], err)
	}
}
