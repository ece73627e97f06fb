package guest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"capsule/internal/cgroup"
	"capsule/internal/guest/channel"
)

const (
	// portsMax is how long the kernel may take to find the machine's ports.
	portsMax = 10 * time.Second
	stdout   = "capsule.stdout"
	stderr   = "capsule.stderr"

	safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
)

// serve boots and serves until that fails.
func serve() error {
	if err := boot(); err != nil {
		return err
	}
	l, err := listenChannel()
	if err != nil {
		return err
	}
	a := &agent{}
	go a.children.reapOrphans(orphans())
	server := newServer(a)
	// The queue of the listener takes a capsule's call from now on, and an open
	// port tells it to call.
	if a.stderr, err = openPort(stderr); err != nil {
		return err
	}
	if a.stdout, err = openPort(stdout); err != nil {
		return err
	}
	say("ready after %v", uptime().Round(time.Millisecond))
	return fmt.Errorf("serve the capsule: %w", server.Serve(l))
}

// orphans tells of children that ended.
func orphans() <-chan os.Signal {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	return ended
}

// boot makes the agent's own surroundings.
func boot() error {
	if err := coverRoot(); err != nil {
		return err
	}
	for _, m := range []struct {
		kind, dir string
		flags     uintptr
		data      string
	}{
		{"proc", "/proc", safe, ""},
		{"sysfs", "/sys", safe, ""},
		{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=0755"},
		{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		{"cgroup2", cgroup.Root, safe, "nsdelegate,memory_recursiveprot"},
	} {
		if err := mount(m.kind, m.dir, m.kind, m.flags, m.data); err != nil {
			return err
		}
	}
	if err := os.WriteFile(cgroup.Root+"/cgroup.subtree_control", []byte("+memory +pids"), 0); err != nil {
		return err
	}
	return tune()
}

// coverRoot lays a view of the initramfs over it: pivot_root, which the payload's
// first process calls, refuses the initramfs itself as the old root.
func coverRoot() error {
	const cover = "/cover"
	if err := mount("/", cover, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := unix.Chdir(cover); err != nil {
		return err
	}
	if err := unix.Mount(cover, "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("cover the initramfs: %w", err)
	}
	return unix.Chroot(".")
}

// mount makes the folder when it is missing.
func mount(source, dir, kind string, flags uintptr, data string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, dir, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s at %s: %w", source, dir, err)
	}
	return nil
}

// settings of the kernel that a payload sees, as a capsule has them for its
// containers; ports and ping are open to every user, as in a container.
var settings = [][2]string{
	{"/proc/sys/kernel/kptr_restrict", "1"},
	{"/proc/sys/fs/inotify/max_user_instances", "1024"},
	{"/proc/sys/fs/inotify/max_user_watches", "524288"},
	{"/sys/kernel/mm/transparent_hugepage/enabled", "madvise"},
	{"/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"},
	{"/proc/sys/net/ipv4/ping_group_range", "0 2147483647"},
	{"/proc/sys/net/ipv6/conf/all/accept_ra", "0"},
	{"/proc/sys/net/ipv6/conf/default/accept_ra", "0"},
	{"/proc/sys/net/ipv6/conf/default/accept_dad", "0"},
}

func tune() error {
	for _, s := range settings {
		if err := set(s[0], s[1]); err != nil {
			return err
		}
	}
	return nil
}

// set writes a setting and passes over what a kernel without the feature lacks.
func set(file, value string) error {
	err := os.WriteFile(file, []byte(value), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// listenChannel listens where the kernel's command line says.
func listenChannel() (net.Listener, error) {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	switch kind := option(string(line), "capsule.channel", "vsock"); kind {
	case "vsock":
		return channel.ListenVsock()
	case "port":
		f, err := openPort(channel.PortName)
		if err != nil {
			return nil, err
		}
		return channel.ListenPort(f)
	default:
		return nil, fmt.Errorf("capsule.channel=%s on the kernel's command line is neither vsock nor port", kind)
	}
}

// option gives the last value of a name on the kernel's command line.
func option(line, name, otherwise string) string {
	for word := range strings.FieldsSeq(line) {
		if value, ok := strings.CutPrefix(word, name+"="); ok {
			otherwise = value
		}
	}
	return otherwise
}

// openPort opens the virtio-serial port of a name. The kernel hears of ports, and
// then of their names, after the driver has started.
func openPort(name string) (*os.File, error) {
	var device string
	err := awaitDevice(portsMax, func() bool {
		device = named("/sys/class/virtio-ports", "name", name)
		return device != ""
	})
	if err != nil {
		return nil, fmt.Errorf("find virtio-serial port %q: %w", name, err)
	}
	return os.OpenFile(filepath.Join("/dev", device), os.O_RDWR, 0)
}
