package disk

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"
)

// sysTree makes a tree of the kernel's with these disks: by their place, attributes.
func sysTree(t *testing.T, disks map[string]map[string]string) string {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "block"), 0o755); err != nil {
		t.Fatal(err)
	}
	for place, attributes := range disks {
		dir := filepath.Join(root, "devices", place)
		for name, value := range attributes {
			file := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(value), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink(dir, filepath.Join(root, "block", filepath.Base(place))); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const (
	stickPlace = "pci0000:00/0000:00:14.0/usb1/1-2/1-2.3/1-2.3:1.0/host6/target6:0:0/6:0:0:0/block/sda"
	sataPlace  = "pci0000:00/0000:00:17.0/ata3/host2/target2:0:0/2:0:0:0/block/sdb"
	nvmePlace  = "pci0000:00/0000:00:1d.0/0000:01:00.0/nvme/nvme0/nvme0n1"
	emmcPlace  = "pci0000:00/0000:00:1a.0/mmc_host/mmc0/mmc0:0001/block/mmcblk0"
	cardPlace  = "pci0000:00/0000:00:1b.0/mmc_host/mmc1/mmc1:0001/block/mmcblk1"
	virtPlace  = "pci0000:00/0000:00:05.0/virtio3/block/vda"
)

func tree(t *testing.T) string {
	return sysTree(t, map[string]map[string]string{
		stickPlace: {"size": "60628992\n", "removable": "1\n", "device/vendor": "Kingston\n", "device/model": "DataTraveler 3.0\n", "../../../../../../serial": "E0D55EA573\n"},
		sataPlace: {"size": "1953525168\n", "removable": "0\n", "device/vendor": "ATA     \n", "device/model": "Samsung SSD 870 \n",
			"device/vpd_pg80": "\x00\x80\x00\x0fS5Y2NX0R123456  ", "device/wwid": "naa.5002538f\n", "../../../../../../ata3/ata_port/ata3/port_no": "3\n"},
		nvmePlace:             {"size": "1000215216\n", "queue/logical_block_size": "4096\n", "device/model": "WD_BLACK SN770  \n", "device/serial": "2311AB \n", "wwid": "eui.0001\n", "nsid": "1\n", "removable": "0\n"},
		emmcPlace:             {"size": "61071360\n", "device/type": "MMC\n", "device/name": "DF4032\n", "device/serial": "0x1234\n", "removable": "0\n"},
		cardPlace:             {"size": "61071360\n", "device/type": "SD\n", "device/name": "SC32G\n", "device/serial": "0x9\n", "removable": "0\n"},
		virtPlace:             {"size": "8\n", "serial": "capsule-lab\n", "device/vendor": "0x1af4\n", "ro": "1\n"},
		"virtual/block/loop0": {"size": "8\n"},
		"pci0000:00/0000:00:1a.0/mmc_host/mmc0/mmc0:0001/block/mmcblk0boot0": {"size": "8192\n"},
		"pci0000:00/0000:00:17.0/ata9/host9/target9:0:0/9:0:0:0/block/sdz":   {"size": "0\n"}, // a reader without card
	})
}

func TestDevices(t *testing.T) {
	want := []Device{
		{Name: "mmcblk0", Model: "DF4032", Serial: "0x1234", Bytes: 61071360 * 512, Sector: 512},
		{Name: "mmcblk1", Model: "SC32G", Serial: "0x9", Bytes: 61071360 * 512, Sector: 512, Removable: true},
		{Name: "nvme0n1", Model: "WD_BLACK SN770", Serial: "2311AB", WWN: "eui.0001", Bytes: 1000215216 * 512, Sector: 4096},
		{Name: "sda", Model: "Kingston DataTraveler 3.0", Serial: "E0D55EA573", Bytes: 60628992 * 512, Sector: 512, Removable: true},
		{Name: "sdb", Model: "Samsung SSD 870", Serial: "S5Y2NX0R123456", WWN: "naa.5002538f", Bytes: 1953525168 * 512, Sector: 512},
		{Name: "vda", Model: "virtio disk", Serial: "capsule-lab", Bytes: 8 * 512, Sector: 512, ReadOnly: true},
	}
	if diff := cmp.Diff(want, Devices(tree(t))); diff != "" {
		t.Error(diff)
	}
	if d := want[4]; !d.Is("s5y2nx0r123456") || !d.Is("naa.5002538F") || d.Is("") || d.Is("S5Y2") || (Device{}).Is("") {
		t.Error("a disk is not what it's named by")
	}
}

// A disk in an enclosure is as easily pulled out as a stick, whatever its own driver
// says: a capsule's stick may be one.
func TestRemovable(t *testing.T) {
	const nvme = "pci0000:00/0000:00:07.0/0000:04:00.0/0000:05:01.0/0000:06:00.0/nvme/nvme1/nvme1n1"
	port := map[string]string{"the enclosure": "../../../", "its bridge": "../../../../", "the port": "../../../../../"}
	for name, up := range port {
		for says, want := range map[string]bool{"removable\n": true, "fixed\n": false, "unknown\n": false} {
			sysfs := sysTree(t, map[string]map[string]string{nvme: {"size": "8\n", "removable": "0\n", up + "removable": says}})
			if d, ok := Describe(sysfs, "nvme1n1"); !ok || d.Removable != want {
				t.Errorf("%s is %q: %+v", name, says, d)
			}
		}
	}
}

// node makes a device path's node.
func node(kind, sub byte, data ...byte) []byte {
	return append([]byte{kind, sub, byte(4 + len(data)), 0}, data...)
}

var (
	acpi = node(2, 1, 0xd0, 0x41, 0x03, 0x0a, 0, 0, 0, 0)
	last = node(0x7f, 0xff)
)

func pci(device, function byte) []byte { return node(1, 1, function, device) }

func path(nodes ...[]byte) (b []byte) {
	for _, n := range nodes {
		b = append(b, n...)
	}
	return append(b, last...)
}

// setOption makes the firmware say that it booted by an option with this path.
func setOption(t *testing.T, dir string, path []byte) {
	t.Helper()
	option := []byte{7, 0, 0, 0, 1, 0, 0, 0}
	option = binary.LittleEndian.AppendUint16(option, uint16(len(path)))
	for _, unit := range utf16.Encode([]rune("UEFI disk\x00")) {
		option = binary.LittleEndian.AppendUint16(option, unit)
	}
	option = append(append(option, path...), 1, 2, 3) // and what the option's own data is
	for name, b := range map[string][]byte{"BootCurrent-": {6, 0, 0, 0, 0x0a, 0}, "Boot000A-": option} {
		if err := os.WriteFile(filepath.Join(dir, name+globalGUID), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBootPlace(t *testing.T) {
	sysfs := tree(t)
	for name, tc := range map[string]struct {
		path []byte
		want []string // disks that are there
	}{
		"nvme":           {path(acpi, pci(0x1d, 0), pci(0, 0), node(3, 0x17, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)), []string{"nvme0n1"}},
		"another unit":   {path(acpi, pci(0x1d, 0), pci(0, 0), node(3, 0x17, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)), nil},
		"sata":           {path(acpi, pci(0x17, 0), node(3, 0x12, 2, 0, 0xff, 0xff, 0, 0)), []string{"sdb"}},
		"another port":   {path(acpi, pci(0x17, 0), node(3, 0x12, 1, 0, 0xff, 0xff, 0, 0)), nil},
		"usb":            {path(acpi, pci(0x14, 0), node(3, 5, 1, 0), node(3, 5, 2, 0)), []string{"sda"}},
		"another socket": {path(acpi, pci(0x14, 0), node(3, 5, 2, 0)), nil},
		"virtio":         {path(acpi, pci(5, 0)), []string{"vda"}},
		"short form":     {path(node(4, 1, make([]byte, 38)...)), nil},
	} {
		t.Run(name, func(t *testing.T) {
			vars := t.TempDir()
			setOption(t, vars, tc.path)
			place := BootPlace(vars)
			if place.Known() == (name == "short form") {
				t.Errorf("known: %t", place.Known())
			}
			var got []string
			for _, d := range Devices(sysfs) {
				if place.Known() && place.Holds(sysfs, d.Name) {
					got = append(got, d.Name)
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	if BootPlace(t.TempDir()).Known() {
		t.Error("a firmware without variables knows the place")
	}
}

// Copies have equal ids: the disk that the firmware booted is taken, whatever the
// order of their names.
func TestChoose(t *testing.T) {
	sysfs := tree(t)
	vars := t.TempDir()
	setOption(t, vars, path(acpi, pci(0x17, 0), node(3, 0x12, 2, 0, 0xff, 0xff, 0, 0)))
	booted, none := BootPlace(vars), BootPlace(t.TempDir())
	for name, tc := range map[string]struct {
		names []string
		place Place
		want  string
		sure  bool
	}{
		"the one that was booted":          {[]string{"nvme0n1", "sda", "sdb"}, booted, "sdb", true},
		"in any order":                     {[]string{"sdb", "nvme0n1"}, booted, "sdb", true},
		"it isn't there yet":               {[]string{"nvme0n1"}, booted, "nvme0n1", false},
		"no place: not the stick":          {[]string{"sda", "sdb"}, none, "sdb", true},
		"no place: by the way to it":       {[]string{"nvme0n1", "sdb"}, none, "sdb", true},
		"no place: a single one, a stick":  {[]string{"sda"}, none, "sda", true},
		"another place, and a single disk": {[]string{"sda"}, booted, "sda", false},
	} {
		t.Run(name, func(t *testing.T) {
			if got, sure := choose(sysfs, tc.names, tc.place); got != tc.want || sure != tc.sure {
				t.Errorf("%s, sure %t", got, sure)
			}
		})
	}
}

func FuzzParseOption(f *testing.F) {
	f.Add(path(acpi, pci(1, 0)))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = parseOption(b) })
}
