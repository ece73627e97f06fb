package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"capsule/internal/run"
)

const (
	fetchMax    = 15 * time.Minute // one call of apt
	installMax  = 30 * time.Minute // all packages' own scripts
	makeDiskMax = 5 * time.Minute

	archives = "var/cache/apt/archives" // below the guest's root
)

// debianRecipe is a Debian on a disk: all that it is made of.
type debianRecipe struct {
	Name     string // of its folder below the cache
	Packages []string
	Files    map[string]string // that are added to the packages'
	Services []string          // that are enabled beside those that the packages enable
	DiskMB   int
}

// debianGuest is what a Debian needs for its sshd to answer, and nothing more: no
// cloud-init, no network.
var debianGuest = debianRecipe{
	Name:     "debian",
	Packages: []string{"systemd-sysv", "udev", "dbus", "openssh-server", "initramfs-tools", "linux-image-cloud-amd64", "zstd"},
	Files:    debianFiles,
	Services: []string{"bench.service"},
	DiskMB:   2048,
}

var debianFiles = map[string]string{
	"etc/hostname": "debian\n",
	"etc/fstab":    "/dev/vda / ext4 defaults 0 1\n",
	"etc/systemd/system/bench.service": `[Unit]
Description=Tell when sshd answers
After=ssh.service

[Service]
Type=oneshot
ExecStart=/bin/bash /etc/bench

[Install]
WantedBy=multi-user.target
`,
	// The banner shows that it answers. Priority 2 comes to the console although it
	// is "quiet".
	"etc/bench": `read -r banner < /dev/tcp/127.0.0.1/22
init=$(systemctl show -P UserspaceTimestampMonotonic)
serves=$(systemctl show -P ActiveEnterTimestampMonotonic ssh.service)
echo "<2>bench: init=$init serves=$serves banner=$banner" > /dev/kmsg
systemctl reboot --force --force
`,
}

// debian is what was made of a recipe.
type debian struct {
	Kernel, Initramfs, Disk string
	Packages                string // file with the name, version and size of each package
}

// debian makes a disk once and keeps it below the cache.
func (b *bench) debian(ctx context.Context, r debianRecipe) (debian, error) {
	dir := filepath.Join(b.repository, "build/cache", r.Name)
	d := debian{filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd.img"), filepath.Join(dir, "disk.img"), filepath.Join(dir, "packages")}
	stamp := filepath.Join(dir, "made-of")
	recipe := fmt.Sprintf("%x\n", sha256.Sum256(fmt.Appendf(nil, "2 %q %q %q %d", r.Packages, r.Files, r.Services, r.DiskMB)))
	if made, err := os.ReadFile(stamp); err == nil && string(made) == recipe {
		return d, nil
	}
	if os.Getuid() != 0 {
		return d, fmt.Errorf("the Debian %q is installed in a chroot: run this as root once", r.Name)
	}
	sources := filepath.Join(b.repository, "build/cache/apt/etc/sources.list")
	if _, err := os.Stat(sources); err != nil {
		return d, fmt.Errorf("%w; make image writes it", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return d, err
	}
	fmt.Fprintf(os.Stderr, "bench: make the Debian %q, once\n", r.Name)
	m := &debianMaker{ctx: ctx, recipe: r, root: filepath.Join(dir, "root"), apt: filepath.Join(dir, "apt"), sources: sources}
	if err := m.make(d); err != nil {
		return d, fmt.Errorf("make the Debian %q: %w", r.Name, err)
	}
	return d, os.WriteFile(stamp, []byte(recipe), 0o644)
}

type debianMaker struct {
	ctx     context.Context
	recipe  debianRecipe
	root    string
	apt     string // of its own
	sources string // of packages, which the image's builder wrote
}

func (m *debianMaker) make(d debian) error {
	for _, step := range []func() error{m.fetch, m.unpack, m.install} {
		if err := step(); err != nil {
			return err
		}
	}
	for _, boot := range []struct{ pattern, to string }{{"boot/vmlinuz-*", d.Kernel}, {"boot/initrd.img-*", d.Initramfs}} {
		found, err := filepath.Glob(filepath.Join(m.root, boot.pattern))
		if err != nil || len(found) != 1 {
			return fmt.Errorf("%d files %s, want 1", len(found), boot.pattern)
		}
		if err := os.Link(found[0], boot.to); err != nil { // it stays, since a Debian that starts by itself needs it
			return err
		}
	}
	packages, err := run.Output(m.ctx, fetchMax, "dpkg-query", "--admindir", filepath.Join(m.root, "var/lib/dpkg"), "--show",
		"--showformat", "${Package} ${Version} ${Installed-Size}\n")
	if err != nil {
		return err
	}
	if err := os.WriteFile(d.Packages, packages, 0o644); err != nil {
		return err
	}
	if _, err := run.Output(m.ctx, makeDiskMax, "mke2fs", "-q", "-t", "ext4", "-L", debianLabel, "-d", m.root, d.Disk, fmt.Sprintf("%dM", m.recipe.DiskMB)); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(m.root), os.RemoveAll(m.apt))
}

// debianLabel is that of the root's file system.
const debianLabel = "bench"

// fetch downloads all packages to where the guest's own apt would, with an apt
// that shares nothing with the machine's own but the address of its mirror.
func (m *debianMaker) fetch() error {
	for _, dir := range []string{filepath.Join(m.apt, "state/lists/partial"), filepath.Join(m.root, archives, "partial")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	config := fmt.Sprintf(`Dir::State "%[1]s/state";
Dir::State::status "%[1]s/state/status";
Dir::Cache "%[1]s/cache";
Dir::Cache::archives "%[2]s";
Dir::Etc::sourcelist "%[3]s";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
`, m.apt, filepath.Join(m.root, archives), m.sources)
	if err := errors.Join(
		os.WriteFile(filepath.Join(m.apt, "apt.conf"), []byte(config), 0o644),
		os.WriteFile(filepath.Join(m.apt, "state/status"), nil, 0o644),
	); err != nil {
		return err
	}
	wanted := append([]string{"install", "-qy", "--download-only", "?essential"}, m.recipe.Packages...)
	for _, args := range [][]string{{"update", "-q"}, wanted} {
		args = append([]string{"APT_CONFIG=" + filepath.Join(m.apt, "apt.conf"), "LC_ALL=C", "apt-get"}, args...)
		if _, err := run.Output(m.ctx, fetchMax, "env", args...); err != nil {
			return err
		}
	}
	return nil
}

// policy keeps services from being started while they are installed.
const policy = "usr/sbin/policy-rc.d"

// unpack lays out all files, so that the packages' scripts find what they call.
func (m *debianMaker) unpack() error {
	packages, err := filepath.Glob(filepath.Join(m.root, archives, "*.deb"))
	if err != nil {
		return err
	}
	for _, p := range packages {
		if _, err := run.Output(m.ctx, installMax, "dpkg-deb", "--extract", p, m.root); err != nil {
			return err
		}
	}
	files := map[string]string{policy: "#!/bin/sh\nexit 101\n"}
	maps.Copy(files, m.recipe.Files)
	for name, content := range files {
		path := filepath.Join(m.root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(m.root, "var/lib/dpkg/status"), nil, 0o644)
}

// install has the packages' own scripts do what they do anywhere. The first one
// makes the accounts that the others name.
func (m *debianMaker) install() error {
	script := `mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
exec chroot "$1" /usr/bin/env -i PATH=/usr/sbin:/usr/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive /bin/sh -ec '
dpkg --force-depends --install /` + archives + `/base-passwd_*.deb
dpkg --force-depends --install /` + archives + `/*.deb
dpkg --audit
systemctl enable ` + strings.Join(m.recipe.Services, " ") + `
rm -r /` + archives + ` /` + policy + `
'`
	_, err := run.Output(m.ctx, installMax, "unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh", m.root)
	return err
}

// debianMachine is a machine for the Debian guest, with its disk as "disk".
type debianMachine struct {
	name      string
	arguments []string
	cmdline   string
}

var (
	debianPC = debianMachine{"Debian on a PC (q35, virtio over PCI)",
		[]string{"-M", "q35", "-device", "virtio-blk-pci,drive=disk"}, ""}
	debianMicro = debianMachine{"Debian on QEMU's microvm machine",
		[]string{"-M", "microvm,rtc=on", "-device", "virtio-blk-device,drive=disk"}, " reboot=t"}
)

// debianLine is what the guest says by itself (debianFiles), in microseconds.
var debianLine = regexp.MustCompile(`bench: init=([0-9]+) serves=([0-9]+) banner=SSH-`)

// startDebian starts the Debian guest until its sshd serves.
func (b *bench) startDebian(ctx context.Context, d debian, m debianMachine) (guestStart, error) {
	g := emulated{
		name: m.name, kernel: d.Kernel, initramfs: d.Initramfs, cmdline: "root=/dev/vda ro console=ttyS0 quiet" + m.cmdline,
		machine: append([]string{"-m", "576", "-serial", "stdio", "-drive", "if=none,id=disk,format=raw,snapshot=on,file=" + d.Disk}, m.arguments...),
	}
	return b.startGuest(ctx, g, nil, debianMoments)
}

// debianMoments: systemd runs when the initramfs is done.
func debianMoments(console string) (initramfs, answers time.Duration, err error) {
	found := debianLine.FindStringSubmatch(console)
	if found == nil {
		return 0, 0, fmt.Errorf("no line %s", debianLine)
	}
	if initramfs, err = time.ParseDuration(found[1] + "us"); err != nil {
		return 0, 0, err
	}
	answers, err = time.ParseDuration(found[2] + "us")
	return initramfs, answers, err
}
