package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// commandLine is what the kernel is started with. The last console is the one that
// PID 1 gets; a panic reboots after 10 s, so that the boot counter can roll back.
// "gpt" makes the kernel use the backup partition table when a cut has spoiled the
// primary one.
func commandLine(root rootImage) string {
	return strings.Join([]string{
		"capsule.verity=" + root.Hash,
		fmt.Sprintf("capsule.verity_offset=%d", root.Offset),
		"console=tty0", "console=ttyS0,115200", "panic=10", "quiet", "gpt",
		"transparent_hugepage=madvise",
	}, " ")
}

// buildUKI joins kernel, first stage, microcode and command line into one file
// that the firmware can start. It gives the file's path.
func (b *builder) buildUKI(root rootImage) (string, error) {
	if err := inOrder(b.initrd, b.microcode); err != nil {
		return "", err
	}
	uki := filepath.Join(b.work, "capsule.efi")
	k := newKey("uki 1", commandLine(root), b.version, b.kernel)
	for _, part := range b.ukiParts() {
		k.file(part)
	}
	return uki, b.step("kernel image", k, []string{uki}, func() error { return b.writeUKI(uki, commandLine(root)) })
}

// ukiParts are the files that a unified kernel image is joined from: stub, kernel,
// initrd and microcode.
func (b *builder) ukiParts() [4]string {
	return [4]string{
		b.debian("usr/lib/systemd/boot/efi/linuxx64.efi.stub"),
		b.debian("boot/vmlinuz-" + b.kernel),
		filepath.Join(b.work, "initrd"),
		filepath.Join(b.work, "microcode.cpio"),
	}
}

func (b *builder) writeUKI(uki, line string) error {
	var read [4][]byte
	for i, path := range b.ukiParts() {
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		read[i] = content
	}
	linux, err := parsePE(read[1])
	if err != nil {
		return fmt.Errorf("parse kernel %s: %w", b.kernel, err)
	}
	image, err := appendSections(read[0], []section{
		{name: ".osrel", data: []byte(osRelease(b.version))},
		{name: ".cmdline", data: []byte(line)},
		{name: ".uname", data: []byte(b.kernel)},
		{name: ".ucode", data: read[3]},
		{name: ".initrd", data: read[2]},
		// Last: an older stub unpacks the kernel over what follows it.
		{name: ".linux", data: read[1], memory: linux.imageSize(), code: true},
	})
	if err != nil {
		return err
	}
	return replaceFile(uki, image)
}

// initrd packs the first stage as /init with the modules that it may need.
func (b *builder) initrd() error {
	path, tree := filepath.Join(b.work, "initrd"), filepath.Join(b.work, "initrd.tree")
	init := filepath.Join(b.work, "bin", firstStage)
	k := newKey("initrd 5", b.lock, list("initrd-modules"), list("modules-plain")).file(init)
	return b.step("initrd", k, []string{path}, func() error {
		if err := os.RemoveAll(tree); err != nil {
			return err
		}
		for _, dir := range []string{"dev", "proc", "sys", "run", "sysroot", "usr/lib"} {
			if err := os.MkdirAll(filepath.Join(tree, dir), 0o755); err != nil {
				return err
			}
		}
		if err := os.Symlink("usr/lib", filepath.Join(tree, "lib")); err != nil {
			return err
		}
		if err := copyFile(init, filepath.Join(tree, "init"), 0o755); err != nil {
			return err
		}
		if err := b.installModules(tree, list("initrd-modules")); err != nil {
			return err
		}
		if err := chmodAll(tree); err != nil {
			return err
		}
		archive, err := packInitrd(tree)
		if err != nil {
			return err
		}
		return replaceFile(path, archive)
	})
}

// packInitrd makes a compressed archive of a tree, with the first device nodes.
func packInitrd(tree string) ([]byte, error) {
	var archive bytes.Buffer
	c := &cpioWriter{w: &archive}
	if err := c.tree(tree); err != nil {
		return nil, err
	}
	c.devices()
	if err := c.close(); err != nil {
		return nil, err
	}
	// One encoder on one core: more would cut the stream by chance of timing.
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	return encoder.EncodeAll(archive.Bytes(), nil), encoder.Close()
}

// microcode joins the updates for Intel and AMD processors into the archive that
// the kernel reads before anything else; it must not be compressed.
func (b *builder) microcode() error {
	path := filepath.Join(b.work, "microcode.cpio")
	return b.step("microcode", newKey("microcode 1", b.lock, list("microcode-not")), []string{path}, func() error {
		intel, err := joinMicrocode(b.debian("usr/lib/firmware/intel-ucode/*"), list("microcode-not"))
		if err != nil {
			return err
		}
		amd, err := joinMicrocode(b.debian("usr/lib/firmware/amd-ucode/*.bin"), nil)
		if err != nil {
			return err
		}
		var archive bytes.Buffer
		c := &cpioWriter{w: &archive}
		for _, dir := range []string{"kernel", "kernel/x86", "kernel/x86/microcode"} {
			c.entry(dir, cpioDir|0o755, 0, 0, nil)
		}
		c.entry("kernel/x86/microcode/GenuineIntel.bin", cpioFile|0o644, 0, 0, intel)
		c.entry("kernel/x86/microcode/AuthenticAMD.bin", cpioFile|0o644, 0, 0, amd)
		if err := c.close(); err != nil {
			return err
		}
		return replaceFile(path, archive.Bytes())
	})
}

// joinMicrocode joins the files that match, each content once: many names differ
// only in the stepping that they are for. Files with one of the prefixes stay out.
func joinMicrocode(pattern string, not []string) ([]byte, error) {
	files, err := filepath.Glob(pattern)
	if err != nil {
		return nil, err
	}
	var joined []byte
	seen := map[[sha256.Size]byte]bool{}
	for _, file := range files {
		if hasAnyPrefix(filepath.Base(file), not) {
			continue
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if sum := sha256.Sum256(content); !seen[sum] {
			seen[sum] = true
			joined = append(joined, content...)
		}
	}
	if len(joined) == 0 {
		return nil, fmt.Errorf("no microcode matches %s", pattern)
	}
	return joined, nil
}

func hasAnyPrefix(name string, prefixes []string) bool {
	for _, prefix := range prefixes {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// replaceFile writes a new file in place of the old one, which keeps its content
// for who has it open or linked.
func replaceFile(path string, content []byte) error {
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o644)
}
