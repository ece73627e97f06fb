// Command init is PID 1 of the machine that vmexec boots: it brings up the
// image's root, runs one test binary in it and powers off.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"capsule/internal/ext4"
	"capsule/internal/kmod"
)

const root = "/root"

func main() {
	code, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error: init:", err)
		code = 125
	}
	fmt.Printf("VMEXEC-EXIT %d\n", code)
	_ = drain(os.Stdout)
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

func run() (int, error) {
	for _, m := range []struct{ source, target, kind string }{
		{"proc", "/proc", "proc"}, {"sysfs", "/sys", "sysfs"}, {"devtmpfs", "/dev", "devtmpfs"},
	} {
		if err := mount(m.source, m.target, m.kind, 0, ""); err != nil {
			return 0, err
		}
	}
	port, err := openRaw("/dev/ttyS0")
	if err != nil {
		return 0, err
	}
	os.Stdout, os.Stderr = port, port
	if err := mountRoot(); err != nil {
		return 0, err
	}
	return runTest(port)
}

// mountRoot loads what reaches the disk, then mounts the root and all that a
// running capsule has writable.
func mountRoot() error {
	early, err := kmod.Open("/")
	if err != nil {
		return err
	}
	if err := early.Load("virtio_pci", "virtio_blk", "erofs"); err != nil {
		return err
	}
	if err := waitFor("/dev/vda"); err != nil {
		return err
	}
	if err := mount("/dev/vda", root, "erofs", unix.MS_RDONLY, ""); err != nil {
		return err
	}
	for _, m := range []string{"/proc", "/sys", "/dev"} {
		if err := unix.Mount(m, root+m, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", m, err)
		}
	}
	// The kernel asks for modules by the same helper as on a capsule.
	if err := os.WriteFile(root+"/proc/sys/kernel/modprobe", []byte("/usr/bin/capsule-boot"), 0o644); err != nil {
		return err
	}
	late, err := kmod.Open(root)
	if err != nil {
		return err
	}
	if err := late.Load("loop", "quota_v2", "ext4", "overlay", "veth", "bridge", "nf_tables", "nft_chain_nat", "nft_masq",
		"nft_ct", "nf_conntrack_netlink", "dm_mod", "dm_thin_pool", "virtio_rng", "tun", "vhost_vsock", "dummy"); err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
	}
	for _, m := range []struct{ source, target, kind, options string }{
		{"devpts", "/dev/pts", "devpts", "ptmxmode=0666,mode=0620,gid=5"},
		{"tmpfs", "/dev/shm", "tmpfs", ""},
		{"tmpfs", "/run", "tmpfs", "mode=0755"},
		{"tmpfs", "/tmp", "tmpfs", "mode=1777"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", "nsdelegate"},
	} {
		_ = os.MkdirAll(root+m.target, 0o755)
		if err := mount(m.source, root+m.target, m.kind, 0, m.options); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/run/capsule", "/run/lock/lvm", "/run/netns"} {
		if err := os.MkdirAll(root+dir, 0o755); err != nil {
			return err
		}
	}
	if err := raiseLoopback(); err != nil {
		return err
	}
	return makeCgroups()
}

func raiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// makeCgroups lays out the groups as PID 1 of a capsule does.
func makeCgroups() error {
	base := root + "/sys/fs/cgroup"
	for _, g := range []string{"", "/capsule", "/capsule/apps"} {
		if err := os.MkdirAll(base+g, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(base+g+"/cgroup.subtree_control", []byte("+cpu +memory +pids +io +cpuset"), 0o644); err != nil {
			return err
		}
	}
	for _, g := range []string{"/capsule/shims", "/capsule/containerd", "/capsule/serve"} {
		if err := os.MkdirAll(base+g, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// runTest formats the scratch disk as /perm and runs the binary in the root.
func runTest(port *os.File) (int, error) {
	pkg := filepath.Join(root, "tmp/pkg")
	if err := mount("tmpfs", root+"/tmp", "tmpfs", 0, "mode=1777"); err != nil {
		return 0, err
	}
	if err := os.Rename("/vmexec/pkg", pkg); errors.Is(err, syscall.EXDEV) {
		if err := os.CopyFS(pkg, os.DirFS("/vmexec/pkg")); err != nil {
			return 0, err
		}
	} else if err != nil {
		return 0, err
	}
	args, err := os.ReadFile("/vmexec/args")
	if err != nil {
		return 0, err
	}
	passed, err := os.ReadFile("/vmexec/env")
	if err != nil {
		return 0, err
	}
	// Moved over "/", as on a capsule: a chroot alone is not the root of the
	// mount namespace, and runc could not enter a container's.
	if err := errors.Join(unix.Chdir(root), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/")); err != nil {
		return 0, fmt.Errorf("switch root: %w", err)
	}
	env := []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "TMPDIR=/tmp", "CAPSULE_TEST_MACHINE=1"}
	if len(passed) > 0 {
		env = append(env, strings.Split(string(passed), "\x00")...)
	}
	if out, err := command(env, "/", "mkfs.ext4", "-q", "-F", "-O", ext4.ProjectFeatures, "-E", "nodiscard,"+ext4.ProjectQuota, "/dev/vdb"); err != nil {
		return 0, fmt.Errorf("format /perm: %w: %s", err, out)
	}
	if err := unix.Mount("/dev/vdb", "/perm", "ext4", unix.MS_NOATIME, "discard,"+ext4.ProjectOption); err != nil {
		return 0, fmt.Errorf("mount /perm: %w", err)
	}
	argv := strings.Split(string(args), "\x00")
	cmd := exec.Command("/tmp/pkg/test", argv[1:]...)
	cmd.Dir, cmd.Env = "/tmp/pkg", env
	cmd.Stdout, cmd.Stderr = port, port
	fmt.Println("VMEXEC-UP")
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

func command(env []string, dir, name string, args ...string) ([]byte, error) {
	path := "/usr/sbin/" + name
	if _, err := os.Stat(path); err != nil {
		path = "/usr/bin/" + name
	}
	cmd := exec.Command(path, args...)
	cmd.Env, cmd.Dir = env, dir
	return cmd.CombinedOutput()
}

func mount(source, target, kind string, flags uintptr, options string) error {
	if err := os.MkdirAll(target, 0o755); err != nil && !errors.Is(err, syscall.EROFS) {
		return err
	}
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

// waitFor polls for a device node: this init has no uevent listener, and the
// disk is there within milliseconds of its driver.
func waitFor(path string) error {
	for range 30_000 {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		time.Sleep(2 * time.Millisecond)
	}
	return fmt.Errorf("no %s after 60 s", path)
}

// openRaw opens a serial port that passes bytes unchanged.
func openRaw(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, err
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	return f, unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t)
}

// drain waits until a serial port has sent all that was written.
func drain(w io.Writer) error {
	f, ok := w.(*os.File)
	if !ok {
		return nil
	}
	return unix.IoctlSetInt(int(f.Fd()), unix.TCSBRK, 1)
}
