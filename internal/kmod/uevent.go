package kmod

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ueventMax is the kernel's largest message (UEVENT_BUFFER_SIZE plus its header).
const ueventMax = 8 << 10

// ueventQueue is the socket's buffer: a coldplug of a big machine at once.
const ueventQueue = 8 << 20

// A Uevent is one device notice of the kernel.
type Uevent struct {
	Action, DevPath string
	Env             map[string]string
}

// A Listener hears the kernel's uevents from the moment it's opened, so that a
// scan of sysfs after that misses nothing.
type Listener struct{ f *os.File }

// Listen opens the kernel's uevent socket.
func Listen() (*Listener, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("open uevent socket: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, ueventQueue)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("bind uevent socket: %w", err)
	}
	return &Listener{f: os.NewFile(uintptr(fd), "uevent")}, nil
}

// Close ends a Next that waits.
func (l *Listener) Close() error { return l.f.Close() }

// Next waits for a uevent until the context ends.
func (l *Listener) Next(ctx context.Context) (Uevent, error) {
	if deadline, ok := ctx.Deadline(); ok {
		_ = l.f.SetReadDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { _ = l.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, ueventMax)
	for {
		n, err := l.f.Read(buf)
		if ctx.Err() != nil {
			return Uevent{}, ctx.Err()
		}
		if errors.Is(err, unix.ENOBUFS) { // events were lost: let the caller scan again
			return Uevent{Action: "lost"}, nil
		}
		if err != nil {
			return Uevent{}, fmt.Errorf("read uevent: %w", err)
		}
		if ev, ok := parseUevent(buf[:n]); ok {
			return ev, nil
		}
	}
}

// parseUevent reads "add@/devices/x\0KEY=value\0…".
func parseUevent(b []byte) (Uevent, bool) {
	head, rest, _ := bytes.Cut(b, []byte{0})
	action, devpath, ok := strings.Cut(string(head), "@")
	if !ok || action == "" {
		return Uevent{}, false
	}
	ev := Uevent{Action: action, DevPath: devpath, Env: map[string]string{}}
	for field := range bytes.SplitSeq(rest, []byte{0}) {
		if key, value, ok := strings.Cut(string(field), "="); ok {
			ev.Env[key] = value
		}
	}
	return ev, true
}

// Coldplug loads the drivers of all devices that are there already. It passes
// over the devices again until a pass finds none that it hasn't seen, since a
// loaded bus driver makes new ones; later ones come as uevents.
func (s *Set) Coldplug(sysfs string) {
	seen := map[string]bool{}
	for {
		before := len(seen)
		for _, modalias := range modaliases(sysfs) {
			if !seen[modalias] {
				seen[modalias] = true
				s.LoadAlias(modalias)
			}
		}
		if len(seen) == before {
			return
		}
	}
}

// busFirst are the buses to serve first: what the boot disk hangs on.
var busFirst = []string{"virtio", "pci", "nvme", "scsi"}

func modaliases(sysfs string) []string {
	files, _ := filepath.Glob(filepath.Join(sysfs, "bus/*/devices/*/modalias"))
	rank := func(file string) int {
		bus := strings.Split(strings.TrimPrefix(file, filepath.Join(sysfs, "bus")+"/"), "/")[0]
		if i := slices.Index(busFirst, bus); i >= 0 {
			return i
		}
		return len(busFirst)
	}
	slices.SortStableFunc(files, func(a, b string) int { return rank(a) - rank(b) })
	var out []string
	for _, file := range files {
		b, err := os.ReadFile(file)
		if text := strings.TrimSpace(string(b)); err == nil && text != "" {
			out = append(out, text)
		}
	}
	return out
}

// Hotplug loads the driver of each device that appears until the context ends,
// and passes every event on when seen isn't nil.
func (s *Set) Hotplug(ctx context.Context, l *Listener, sysfs string, seen func(Uevent)) error {
	for {
		ev, err := l.Next(ctx)
		if err != nil {
			return err
		}
		if ev.Action == "lost" {
			s.Coldplug(sysfs)
		}
		if alias := ev.Env["MODALIAS"]; ev.Action == "add" && alias != "" {
			s.LoadAlias(alias)
		}
		if seen != nil {
			seen(ev)
		}
	}
}
