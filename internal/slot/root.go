package slot

import (
	"debug/pe"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// A Root says where in a slot a root's data ends and what proves it.
type Root struct {
	Hash      string // of the verity tree, hex
	DataBytes int64  // offset of the verity superblock
}

const cmdlineMax = 4 << 10 // bytes; the kernel's own limit is less

// ParseRoot reads a kernel command line of ours; NotFound when it names no root.
func ParseRoot(cmdline string) (r Root, err error) {
	for _, word := range strings.Fields(cmdline) {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "capsule.verity":
			r.Hash = value
		case "capsule.verity_offset":
			r.DataBytes, err = strconv.ParseInt(value, 10, 64)
		}
	}
	if r.Hash == "" || r.DataBytes <= 0 || err != nil {
		return Root{}, fmt.Errorf("the kernel command line has no capsule.verity and capsule.verity_offset: %w", errdefs.ErrNotFound)
	}
	return r, nil
}

// RunningRoot is the root that this kernel was started with.
func RunningRoot() (Root, error) {
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return Root{}, fmt.Errorf("read the kernel command line: %w", err)
	}
	return ParseRoot(string(text))
}

// OpenUKI opens the kernel image that an entry names; NotFound when it isn't there.
func OpenUKI(dir string, entry Entry) (*os.File, error) {
	file, ok := esp{dir: dir}.find(entry.UKI)
	if !ok {
		return nil, fmt.Errorf("UKI %q: %w", entry.UKI, errdefs.ErrNotFound)
	}
	return os.Open(filepath.Join(dir, file))
}

// RootOf is the root that the UKI of an entry wants in its slot.
func RootOf(dir string, entry Entry) (Root, error) {
	file, ok := esp{dir: dir}.find(entry.UKI)
	if !ok {
		return Root{}, fmt.Errorf("UKI %q: %w", entry.UKI, errdefs.ErrNotFound)
	}
	text, err := cmdlineOf(filepath.Join(dir, file))
	if err != nil {
		return Root{}, fmt.Errorf("UKI %q: %w", entry.UKI, err)
	}
	return ParseRoot(text)
}

// cmdlineOf reads the section that systemd's stub hands to the kernel.
func cmdlineOf(file string) (text string, err error) {
	f, err := pe.Open(file)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errdefs.ErrDataLoss, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	section := f.Section(".cmdline")
	if section == nil || section.Size > cmdlineMax {
		return "", fmt.Errorf("no kernel command line: %w", errdefs.ErrDataLoss)
	}
	b, err := section.Data()
	if err != nil {
		return "", fmt.Errorf("%w: %w", errdefs.ErrDataLoss, err)
	}
	text, _, _ = strings.Cut(string(b), "\x00")
	return text, nil
}
