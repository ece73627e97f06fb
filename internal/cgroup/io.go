package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// devices is where the kernel shows block devices by number.
var devices = "/sys/dev/block"

// IO gives the bytes that the processes of a group read from disks and wrote to them
// since it was made: nothing where the kernel does not count. A byte that goes
// through several layers of devices counts where it meets the lowest, once.
func (g Group) IO() (read, written uint64, err error) {
	data, err := os.ReadFile(filepath.Join(string(g), "io.stat"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || !isDisk(fields[0]) {
			continue
		}
		for _, f := range fields[1:] {
			name, text, _ := strings.Cut(f, "=")
			n, _ := strconv.ParseUint(text, 10, 64) //nolint:errcheck // other fields need be no numbers
			switch name {
			case "rbytes":
				read += n
			case "wbytes":
				written += n
			}
		}
	}
	return read, written, nil
}

const loopMajor = "7:"

// isDisk tells whether a device lies on no other one.
func isDisk(number string) bool {
	if strings.HasPrefix(number, loopMajor) {
		return false
	}
	below, err := os.ReadDir(filepath.Join(devices, number, "slaves"))
	return err != nil || len(below) == 0
}

// IOLimits bound traffic with each disk in a second; zero is no bound.
type IOLimits struct{ ReadBytes, WriteBytes, ReadOperations, WriteOperations int64 }

// LimitIO bounds what the group's processes read from the disks below some files and
// write to them, whatever layers of devices lie between.
func (g Group) LimitIO(l IOLimits, paths ...string) error {
	if l == (IOLimits{}) {
		return nil
	}
	var disks []string
	for _, path := range paths {
		found, err := disksBelow(path)
		if err != nil {
			return fmt.Errorf("find the disk of %s: %w", path, err)
		}
		for _, disk := range found {
			if !slices.Contains(disks, disk) {
				disks = append(disks, disk)
			}
		}
	}
	for _, disk := range disks {
		if err := g.Set("io.max", disk+l.String()); err != nil {
			return fmt.Errorf("limit traffic with disk %s: %w", disk, err)
		}
	}
	return nil
}

// String is the form of io.max, after a device's number.
func (l IOLimits) String() string {
	var b strings.Builder
	for _, f := range []struct {
		name string
		n    int64
	}{{"rbps", l.ReadBytes}, {"wbps", l.WriteBytes}, {"riops", l.ReadOperations}, {"wiops", l.WriteOperations}} {
		text := "max"
		if f.n > 0 {
			text = strconv.FormatInt(f.n, 10)
		}
		b.WriteString(" " + f.name + "=" + text)
	}
	return b.String()
}

// FreeIO takes all bounds away: processes that have to end wait for what they wrote.
func (g Group) FreeIO() error {
	data, err := os.ReadFile(filepath.Join(string(g), "io.max"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for line := range strings.Lines(string(data)) {
		if disk, _, ok := strings.Cut(line, " "); ok {
			err = errors.Join(err, g.Set("io.max", disk+IOLimits{}.String()))
		}
	}
	return err
}

// disksBelow gives the numbers of the disks that hold a file, or that it is itself
// when it is a device.
func disksBelow(path string) ([]string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, err
	}
	device := st.Dev
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		device = st.Rdev
	}
	return disksUnder(fmt.Sprintf("%d:%d", unix.Major(device), unix.Minor(device)), 0)
}

// layersMax of devices on one another is far more than there are.
const layersMax = 16

// disksUnder goes down through the layers of a device; below a partition is its disk.
func disksUnder(number string, depth int) ([]string, error) {
	dir, err := filepath.EvalSymlinks(filepath.Join(devices, number))
	if err != nil || depth > layersMax {
		return nil, errors.Join(err, fmt.Errorf("device %s is on no disk", number))
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		text, err := os.ReadFile(filepath.Join(filepath.Dir(dir), "dev"))
		return []string{strings.TrimSpace(string(text))}, err
	}
	below, _ := os.ReadDir(filepath.Join(dir, "slaves")) // none of a disk
	if len(below) == 0 {
		return []string{number}, nil
	}
	var disks []string
	for _, b := range below {
		text, err := os.ReadFile(filepath.Join(dir, "slaves", b.Name(), "dev"))
		if err != nil {
			return nil, err
		}
		found, err := disksUnder(strings.TrimSpace(string(text)), depth+1)
		if err != nil {
			return nil, err
		}
		disks = append(disks, found...)
	}
	return disks, nil
}
