package pid1

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A mount is one of the kernel's file systems. What the initramfs brought along
// is recognised by its magic and left alone.
type mount struct {
	kind, dir string
	flags     uintptr
	data      string
	magic     int64
}

const (
	safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
)

var mounts = []mount{
	{"proc", "/proc", safe, "", unix.PROC_SUPER_MAGIC},
	{"sysfs", "/sys", safe, "", unix.SYSFS_MAGIC},
	{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=0755", unix.TMPFS_MAGIC},
	{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666", unix.DEVPTS_SUPER_MAGIC},
	{"tmpfs", "/dev/shm", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777", 0},
	{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755", unix.TMPFS_MAGIC},
	{"tmpfs", "/tmp", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777,size=25%", unix.TMPFS_MAGIC},
	// What workloads are shown of it they may write to: it is no way to fill /run.
	{"tmpfs", "/run/capsule/net", safe, "mode=0755,size=16m", 0},
	{"cgroup2", groupRoot, safe, "nsdelegate,memory_recursiveprot", unix.CGROUP2_SUPER_MAGIC},
}

func mountAll() error {
	var errs []error
	for _, m := range mounts {
		errs = append(errs, m.mount())
	}
	for _, dir := range []string{"/run/capsule", "/run/lock", "/run/containerd", "/run/netns"} {
		errs = append(errs, os.MkdirAll(dir, 0o755))
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(target, filepath.Join("/dev", name)); err != nil && !errors.Is(err, os.ErrExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (m mount) mount() error {
	var st unix.Statfs_t
	if err := unix.Statfs(m.dir, &st); err == nil && m.magic != 0 && int64(st.Type) == m.magic {
		return nil
	}
	_ = os.MkdirAll(m.dir, 0o755)
	if err := unix.Mount(m.kind, m.dir, m.kind, m.flags, m.data); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount %s: %w", m.dir, err)
	}
	return nil
}

// loopbackUp starts the machine's own loopback, which serve and containerd expect.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("start loopback: %w", err)
	}
	return nil
}
