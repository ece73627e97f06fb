package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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
