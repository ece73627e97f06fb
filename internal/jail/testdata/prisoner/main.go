// Prisoner tries what a jail must not allow, prints each that it could do, and
// ends with status 7 once its file 3 does.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

func main() {
	for what, try := range map[string]func() error{
		"write the root":         func() error { return os.WriteFile("/new", nil, 0o600) },
		"write a mount":          func() error { return os.WriteFile("/data/new", nil, 0o600) },
		"chmod a mount":          func() error { return os.Chmod("/data/file", 0o777) },
		"remount":                func() error { return syscall.Mount("", "/", "", syscall.MS_REMOUNT, "") },
		"mount":                  func() error { return syscall.Mount("none", "/data", "tmpfs", 0, "") },
		"become root":            func() error { return syscall.Setuid(0) },
		"make a device":          func() error { return syscall.Mknod("/dev/disk", syscall.S_IFCHR|0o600, 0) },
		"see processes":          func() error { _, err := os.Stat("/proc/self"); return err },
		"see the host":           func() error { _, err := os.Stat("/etc"); return err },
		"use a link":             useLink,
		"make a namespace":       func() error { return syscall.Unshare(syscall.CLONE_NEWNET) },
		"reach the host's files": func() error { _, err := os.Stat("/data/below/file"); return err },
	} {
		if err := try(); err == nil {
			fmt.Println("it can", what)
		}
	}
	for _, path := range []string{"/dev/null", "/dev/zero"} {
		if f, err := os.OpenFile(path, os.O_RDWR, 0); err != nil {
			fmt.Println(err)
		} else if err := f.Close(); err != nil {
			fmt.Println(err)
		}
	}
	_ = filepath.WalkDir("/", func(path string, _ os.DirEntry, err error) error {
		fmt.Println(path, err)
		return nil
	})
	fmt.Println("end")
	_, _ = io.Copy(io.Discard, os.NewFile(3, "wait"))
	os.Exit(7)
}

func useLink() error {
	links, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Flags&net.FlagUp != 0 {
			return nil
		}
	}
	return os.ErrNotExist
}
