package support

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"capsule/internal/dm"
	"capsule/internal/links"
	"capsule/internal/lvm"
	"capsule/internal/run"
	"capsule/internal/version"
)

// Machine is what the machine itself tells, below the objects.
func Machine() []Entry {
	return []Entry{
		{Name: "versions.txt", Text: versions},
		{Name: "memory.txt", Text: files("/proc/loadavg", "/proc/uptime", "/proc/meminfo")},
		{Name: "pressure.txt", Text: pressure},
		{Name: "processes.txt", Text: processes},
		{Name: "mounts.txt", Text: mounts},
		{Name: "disks.txt", Text: disks},
		{Name: "device-mapper.txt", Text: mapper},
		{Name: "lvm.txt", Text: report, Time: 30 * time.Second},
		{Name: "network.txt", Text: network},
		{Name: "modules.txt", Text: files("/proc/modules")},
	}
}

// files shows some as they are. One that is not there is told of.
func files(paths ...string) func(context.Context, io.Writer) error {
	return func(_ context.Context, w io.Writer) error {
		var errs []error
		for _, path := range paths {
			errs = append(errs, show(w, path))
		}
		return errors.Join(errs...)
	}
}

func show(w io.Writer, path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	Title(w, "%s", path)
	_, err = fmt.Fprintf(w, "%s\n", strings.TrimRight(string(text), "\n\x00"))
	return err
}

// programMax bounds a program that tells its version.
const programMax = 5 * time.Second

// versions of all that runs. The list of what is in the image, with the version of each
// part, stands beside the image.
func versions(ctx context.Context, w io.Writer) error {
	fmt.Fprintf(w, "capsule %s, built %s\nsbom: capsule-%s, in sbom.spdx.json beside the image\n\n",
		version.Version, version.BuildTime().UTC().Format(time.RFC3339), version.Version)
	errs := []error{files("/proc/version", "/proc/cmdline", "/etc/os-release")(ctx, w)}
	for _, program := range [][]string{{"containerd", "--version"}, {"runc", "--version"}, {"qemu-system-x86_64", "--version"}, {"lvm", "version"}} {
		out, err := run.Output(ctx, programMax, program[0], program[1:]...)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		Title(w, "%s", strings.Join(program, " "))
		fmt.Fprintf(w, "%s\n", out)
	}
	return errors.Join(errs...)
}

// groups is the capsule's part of the tree of control groups, and below it how deep is
// looked: capsule/apps/NAME, capsule/serve.
const (
	groups      = "/sys/fs/cgroup"
	groupsDepth = 4
)

// groupFiles tell how a group fares.
var groupFiles = []string{"memory.current", "memory.max", "memory.events", "memory.pressure", "cpu.pressure", "io.pressure", "pids.current", "cpu.stat"}

func pressure(ctx context.Context, w io.Writer) error {
	err := files("/proc/pressure/cpu", "/proc/pressure/memory", "/proc/pressure/io")(ctx, w)
	return errors.Join(err, filepath.WalkDir(groups, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil: // a group that just ended
			return nil //nolint:nilerr // as it says
		case ctx.Err() != nil:
			return ctx.Err()
		case !d.IsDir():
			return nil
		case strings.Count(strings.TrimPrefix(path, groups), "/") > groupsDepth:
			return fs.SkipDir
		}
		Title(w, "%s", path)
		for _, name := range groupFiles {
			if text, err := os.ReadFile(filepath.Join(path, name)); err == nil {
				fmt.Fprintf(w, "%s: %s\n", name, strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", "; "))
			}
		}
		return nil
	}))
}

// processes by name, never with their arguments, which may be anything.
func processes(ctx context.Context, w io.Writer) error {
	found, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		return err
	}
	fields := []string{"Name", "State", "Pid", "PPid", "Uid", "Threads", "VmRSS"}
	fmt.Fprintln(w, strings.Join(fields, "\t"))
	for _, path := range found {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		text, err := os.ReadFile(path)
		if err != nil { // it has ended
			continue
		}
		row := make([]string, len(fields))
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
			if i := slices.Index(fields, name); i >= 0 {
				row[i] = strings.Join(strings.Fields(value), " ")
			}
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return nil
}

// filled are the file systems whose fill matters.
var filled = []string{"/", "/perm", "/run", "/run/capsule", "/tmp", "/dev"}

func mounts(_ context.Context, w io.Writer) error {
	Title(w, "fill: bytes, free bytes, files, free files")
	for _, path := range filled {
		var st unix.Statfs_t
		if err := unix.Statfs(path, &st); err != nil {
			fmt.Fprintf(w, "%s: %v\n", path, err)
			continue
		}
		fmt.Fprintf(w, "%s %d %d %d %d\n", path, st.Blocks*uint64(st.Bsize), st.Bavail*uint64(st.Bsize), st.Files, st.Ffree) //nolint:gosec // a size
	}
	return show(w, "/proc/self/mountinfo")
}

// diskFiles of a disk, below /sys/block.
var diskFiles = []string{"size", "ro", "removable", "queue/rotational", "queue/logical_block_size", "queue/physical_block_size", "queue/discard_max_bytes",
	"device/model", "device/vendor", "device/state", "device/ioerr_cnt", "device/iotmo_cnt", "stat"}

func disks(ctx context.Context, w io.Writer) error {
	found, err := os.ReadDir("/sys/block")
	if err != nil {
		return err
	}
	for _, d := range found {
		Title(w, "%s", d.Name())
		for _, name := range diskFiles {
			if text, err := os.ReadFile(filepath.Join("/sys/block", d.Name(), name)); err == nil {
				fmt.Fprintf(w, "%s: %s\n", name, strings.Join(strings.Fields(string(text)), " "))
			}
		}
	}
	return files("/proc/partitions", "/proc/diskstats")(ctx, w)
}

// mapper tells what the kernel's device mapper has, and how it fares.
func mapper(ctx context.Context, w io.Writer) error {
	c, err := dm.Open()
	if err != nil {
		return err
	}
	defer c.Close()
	names, err := c.Names()
	errs := []error{err}
	for _, name := range names {
		if ctx.Err() != nil {
			break
		}
		table, err := c.Table(name)
		errs = append(errs, err)
		status, err := c.Status(name)
		errs = append(errs, err)
		Title(w, "%s dm-%d, openers %d, suspended %v, read-only %v", name, table.Minor, table.Openers, table.Suspended, table.ReadOnly)
		for _, t := range table.Targets {
			fmt.Fprintf(w, "table %d %d %s %s\n", t.Start, t.Sectors, t.Kind, t.Params)
		}
		for _, t := range status.Targets {
			fmt.Fprintf(w, "status %d %d %s %s\n", t.Start, t.Sectors, t.Kind, t.Params)
		}
	}
	return errors.Join(errs...)
}

// report is lvm's.
func report(ctx context.Context, w io.Writer) error {
	text, err := lvm.Report(ctx)
	if _, failed := w.Write(text); failed != nil {
		return failed
	}
	return err
}

// network has links, addresses, routes and neighbours.
func network(_ context.Context, w io.Writer) error {
	all, err := links.List()
	errs := []error{err}
	names := map[int]string{}
	for _, l := range all {
		a := l.Attrs()
		names[a.Index] = a.Name
		Title(w, "%d %s", a.Index, a.Name)
		fmt.Fprintf(w, "type %s, state %s, flags %s, mtu %d, address %s, master %d\n", l.Type(), a.OperState, a.Flags, a.MTU, a.HardwareAddr, a.MasterIndex)
		if s := a.Statistics; s != nil {
			fmt.Fprintf(w, "received %d packets %d bytes %d errors %d dropped; sent %d packets %d bytes %d errors %d dropped\n",
				s.RxPackets, s.RxBytes, s.RxErrors, s.RxDropped, s.TxPackets, s.TxBytes, s.TxErrors, s.TxDropped)
		}
		addresses, err := links.Addresses(l, netlink.FAMILY_ALL)
		errs = append(errs, err)
		for _, addr := range addresses {
			fmt.Fprintf(w, "address %s scope %d flags %#x\n", addr.IPNet, addr.Scope, addr.Flags)
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteList(nil, family)
		errs = append(errs, err)
		Title(w, "routes")
		for _, r := range routes {
			fmt.Fprintf(w, "%s via %s dev %s source %s metric %d\n", r.Dst, r.Gw, names[r.LinkIndex], r.Src, r.Priority)
		}
		neighbours, err := netlink.NeighList(0, family)
		errs = append(errs, err)
		Title(w, "neighbours")
		for _, n := range neighbours {
			fmt.Fprintf(w, "%s dev %s at %s state %#x\n", n.IP, names[n.LinkIndex], n.HardwareAddr, n.State)
		}
	}
	Title(w, "name servers")
	text, err := os.ReadFile("/run/capsule/resolv.conf")
	fmt.Fprintf(w, "%s", text)
	return errors.Join(append(errs, err)...)
}
