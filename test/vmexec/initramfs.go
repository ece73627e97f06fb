package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// newc is a writer of the kernel's initramfs format (cpio "newc",
// Documentation/driver-api/early-userspace/buffer-format.rst).
type newc struct {
	w   io.Writer
	ino int
	err error
}

func (c *newc) entry(name string, mode uint32, data []byte, major, minor int) {
	if c.err != nil {
		return
	}
	c.ino++
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.ino, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)
	for len(head)%4 != 0 {
		head += "\x00"
	}
	if _, c.err = io.WriteString(c.w, head); c.err == nil {
		_, c.err = c.w.Write(data)
	}
	if pad := (4 - len(data)%4) % 4; c.err == nil && pad > 0 {
		_, c.err = c.w.Write(make([]byte, pad))
	}
}

func (c *newc) dir(name string)                         { c.entry(name, 0o40755, nil, 0, 0) }
func (c *newc) file(name string, perm uint32, b []byte) { c.entry(name, 0o100000|perm, b, 0, 0) }
func (c *newc) char(name string, major, minor int)      { c.entry(name, 0o20600, nil, major, minor) }
func (c *newc) copy(name, path string, perm uint32) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	c.file(name, perm, b)
	return c.err
}

// writeInitramfs packs the init, the modules that reach the root, the test
// binary, its arguments and the package's testdata.
func writeInitramfs(path, binary string, args []string, images string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	init, err := build(filepath.Dir(path), "capsule/test/vmexec/init")
	if err != nil {
		return err
	}
	payload, err := build(filepath.Dir(path), "capsule/internal/imagetest/payload")
	if err != nil {
		return err
	}
	// The image's own initrd comes first: it has the modules that reach a disk.
	initrd, err := os.ReadFile(filepath.Join(images, "initrd"))
	if err != nil {
		return fmt.Errorf("%w; run make image", err)
	}
	if _, err := f.Write(initrd); err != nil {
		return err
	}
	for pad := (4 - len(initrd)%4) % 4; pad > 0; pad-- {
		if _, err := f.Write([]byte{0}); err != nil {
			return err
		}
	}
	c := &newc{w: f}
	c.dir("dev")
	c.char("dev/console", 5, 1)
	c.char("dev/null", 1, 3)
	if err := c.copy("init", init, 0o755); err != nil {
		return err
	}
	c.dir("vmexec")
	c.dir("vmexec/pkg")
	if err := c.copy("vmexec/pkg/test", binary, 0o755); err != nil {
		return err
	}
	if err := c.copy("vmexec/pkg/payload", payload, 0o755); err != nil {
		return err
	}
	c.file("vmexec/args", 0o644, []byte(strings.Join(append([]string{"/vmexec/pkg/test"}, args[1:]...), "\x00")))
	c.file("vmexec/env", 0o644, []byte(strings.Join(passedEnv(), "\x00")))
	if err := c.tree("testdata", "vmexec/pkg/testdata"); err != nil {
		return err
	}
	c.entry("TRAILER!!!", 0, nil, 0, 0)
	return c.err
}

// passedEnv is what of the environment tests may read.
func passedEnv() []string {
	var env []string
	for _, e := range os.Environ() {
		if strings.HasPrefix(e, "CAPSULE_") {
			env = append(env, e)
		}
	}
	return env
}

func (c *newc) tree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) && path == from {
			return nil
		}
		if err != nil {
			return err
		}
		name := to + strings.TrimPrefix(path, from)
		if d.IsDir() {
			c.dir(name)
			return c.err
		}
		return c.copy(name, path, 0o644)
	})
}

// build compiles a static program for the guest.
func build(dir, pkg string) (string, error) {
	out := filepath.Join(dir, filepath.Base(pkg))
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", pkg, err, b)
	}
	return out, nil
}
