package main

import (
	"bytes"
	"os"
	"path/filepath"
)

// initramfs is what the kernel of a microVM unpacks and runs.
func (b *builder) initramfs() string { return filepath.Join(b.work, "guest", "initramfs") }

// guestInitramfs packs the guest's agent as the only program of the initramfs.
func (b *builder) guestInitramfs() error {
	agent := filepath.Join(b.work, "bin", guestAgent)
	return b.step("guest initramfs", newKey("guest initramfs 1").file(agent), []string{b.initramfs()}, func() error {
		init, err := os.ReadFile(agent)
		if err != nil {
			return err
		}
		archive, err := packInitramfs(init)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(b.initramfs()), 0o755); err != nil {
			return err
		}
		return replaceFile(b.initramfs(), archive)
	})
}

// packInitramfs makes an archive that is not compressed: an emulated processor takes
// longer to unpack it than the host to read what was saved.
func packInitramfs(init []byte) ([]byte, error) {
	var archive bytes.Buffer
	c := &cpioWriter{w: &archive}
	c.entry("dev", cpioDir|0o755, 0, 0, nil)
	c.devices()
	c.entry("init", cpioFile|0o755, 0, 0, init)
	err := c.close()
	return archive.Bytes(), err
}
