package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// builder holds the places and the identity of one build.
type builder struct {
	ctx   context.Context
	repo  string // top of the source tree
	out   string // results
	work  string // intermediate trees, safe to delete
	cache string // packages and keys of finished steps

	version   string // of this source tree
	buildUnix int64  // seconds since 1970 of the built commit
	mirror    string // Debian mirror, "" for that of the machine's apt
	update    bool   // look for newer packages
	seed      string // PEM file for the ESP, "" for none
	bundle    bool   // build the update bundle too
	release   bool   // trust no development key
	signWith  string // key file for the bundle, "" for the one that goes without saying

	lock   []debPackage // exact packages, sorted by name
	kernel string       // release, as in /usr/lib/modules
}

func newBuilder(ctx context.Context, repo, out string) (*builder, error) {
	out, err := filepath.Abs(out)
	if err != nil {
		return nil, err
	}
	b := &builder{ctx: ctx, repo: repo, out: out, work: filepath.Join(out, "work"), cache: filepath.Join(out, "cache")}
	if b.version, b.buildUnix, err = sourceVersion(ctx, repo); err != nil {
		return nil, err
	}
	for _, dir := range []string{b.work, filepath.Join(b.cache, "steps")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// exclusive waits until no other build uses the same folders.
func (b *builder) exclusive() (unlock func(), err error) { return b.lockFolders(unix.LOCK_EX) }

// lockFolders is exclusive, or shared with others who only read.
func (b *builder) lockFolders(how int) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(b.cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		fmt.Println("waiting for another build in", b.out)
		if err := unix.Flock(int(f.Fd()), how); err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
		}
	}
	return func() { _ = f.Close() }, nil // closing unlocks; nothing was written
}

// build makes all outputs, cheapest to check first.
func (b *builder) build() error {
	start := time.Now()
	fmt.Printf("capsule %s\n", b.version)
	root, err := b.buildRoot()
	if err != nil {
		return err
	}
	kernel, err := b.buildUKI(root)
	if err != nil {
		return err
	}
	if err := b.buildDisk(root, kernel); err != nil {
		return err
	}
	if b.bundle {
		if err := b.buildBundle(root, kernel); err != nil {
			return err
		}
	}
	if err := b.writeSBOM(); err != nil {
		return err
	}
	if err := b.publish(root, kernel); err != nil {
		return err
	}
	if err := checkBudgets([]budget{
		{"root with verity", root.Path, rootBudget},
		{"unified kernel image", kernel, ukiBudget},
	}); err != nil {
		return err
	}
	fmt.Printf("built in %.1f s\n", time.Since(start).Seconds())
	return nil
}

// buildRoot makes the root image with its hash tree from packages and sources.
func (b *builder) buildRoot() (rootImage, error) {
	if err := inOrder(b.hostPackages, b.resolve, b.download); err != nil {
		return rootImage{}, err
	}
	return b.assemble()
}

// assemble makes the root image from packages that are here.
func (b *builder) assemble() (rootImage, error) {
	if err := inOrder(b.unpack, b.plainModules, b.guestKernel, b.goPrograms, b.guestInitramfs, b.rootTree); err != nil {
		return rootImage{}, err
	}
	return b.packRoot()
}

// inOrder runs steps until one fails.
func inOrder(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// publish puts the results under their public names and takes away those of the
// build before, so that the folder holds one version.
func (b *builder) publish(root rootImage, uki string) error {
	results := map[string]string{
		"root-" + b.version + ".erofs":  root.Path,
		"capsule-" + b.version + ".efi": uki,
		"vmlinuz":                       b.debian("boot/vmlinuz-" + b.kernel),
		"initrd":                        filepath.Join(b.work, "initrd"),
		"ovmf-code.fd":                  b.debian("usr/share/OVMF/OVMF_CODE_4M.fd"),
		"ovmf-vars.fd":                  b.debian("usr/share/OVMF/OVMF_VARS_4M.fd"),
		"guest/vmlinux":                 b.guestVmlinux(),
		"guest/initramfs":               b.initramfs(),
	}
	if err := os.MkdirAll(filepath.Join(b.out, "guest"), 0o755); err != nil {
		return err
	}
	for name, from := range results {
		if err := replaceByLink(from, filepath.Join(b.out, name)); err != nil {
			return err
		}
	}
	return removeOthers(b.out, []string{"root-*.erofs", "capsule-*.efi"}, results)
}

// removeOthers takes away files of earlier versions.
func removeOthers(dir string, patterns []string, keep map[string]string) error {
	for _, pattern := range patterns {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		for _, file := range files {
			if _, ok := keep[filepath.Base(file)]; ok {
				continue
			}
			if err := os.Remove(file); err != nil {
				return err
			}
		}
	}
	return nil
}

// debian is a path inside the unpacked packages.
func (b *builder) debian(path string) string { return filepath.Join(b.work, "debian", path) }
