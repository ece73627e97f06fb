package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// disksMax is how long the kernel may take to find a disk.
const disksMax = 10 * time.Second

// awaitDevice looks whenever the kernel tells of a change, for a time.
func awaitDevice(limit time.Duration, there func() bool) error {
	if there() {
		return nil
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return fmt.Errorf("listen to the kernel: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return fmt.Errorf("listen to the kernel: %w", err)
	}
	event := make([]byte, 4096)
	for end := time.Now().Add(limit); !there(); {
		left := time.Until(end)
		if left <= 0 {
			return fmt.Errorf("not there after %v", limit)
		}
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		for n := 1; n > 0; { // what they say is seen in /sys
			n, _ = unix.Read(fd, event)
		}
	}
	return nil
}

// disk gives the device of the disk with the serial number.
func disk(serial string) (string, error) {
	var name string
	err := awaitDevice(disksMax, func() bool {
		name = findDisk("/sys/block", serial)
		return name != ""
	})
	if err != nil {
		return "", fmt.Errorf("find disk %q: %w", serial, err)
	}
	return filepath.Join("/dev", name), nil
}

// findDisk looks for a disk in a folder of them: a virtio one has an attribute for
// its serial number, a SCSI one a page of the product's data.
func findDisk(folder, serial string) string {
	if name := named(folder, "serial", serial); name != "" {
		return name
	}
	files, _ := filepath.Glob(filepath.Join(folder, "*", "device", "vpd_pg80")) // the pattern is good
	for _, file := range files {
		if page, err := os.ReadFile(file); err == nil && serialPage(page) == serial {
			return filepath.Base(filepath.Dir(filepath.Dir(file)))
		}
	}
	return ""
}

// serialPage reads the serial number of page 0x80 of a SCSI device's vital product
// data (SPC-3, 7.6.10): kind of device, number of the page, length, text.
func serialPage(page []byte) string {
	const head, number = 4, 0x80
	if len(page) < head || page[1] != number {
		return ""
	}
	text := page[head:]
	return strings.TrimSpace(string(text[:min(len(text), int(binary.BigEndian.Uint16(page[2:])))]))
}

// named gives the device of a class whose attribute has the value.
func named(class, attribute, value string) string {
	files, _ := filepath.Glob(filepath.Join(class, "*", attribute)) // the pattern is good
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(text)) == value {
			return filepath.Base(filepath.Dir(file))
		}
	}
	return ""
}

// partition gives the device of a disk's partition.
func partition(disk string, n int) (string, error) {
	name := filepath.Base(disk)
	if last := name[len(name)-1]; last >= '0' && last <= '9' {
		name += "p"
	}
	name += strconv.Itoa(n)
	err := awaitDevice(disksMax, func() bool {
		_, err := os.Stat(filepath.Join("/sys/class/block", name))
		return err == nil
	})
	if err != nil {
		return "", fmt.Errorf("find partition %d of the image's disk: %w", n, err)
	}
	return filepath.Join("/dev", name), nil
}

// diskBytes is the size of a disk.
func diskBytes(device string) (int64, error) {
	const sectorBytes = 512 // of sysfs, whatever the disk's are
	text, err := os.ReadFile(filepath.Join("/sys/class/block", filepath.Base(device), "size"))
	if err != nil {
		return 0, err
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return sectors * sectorBytes, err
}

// awaitSize waits until the kernel has heard that a disk is that large.
func awaitSize(device string, size int64) error {
	var now int64
	err := awaitDevice(disksMax, func() bool {
		var err error
		now, err = diskBytes(device)
		return err == nil && now >= size
	})
	if err != nil {
		return fmt.Errorf("%s has %d bytes and not %d: %w", device, now, size, err)
	}
	return nil
}

// released tells whether no file system holds the device any more.
func released(device string) error {
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s is still in use", device)
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: device, Err: err}
	}
	return unix.Close(fd)
}
