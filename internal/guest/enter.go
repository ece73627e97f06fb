package guest

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"capsule/internal/cgroup"
	"capsule/internal/process"
)

// enter makes the payload's surroundings: the calling process has mount, process,
// UTS and IPC namespaces of its own, and is in the payload's cgroup.
func enter(l launch) error {
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("leave the agent's cgroups: %w", err)
	}
	if err := unix.Sethostname([]byte(l.Hostname)); err != nil {
		return fmt.Errorf("set host name %q: %w", l.Hostname, err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("leave the agent's mounts: %w", err)
	}
	// From here on nothing of the agent's is in reach but by these.
	trees, err := openShown(l.Shown)
	if err != nil {
		return err
	}
	if err := changeRoot(l.Root); err != nil {
		return fmt.Errorf("enter the image: %w", err)
	}
	if err := mountSystem(); err != nil {
		return err
	}
	for i, s := range l.Shown {
		if err := show(s, trees[i]); err != nil {
			return fmt.Errorf("show %q: %w", s.Path, err)
		}
	}
	if err := hide(); err != nil {
		return err
	}
	return os.MkdirAll(l.Cwd, 0o755)
}

// openShown takes copies of the mounts that will be shown.
func openShown(shown []showing) (trees []int, err error) {
	for _, s := range shown {
		fd, err := unix.OpenTree(unix.AT_FDCWD, s.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return nil, fmt.Errorf("open %s for %q: %w", s.Source, s.Path, err)
		}
		trees = append(trees, fd)
	}
	return trees, nil
}

// changeRoot makes dir the root and leaves nothing of the old one.
func changeRoot(dir string) error {
	if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// systemMounts are the kernel's file systems of a payload, as in a container.
var systemMounts = []struct {
	kind, dir string
	flags     uintptr
	data      string
}{
	{"proc", "/proc", safe, ""},
	{"tmpfs", "/dev", unix.MS_NOSUID | unix.MS_STRICTATIME, "mode=755,size=64k"},
	{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"},
	{"tmpfs", "/dev/shm", safe, fmt.Sprintf("mode=1777,size=%d", process.ShmBytes)},
	{"mqueue", "/dev/mqueue", safe, ""},
	{"sysfs", "/sys", safe | unix.MS_RDONLY, ""},
	{"cgroup2", cgroup.Root, safe | unix.MS_RELATIME | unix.MS_RDONLY, ""},
}

// mountSystem mounts them and fills /dev.
func mountSystem() error {
	for _, m := range systemMounts {
		st, err := os.Lstat(m.dir)
		if err == nil && !st.IsDir() {
			return &process.Problem{Code: process.CannotRun, Text: fmt.Sprintf("%q of the image is no folder", m.dir)}
		}
		if err := mount(m.kind, m.dir, m.kind, m.flags, m.data); err != nil {
			return err
		}
	}
	return fillDev()
}

func fillDev() error {
	old := unix.Umask(0)
	defer unix.Umask(old)
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		if err := mknod(name, 1, minor); err != nil {
			return err
		}
	}
	if err := mknod("tty", 5, 0); err != nil {
		return err
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
		"ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(target, "/dev/"+name); err != nil {
			return err
		}
	}
	return nil
}

func mknod(name string, major, minor uint32) error {
	if err := unix.Mknod("/dev/"+name, unix.S_IFCHR|0o666, int(unix.Mkdev(major, minor))); err != nil {
		return fmt.Errorf("make /dev/%s: %w", name, err)
	}
	return nil
}

// show mounts a tree at a path, which is made when it is missing.
func show(s showing, tree int) error {
	defer func() { _ = unix.Close(tree) }()
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return err
	}
	at, err := place(s.Path, st.Mode&unix.S_IFMT == unix.S_IFDIR)
	if err != nil {
		return err
	}
	if s.ReadOnly {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
			return fmt.Errorf("make it read-only: %w", err)
		}
	}
	return unix.MoveMount(tree, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// place makes sure that a folder or a file is at the path, also where a link of
// the image leads to something that is missing, and gives its path without links.
func place(name string, folder bool) (string, error) {
	name, err := resolve(name)
	if err != nil {
		return "", err
	}
	if folder {
		return name, os.MkdirAll(name, 0o755)
	}
	if err := os.MkdirAll(path.Dir(name), 0o755); err != nil {
		return "", err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return "", err
	}
	return name, f.Close()
}

// linksMax is how many links a path may lead over, as in the kernel.
const linksMax = 40

// resolve follows the links on an absolute path, also past what is missing.
func resolve(name string) (string, error) {
	done, rest := "/", strings.Split(name, "/")
	for links := 0; len(rest) > 0; {
		next := path.Join(done, rest[0]) // ".." too: no link is left in done
		rest = rest[1:]
		target, err := os.Readlink(next)
		if err != nil {
			done = next // no link, or missing
			continue
		}
		if links++; links > linksMax {
			return "", &os.PathError{Op: "follow", Path: name, Err: unix.ELOOP}
		}
		if path.IsAbs(target) {
			done = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return done, nil
}

// hide takes away what of the kernel's files a payload should not see or change.
func hide() error {
	for _, name := range process.ReadonlyPaths {
		if err := unix.Mount(name, name, "", unix.MS_BIND|unix.MS_REC, ""); errors.Is(err, unix.ENOENT) {
			continue
		} else if err != nil {
			return fmt.Errorf("make %s read-only: %w", name, err)
		}
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(unix.AT_FDCWD, name, unix.AT_RECURSIVE, &attr); err != nil {
			return fmt.Errorf("make %s read-only: %w", name, err)
		}
	}
	for _, name := range process.MaskedPaths {
		err := unix.Mount("/dev/null", name, "", unix.MS_BIND, "")
		if errors.Is(err, unix.ENOTDIR) {
			err = unix.Mount("tmpfs", name, "tmpfs", safe|unix.MS_RDONLY, "")
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("hide %s: %w", name, err)
		}
	}
	return nil
}
