package disk

import (
	"cmp"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A Device is a whole disk as an operator knows it: by what stands on its label.
type Device struct {
	Name      string // of this boot: "nvme0n1"
	Model     string
	Serial    string // "" when it tells none
	WWN       string // worldwide name, "" when it has none
	Bytes     uint64
	Sector    int  // logical block, bytes
	Removable bool // the medium, or a disk on USB, Thunderbolt or in a card slot
	ReadOnly  bool
}

// Path is the device of the disk.
func (d Device) Path() string { return filepath.Join("/dev", d.Name) }

// Devices lists the disks that there are now, by name.
func Devices(sysfs string) []Device {
	entries, _ := os.ReadDir(filepath.Join(sysfs, "block"))
	var list []Device
	for _, e := range entries {
		if skip(e.Name()) || bootArea.MatchString(e.Name()) {
			continue
		}
		if d, ok := Describe(sysfs, e.Name()); ok {
			list = append(list, d)
		}
	}
	slices.SortFunc(list, func(a, b Device) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// bootArea is a small disk of its own on an eMMC, for a firmware.
var bootArea = regexp.MustCompile(`^mmcblk\d+(boot\d+|rpmb)$`)

// Describe is one of Devices; false when there is no such disk, or no medium in it.
func Describe(sysfs, name string) (Device, bool) {
	dir := filepath.Join(sysfs, "block", name)
	sectors, err := sysfsUint(dir, "size")
	if err != nil || sectors == 0 || attribute(dir, "hidden") == "1" {
		return Device{}, false
	}
	sector, err := sysfsUint(dir, "queue/logical_block_size")
	if err != nil || sector < 512 {
		sector = 512
	}
	usb := onUSB(dir)
	return Device{
		Name: name, Model: model(dir), Serial: serial(dir, usb), WWN: cmp.Or(attribute(dir, "wwid"), attribute(dir, "device/wwid")),
		Bytes: sectors * 512, Sector: int(sector), ReadOnly: attribute(dir, "ro") == "1",
		Removable: usb != "" || attribute(dir, "removable") == "1" || attribute(dir, "device/type") == "SD" || onRemovable(dir),
	}, true
}

// attribute is a line of text that the kernel tells; "" when it doesn't.
func attribute(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return tidy(string(b))
}

func model(dir string) string {
	name := cmp.Or(attribute(dir, "device/model"), attribute(dir, "device/name"))
	vendor := attribute(dir, "device/vendor")
	if name == "" && strings.Contains(resolved(dir), "/virtio") {
		return "virtio disk"
	}
	// SATA disks say "ATA", PCI devices a number.
	if vendor != "" && vendor != "ATA" && !strings.HasPrefix(vendor, "0x") {
		name = vendor + " " + name
	}
	return strings.TrimSpace(name)
}

// serial asks where each kind of driver tells it: virtio; NVMe and MMC; SCSI and
// SATA, as page 0x80 of the vital product data; and for a USB stick the stick.
func serial(dir, usb string) string {
	number := cmp.Or(attribute(dir, "serial"), attribute(dir, "device/serial"))
	if number == "" {
		if page, err := os.ReadFile(filepath.Join(dir, "device/vpd_pg80")); err == nil && len(page) > 4 {
			number = tidy(string(page[4:]))
		}
	}
	if number == "" && usb != "" {
		number = attribute(usb, "serial")
	}
	return number
}

// usbDevice is a component of a sysfs path: bus, then the ports on the way.
var usbDevice = regexp.MustCompile(`^\d+-\d+(\.\d+)*$`)

// onUSB is the folder of the USB device that a disk is or hangs on; "" when there's
// none.
func onUSB(dir string) string {
	for at := resolved(dir); len(at) > 1; at = filepath.Dir(at) {
		if usbDevice.MatchString(filepath.Base(at)) {
			return at
		}
	}
	return ""
}

// onRemovable tells whether a device on the way to a disk can be pulled out: the kernel
// says so of PCI devices behind a port that faces outwards, as those of Thunderbolt,
// USB4 and SD Express (Documentation/ABI/testing/sysfs-devices-removable). The disk's
// own attribute of that name is a number, and of its medium.
func onRemovable(dir string) bool {
	for at := filepath.Dir(resolved(dir)); len(at) > 1; at = filepath.Dir(at) {
		if attribute(at, "removable") == "removable" {
			return true
		}
	}
	return false
}

// resolved is the place of a device in the kernel's tree.
func resolved(dir string) string {
	path, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return dir
	}
	return path
}

// ID is what the disk is named by: its serial number, else its worldwide name.
func (d Device) ID() string { return cmp.Or(d.Serial, d.WWN) }

// Is says whether an operator means this disk. Numbers are compared without regard
// to letters' case, since labels and drivers differ in it.
func (d Device) Is(id string) bool {
	return id != "" && (strings.EqualFold(d.Serial, id) || strings.EqualFold(d.WWN, id))
}

// sysfsInt reads a number; -1 when there's none.
func sysfsInt(dir, name string) int {
	n, err := strconv.Atoi(attribute(dir, name))
	if err != nil {
		return -1
	}
	return n
}
