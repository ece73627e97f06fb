// Package smart asks disks how they are: NVMe by the health log that the standard
// wants of each, ATA by the same attributes that every tool goes by, eMMC by what its
// driver read. It only ever asks. A disk that sleeps is left to, and what the kernel
// has suspended is not even opened; disks on USB are not asked at all, since many
// bridges hang on such questions.
//
// Asking takes milliseconds, and up to questionMax with a disk that dies: no caller
// that somebody waits for.
package smart

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	v1 "capsule/api/capsule/v1"
)

// questionMax is what the kernel waits for a disk's answer to one question.
const questionMax = 10 * time.Second

// Limits above which a disk counts as worn, as long as it says nothing worse itself.
const (
	usedWarn = 90 // percent of its life
)

// Read asks a disk and writes into h what it says. Of a disk that sleeps all stays as
// it was read before.
func Read(sysfs string, h *v1.DiskHealth) {
	dir := filepath.Join(sysfs, "block", h.GetName())
	if h.GetRemovable() {
		silent(h, "not asked: a disk on USB or in a slot")
		return
	}
	if suspended(dir) {
		asleep(h)
		return
	}
	path := filepath.Join("/dev", h.GetName())
	var err error
	switch {
	case strings.HasPrefix(h.GetName(), "nvme"):
		err = readNVMe(path, h)
	case strings.HasPrefix(h.GetName(), "mmcblk"):
		readMMC(dir, h)
	case attribute(dir, "device/vendor") == "ATA":
		err = readATA(path, h)
	default:
		silent(h, "tells nothing of its health")
	}
	if err != nil {
		silent(h, fmt.Sprintf("does not answer: %v", err))
	}
}

func silent(h *v1.DiskHealth, why string) {
	h.State, h.Message = v1.DiskHealthState_DISK_HEALTH_STATE_SILENT, why
}

func asleep(h *v1.DiskHealth) {
	h.Asleep = true
	if h.GetState() <= v1.DiskHealthState_DISK_HEALTH_STATE_PENDING {
		silent(h, "sleeps, and was not woken up to ask")
	}
}

// suspended tells that the kernel has put a disk to sleep, which opening it would end.
func suspended(dir string) bool {
	return strings.HasPrefix(attribute(dir, "device/power/runtime_status"), "suspend")
}

// attribute is a line of text that the kernel tells; "" when it doesn't.
func attribute(dir, name string) string {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// open opens a disk to ask it: without a look at a medium, which might wake it.
func open(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// judge gives the state of a disk by what stands against it, the worst first.
func judge(h *v1.DiskHealth, failing, worn []string) {
	h.State, h.Message = v1.DiskHealthState_DISK_HEALTH_STATE_GOOD, ""
	if len(worn) > 0 {
		h.State, h.Message = v1.DiskHealthState_DISK_HEALTH_STATE_WORN, strings.Join(worn, ", ")
	}
	if len(failing) > 0 {
		h.State, h.Message = v1.DiskHealthState_DISK_HEALTH_STATE_FAILING, strings.Join(append(failing, worn...), ", ")
	}
}

// count is a number of things: "1 sector", "3 sectors".
func count(n uint64, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}
