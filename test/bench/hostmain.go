package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"capsule/internal/pid1"
)

// How this program is called: as process 1 of a host, and in place of runc where the
// kernel lacks a controller.
const (
	hostArg = "host"
	runcArg = "runc"
)

const (
	hostShare    = "/run/bench/share"
	hostRunc     = "/run/bench/runc"
	hostGroups   = "/sys/fs/cgroup"
	hostReadyMax = 2 * time.Minute
	noticeSocket = "/run/capsule/notify"
	loopDevices  = 256
)

// hostMain is process 1 of a host: it makes the capsule's world, starts its services
// and measures. All others end with it.
func hostMain() error {
	var h host
	if err := json.NewDecoder(os.Stdin).Decode(&h); err != nil {
		return err
	}
	if err := h.makeWorld(); err != nil {
		return fmt.Errorf("make the host: %w", err)
	}
	daemon, err := h.startServices()
	if err != nil {
		return fmt.Errorf("start the host: %w", err)
	}
	return h.measure(context.Background(), daemon)
}

// makeWorld gives this process, and all that it starts, a capsule's root. Of devices
// there are only those that hold nothing.
func (h *host) makeWorld() error {
	root := filepath.Join(filepath.Dir(h.Perm), "root")
	if err := errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), os.Mkdir(root, 0o755)); err != nil {
		return err
	}
	if out, err := exec.Command("mount", "-t", "erofs", "-o", "ro,loop", h.Root, root).CombinedOutput(); err != nil {
		return fmt.Errorf("mount %s: %w: %s", h.Root, err, out)
	}
	for _, m := range []struct{ kind, dir, data string }{
		{"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"tmpfs", "/dev", "mode=0755"}, {"tmpfs", "/run", "mode=0755"},
		{"tmpfs", "/tmp", "mode=1777"}, {"cgroup2", hostGroups, ""},
	} {
		if err := unix.Mount(m.kind, root+m.dir, m.kind, unix.MS_NOSUID, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	for _, dir := range []string{"/dev/pts", "/dev/shm", "/run/capsule", "/run/lock/lvm", "/run/netns", hostShare} {
		if err := os.MkdirAll(root+dir, 0o755); err != nil {
			return err
		}
	}
	return errors.Join(
		makeDevices(root+"/dev"),
		unix.Mount("devpts", root+"/dev/pts", "devpts", 0, "newinstance,ptmxmode=0666"),
		unix.Mount("tmpfs", root+"/dev/shm", "tmpfs", 0, ""),
		bind(h.Perm, root+"/perm"), bind(h.Share, root+hostShare),
		bind(filepath.Join(h.Share, "capsuled"), root+"/usr/bin/capsuled"),
		os.MkdirAll(h.Perm+"/tmp", 0o755),
		unix.Chdir(root), unix.PivotRoot(".", "."), unix.Unmount(".", unix.MNT_DETACH), unix.Chdir("/"),
		makeGroups(), unix.Sethostname([]byte("capsule-bench")), loopbackUp(),
	)
}

func makeDevices(dir string) error {
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		if err := unix.Mknod(filepath.Join(dir, name), unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil {
			return err
		}
	}
	for i := range uint32(loopDevices) { // layers of images are mounted by them where the kernel needs it
		if err := unix.Mknod(filepath.Join(dir, fmt.Sprint("loop", i)), unix.S_IFBLK|0o600, int(unix.Mkdev(7, i))); err != nil {
			return err
		}
	}
	return errors.Join(
		unix.Mknod(filepath.Join(dir, "loop-control"), unix.S_IFCHR|0o600, int(unix.Mkdev(10, 237))),
		os.Symlink("pts/ptmx", filepath.Join(dir, "ptmx")), os.Symlink("/proc/self/fd", filepath.Join(dir, "fd")),
	)
}

func bind(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("show %s as %s: %w", from, to, err)
	}
	return nil
}

// makeGroups makes a capsule's control groups, with the controllers that there are.
// Where one is missing that limits workloads, runc is not asked for limits.
func makeGroups() error {
	var errs []error
	for _, g := range []string{"first", "capsule/serve", "capsule/containerd", "capsule/shims", "capsule/apps"} {
		errs = append(errs, os.MkdirAll(filepath.Join(hostGroups, g), 0o755))
	}
	have, err := os.ReadFile(hostGroups + "/cgroup.controllers")
	errs = append(errs, err)
	if c := strings.Fields(string(have)); slices.Contains(c, "pids") && slices.Contains(c, "memory") && slices.Contains(c, "cpu") {
		for _, g := range []string{"", "capsule", "capsule/apps"} {
			errs = append(errs, os.WriteFile(filepath.Join(hostGroups, g, "cgroup.subtree_control"), []byte("+cpu +memory +pids"), 0))
		}
		return errors.Join(errs...)
	}
	fmt.Fprintln(os.Stderr, "bench: the kernel has no controllers of version 2 to give: the containers have no limits")
	// A copy: runc executes what it finds in the folder of its own file, below mounts.
	runc, err := os.ReadFile("/usr/bin/runc")
	return errors.Join(append(errs, err, os.WriteFile(hostRunc, runc, 0o755), bind(hostShare+"/bench", "/usr/bin/runc"))...)
}

// runcMain takes the limits out of a new container's configuration, then becomes runc.
func runcMain() error {
	if i := slices.Index(os.Args, "--bundle"); i > 0 && i+1 < len(os.Args) && slices.Contains(os.Args, "create") {
		if err := withoutLimits(filepath.Join(os.Args[i+1], "config.json")); err != nil {
			return err
		}
	}
	return unix.Exec(hostRunc, os.Args, os.Environ())
}

func withoutLimits(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var config map[string]any
	if err := json.Unmarshal(text, &config); err != nil {
		return err
	}
	for in, limits := range map[string]string{"linux": "resources", "process": "rlimits"} {
		if part, ok := config[in].(map[string]any); ok {
			delete(part, limits)
		}
	}
	if text, err = json.Marshal(config); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// startServices starts containerd and capsuled as process 1 of a capsule does, and
// gives the process of the second once it says that all works.
func (h *host) startServices() (*os.Process, error) {
	const configFile = "/run/capsule/containerd.toml"
	if err := os.WriteFile(configFile, []byte(pid1.ContainerdTOML), 0o644); err != nil {
		return nil, err
	}
	notices, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: noticeSocket, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	ready := make(chan struct{})
	go hear(notices, ready)
	if _, err := service("containerd", nil, "/usr/bin/containerd", "--config", configFile); err != nil {
		return nil, err
	}
	daemon, err := service("serve", []string{"NOTIFY_SOCKET=" + noticeSocket, "CAPSULE_MODE=normal"}, "/usr/bin/capsuled", "serve")
	if err != nil {
		return nil, err
	}
	select {
	case <-ready:
		return daemon, nil
	case <-time.After(hostReadyMax):
		log, _ := os.ReadFile(hostShare + "/serve.log")
		return nil, fmt.Errorf("capsuled is not ready after %v:\n%s", hostReadyMax, log)
	}
}

// hear takes what capsuled tells process 1.
func hear(notices *net.UnixConn, ready chan<- struct{}) {
	text := make([]byte, 4096)
	for said := false; ; {
		n, err := notices.Read(text)
		if err != nil {
			return
		}
		if !said && string(text[:n]) == "READY=1" {
			said = true
			close(ready)
		}
	}
}

// service starts a program in its group; what it prints goes to a file.
func service(name string, env []string, argv ...string) (*os.Process, error) {
	group, err := os.Open(filepath.Join(hostGroups, "capsule", name))
	if err != nil {
		return nil, err
	}
	defer group.Close()
	log, err := os.Create(filepath.Join(hostShare, name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append([]string{"PATH=/usr/bin:/usr/sbin:/bin:/sbin", "HOME=/root", "TMPDIR=/perm/tmp"}, env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd())}
	err = cmd.Start()
	return cmd.Process, err
}
