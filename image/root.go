package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// rootDirs are empty in the image: mount points and places for links into /run.
var rootDirs = []string{"dev", "perm", "proc", "run", "sys", "tmp", "var", "etc/ssl/certs", "usr/bin", "usr/sbin"}

// rootLinks are the links of the image, by path.
var rootLinks = map[string]string{
	"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64",
	"var/run": "/run", "var/tmp": "/tmp", "var/lock": "/run/lock",
	"etc/resolv.conf":  "/run/capsule/resolv.conf",
	"etc/os-release":   "../usr/lib/os-release",
	"etc/mtab":         "/proc/self/mounts",
	"etc/ssl/cert.pem": "certs/ca-certificates.crt",
}

// rootTexts are small files written here.
func (b *builder) rootTexts() map[string]string {
	return map[string]string{
		"etc/passwd": "root:x:0:0:root:/:/usr/bin/false\n" +
			"nobody:x:65534:65534:nobody:/:/usr/bin/false\n",
		"etc/group":          "root:x:0:\nkvm:x:104:\nnogroup:x:65534:\n",
		"etc/nsswitch.conf":  "passwd: files\ngroup: files\nhosts: files dns\n",
		"etc/hosts":          "127.0.0.1 localhost\n::1 localhost\n",
		"usr/lib/os-release": osRelease(b.version),
	}
}

// osRelease describes the system to tools that look: https://www.freedesktop.org/software/systemd/man/latest/os-release.html
func osRelease(version string) string {
	return fmt.Sprintf("NAME=Capsule\nID=capsule\nID_LIKE=debian\nPRETTY_NAME=\"Capsule %[1]s\"\n"+
		"VERSION=\"%[1]s\"\nVERSION_ID=%[1]s\nIMAGE_ID=capsule\nIMAGE_VERSION=%[1]s\n", version)
}

// rootTree lays out the folder that becomes the root.
func (b *builder) rootTree() error {
	tree := filepath.Join(b.work, "root")
	keys, err := b.trustedKeys()
	if err != nil {
		return err
	}
	k := newKey("root 9", b.lock, keyTexts(keys), b.rootTexts(), rootDirs, rootLinks,
		b.debugTexts(), debugDirs, debugLinks(), list("debug"), list("root"), list("modules"), list("modules-plain"), list("initrd-modules"), list("firmware")).
		tree(filepath.Join(b.work, "bin")).file(b.guestVmlinux()).file(b.initramfs())
	return b.step("root tree", k, []string{tree}, func() error {
		if err := os.RemoveAll(tree); err != nil {
			return err
		}
		fill := []func(tree string) error{
			b.rootSkeleton, b.rootPackages, b.rootDebug, b.rootGo, b.rootGuest, b.rootFirmware, b.rootCertificates, b.rootKeys,
			func(tree string) error {
				return b.installModules(tree, append(list("modules"), list("initrd-modules")...))
			},
		}
		for _, f := range fill {
			if err := f(tree); err != nil {
				return err
			}
		}
		return chmodAll(tree)
	})
}

func (b *builder) rootSkeleton(tree string) error {
	return layFacade(tree, rootDirs, rootLinks, b.rootTexts())
}

// layFacade makes what comes from no package: empty folders, links, small files.
func layFacade(tree string, dirs []string, links, texts map[string]string) error {
	for _, dir := range dirs {
		if err := os.MkdirAll(filepath.Join(tree, dir), 0o755); err != nil {
			return err
		}
	}
	for path, text := range texts {
		path = filepath.Join(tree, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	for path, target := range links {
		if err := os.Symlink(target, filepath.Join(tree, path)); err != nil {
			return err
		}
	}
	return nil
}

// rootPackages copies the listed files of the packages and all that they need.
func (b *builder) rootPackages(tree string) error {
	closure := &fileClosure{tree: b.debian(""), paths: map[string]bool{}}
	for _, path := range list("root") {
		if err := closure.add(path); err != nil {
			return err
		}
	}
	for _, path := range closure.sorted() {
		if err := copyEntry(b.debian(path), filepath.Join(tree, path)); err != nil {
			return err
		}
	}
	return nil
}

// copyEntry copies a file or a link; special bits are dropped.
func copyEntry(from, to string) error {
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink == 0 {
		return copyFile(from, to, info.Mode().Perm())
	}
	target, err := os.Readlink(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.Symlink(target, to)
}

func (b *builder) rootGo(tree string) error {
	for _, name := range append([]string{"containerd", "containerd-shim-runc-v2", "runc", firstStage}, rootPrograms...) {
		if err := copyFile(filepath.Join(b.work, "bin", name), filepath.Join(tree, "usr/bin", name), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// rootGuest puts in what a microVM boots.
func (b *builder) rootGuest(tree string) error {
	for name, from := range map[string]string{"vmlinux": b.guestVmlinux(), "initramfs": b.initramfs()} {
		if err := copyFile(from, filepath.Join(tree, "usr/lib/capsule/guest", name), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (b *builder) rootFirmware(tree string) error {
	const dir = "usr/lib/firmware"
	for _, pattern := range list("firmware") {
		files, err := filepath.Glob(b.debian(filepath.Join(dir, pattern)))
		if err != nil {
			return err
		}
		if len(files) == 0 {
			return fmt.Errorf("no firmware matches %q", pattern)
		}
		for _, file := range files {
			name := strings.TrimPrefix(file, b.debian(""))
			if err := copyEntry(file, filepath.Join(tree, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// rootCertificates joins the certificate authorities into the one file that
// programs read, as the package would do when installed.
func (b *builder) rootCertificates(tree string) error {
	files, err := filepath.Glob(b.debian("usr/share/ca-certificates/mozilla/*.crt"))
	if err != nil {
		return err
	}
	var bundle bytes.Buffer
	for _, file := range files { // Glob sorts
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		bundle.Write(bytes.TrimRight(content, "\n"))
		bundle.WriteByte('\n')
	}
	return os.WriteFile(filepath.Join(tree, "etc/ssl/certs/ca-certificates.crt"), bundle.Bytes(), 0o644)
}
