package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// cpioWriter writes an initramfs archive ("newc"), whose entries all belong to
// root and carry no time: https://docs.kernel.org/driver-api/early-userspace/buffer-format.html
type cpioWriter struct {
	w     io.Writer
	size  int64 // bytes written
	inode int
	err   error
}

// Kinds of entries, as in a file's mode.
const (
	cpioDir    = 0o040000
	cpioChar   = 0o020000
	cpioFile   = 0o100000
	cpioLink   = 0o120000
	cpioAlign  = 4
	cpioBlocks = 512 // the archive ends on a whole one
)

// entry writes one entry; mode holds kind and permissions.
func (c *cpioWriter) entry(name string, mode uint32, major, minor int, content []byte) {
	c.inode++
	links := 1
	if mode&cpioDir == cpioDir && mode&cpioFile != cpioFile {
		links = 2
	}
	c.print("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.inode, mode, 0, 0, links, 0, len(content), 0, 0, major, minor, len(name)+1, 0)
	c.print("%s\x00", name)
	c.pad(cpioAlign)
	c.write(content)
	c.pad(cpioAlign)
}

// devices writes the two nodes that a program needs before it can mount /dev.
func (c *cpioWriter) devices() {
	c.entry("dev/console", cpioChar|0o600, 5, 1, nil)
	c.entry("dev/null", cpioChar|0o666, 1, 3, nil)
}

// close ends the archive.
func (c *cpioWriter) close() error {
	c.inode = -1
	c.entry("TRAILER!!!", 0, 0, 0, nil)
	c.pad(cpioBlocks)
	return c.err
}

// tree writes everything below dir, in order.
func (c *cpioWriter) tree(dir string) error {
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		switch permissions := uint32(info.Mode().Perm()); {
		case info.IsDir():
			c.entry(name, cpioDir|permissions, 0, 0, nil)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			c.entry(name, cpioLink|0o777, 0, 0, []byte(target))
		default:
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			c.entry(name, cpioFile|permissions, 0, 0, content)
		}
		return c.err
	})
}

func (c *cpioWriter) print(format string, args ...any) { c.write(fmt.Appendf(nil, format, args...)) }

func (c *cpioWriter) pad(to int64) { c.write(make([]byte, -c.size&(to-1))) }

func (c *cpioWriter) write(content []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(content)
	c.size, c.err = c.size+int64(n), err
}
