package disk

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// globalGUID is the vendor of the firmware's own variables (UEFI 2.10, 3.3).
const globalGUID = "8be4df61-93ca-11d2-aa0d-00e098032b8c"

// A Place is where the firmware found what it booted, as far as its boot option
// tells: the way over PCI, and the port, namespace or unit behind it. Two disks that
// are copies of each other have the same ids, but not the same place.
type Place struct {
	pci  []pciNode
	usb  []int // ports from the controller on, counted from 1
	sata int   // port, counted from 0; -1
	nvme int   // namespace; -1
	scsi []int // target and unit; nil
}

type pciNode struct{ device, function int }

// Known says whether it tells anything.
func (p Place) Known() bool { return len(p.pci) > 0 }

// BootPlace reads the option that this boot was started by. A short form, which names
// a partition and no way to it, tells nothing.
func BootPlace(dir string) Place {
	nowhere := Place{sata: -1, nvme: -1}
	current, err := os.ReadFile(filepath.Join(dir, "BootCurrent-"+globalGUID))
	if err != nil || len(current) != 6 {
		return nowhere
	}
	name := fmt.Sprintf("Boot%04X-%s", binary.LittleEndian.Uint16(current[4:]), globalGUID)
	option, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil || len(option) < 4 {
		return nowhere
	}
	p, ok := parseOption(option[4:])
	if !ok {
		return nowhere
	}
	return p
}

// parseOption reads a load option (UEFI 2.10, 3.1.3): attributes, length of the path,
// description, path.
func parseOption(b []byte) (Place, bool) {
	if len(b) < 6 {
		return Place{}, false
	}
	length := int(binary.LittleEndian.Uint16(b[4:]))
	at := 6
	for ; at+1 < len(b); at += 2 {
		if b[at] == 0 && b[at+1] == 0 {
			break
		}
	}
	at += 2
	if at+length > len(b) {
		return Place{}, false
	}
	return parsePath(b[at : at+length])
}

// parsePath reads the nodes of a device path (UEFI 2.10, 10.3).
func parsePath(b []byte) (Place, bool) {
	p, le := Place{sata: -1, nvme: -1}, binary.LittleEndian
	for len(b) >= 4 {
		kind, size := uint16(b[0])<<8|uint16(b[1]), int(le.Uint16(b[2:]))
		if size < 4 || size > len(b) {
			return Place{}, false
		}
		data := b[4:size]
		b = b[size:]
		switch {
		case kind == 0x0101 && len(data) >= 2: // PCI
			p.pci = append(p.pci, pciNode{device: int(data[1]), function: int(data[0])})
		case kind == 0x0302 && len(data) >= 4: // SCSI
			p.scsi = []int{int(le.Uint16(data)), int(le.Uint16(data[2:]))}
		case kind == 0x0305 && len(data) >= 2: // USB
			p.usb = append(p.usb, int(data[0])+1)
		case kind == 0x0312 && len(data) >= 2: // SATA
			p.sata = int(le.Uint16(data))
		case kind == 0x0317 && len(data) >= 4: // NVMe
			p.nvme = int(le.Uint32(data))
		}
	}
	return p, true
}

var (
	pciAddress = regexp.MustCompile(`^[0-9a-f]{4,8}:[0-9a-f]{2}:([0-9a-f]{2})\.([0-7])$`)
	scsiUnit   = regexp.MustCompile(`^\d+:\d+:(\d+):(\d+)$`)
	ataPort    = regexp.MustCompile(`^ata\d+$`)
)

// Holds says whether this disk is at the place.
func (p Place) Holds(sysfs, name string) bool {
	dir := filepath.Join(sysfs, "block", name)
	way := strings.Split(resolved(dir), "/")
	var got Place
	var unit []int
	for i, part := range way {
		if m := pciAddress.FindStringSubmatch(part); m != nil {
			device, _ := strconv.ParseUint(m[1], 16, 8)
			function, _ := strconv.ParseUint(m[2], 16, 8)
			got.pci = append(got.pci, pciNode{int(device), int(function)})
		}
		if usbDevice.MatchString(part) { // the last one has all ports on the way
			got.usb = ports(part)
		}
		if m := scsiUnit.FindStringSubmatch(part); m != nil {
			unit = []int{number(m[1]), number(m[2])}
		}
		if ataPort.MatchString(part) && p.sata >= 0 {
			port := filepath.Join(append([]string{"/"}, way[:i+1]...)...)
			if n := sysfsInt(filepath.Join(port, "ata_port", part), "port_no"); n >= 0 && n-1 != p.sata {
				return false
			}
		}
	}
	if !slices.Equal(got.pci, p.pci) || !slices.Equal(got.usb, p.usb) {
		return false
	}
	if id := sysfsInt(dir, "nsid"); p.nvme >= 0 && id >= 0 && id != p.nvme {
		return false
	}
	return p.scsi == nil || unit == nil || slices.Equal(unit, p.scsi)
}

func number(text string) int {
	n, _ := strconv.Atoi(text)
	return n
}

// ports of "1-2.4": 2, then 4.
func ports(name string) (list []int) {
	_, way, _ := strings.Cut(name, "-")
	for part := range strings.SplitSeq(way, ".") {
		list = append(list, number(part))
	}
	return list
}
