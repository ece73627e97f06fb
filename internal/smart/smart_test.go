package smart

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	v1 "capsule/api/capsule/v1"
)

// nvmeLog is the page of a good disk with changes.
func nvmeLog(change func([]byte)) []byte {
	log := make([]byte, healthBytes)
	binary.LittleEndian.PutUint16(log[1:], 273+41)
	log[3], log[4], log[5] = 100, 10, 3
	binary.LittleEndian.PutUint64(log[128:], 12345)
	change(log)
	return log
}

func TestNVMe(t *testing.T) {
	for name, tc := range map[string]struct {
		change  func([]byte)
		state   v1.DiskHealthState
		message string
	}{
		"good":        {func([]byte) {}, v1.DiskHealthState_DISK_HEALTH_STATE_GOOD, ""},
		"read-only":   {func(b []byte) { b[0] = 1 << 3 }, v1.DiskHealthState_DISK_HEALTH_STATE_FAILING, "it takes no more writes"},
		"hot":         {func(b []byte) { b[0] = 1 << 1 }, v1.DiskHealthState_DISK_HEALTH_STATE_WORN, "it is too hot or too cold"},
		"no spare":    {func(b []byte) { b[3] = 9 }, v1.DiskHealthState_DISK_HEALTH_STATE_FAILING, "its spare blocks run out"},
		"said itself": {func(b []byte) { b[0], b[3] = 1, 9 }, v1.DiskHealthState_DISK_HEALTH_STATE_FAILING, "its spare blocks run out"},
		"used up":     {func(b []byte) { b[5] = 104 }, v1.DiskHealthState_DISK_HEALTH_STATE_WORN, "104 % of its life is used up"},
		"one error":   {func(b []byte) { b[160] = 1 }, v1.DiskHealthState_DISK_HEALTH_STATE_WORN, "1 error of its media"},
		"both":        {func(b []byte) { b[0], b[160] = 1<<2, 2 }, v1.DiskHealthState_DISK_HEALTH_STATE_FAILING, "its media are no longer reliable, 2 errors of its media"},
	} {
		var h v1.DiskHealth
		if err := parseNVMe(nvmeLog(tc.change), &h); err != nil || h.State != tc.state || h.Message != tc.message {
			t.Errorf("%s: %v, %v %q, want %v %q", name, err, h.State, h.Message, tc.state, tc.message)
		}
	}
	var h v1.DiskHealth
	if err := parseNVMe(nvmeLog(func([]byte) {}), &h); err != nil || h.Celsius != 41 || h.PowerOnHours != 12345 || h.GetUsedPercent() != 3 {
		t.Errorf("%v: %v", err, &h)
	}
	if parseNVMe(make([]byte, 100), &h) == nil {
		t.Error("a short log is taken")
	}
}

// ataPage holds attributes by number, each with six raw bytes.
func ataPage(raw map[byte][6]byte) []byte {
	page := make([]byte, sectorBytes)
	at := attributesAt
	for id, value := range raw {
		page[at] = id
		copy(page[at+5:], value[:])
		at += attributeBytes
	}
	sum := byte(0)
	for _, b := range page {
		sum += b
	}
	page[sectorBytes-1] = -sum
	return page
}

func TestATA(t *testing.T) {
	good := registers{lbaMid: 0x4f, lbaHigh: 0xc2}
	fails := registers{lbaMid: 0xf4, lbaHigh: 0x2c}
	for name, tc := range map[string]struct {
		raw    map[byte][6]byte
		status registers
		want   *v1.DiskHealth
	}{
		"good": {
			map[byte][6]byte{9: {0x39, 0x30, 0, 0x77, 1}, 194: {38, 0, 20, 0, 45, 0}}, good,
			&v1.DiskHealth{State: v1.DiskHealthState_DISK_HEALTH_STATE_GOOD, PowerOnHours: 12345, Celsius: 38},
		},
		"airflow only": {map[byte][6]byte{190: {29}}, good, &v1.DiskHealth{State: v1.DiskHealthState_DISK_HEALTH_STATE_GOOD, Celsius: 29}},
		"lost sectors": {
			map[byte][6]byte{5: {3, 0, 9}, 197: {1}}, good,
			&v1.DiskHealth{State: v1.DiskHealthState_DISK_HEALTH_STATE_WORN, Message: "1 sector can't be read, 3 sectors had to be replaced", ReallocatedSectors: 3, PendingSectors: 1},
		},
		"fails": {nil, fails, &v1.DiskHealth{State: v1.DiskHealthState_DISK_HEALTH_STATE_FAILING, Message: "it says itself that it fails soon"}},
	} {
		var h v1.DiskHealth
		if err := parseATA(ataPage(tc.raw), tc.status, &h); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(tc.want, &h, protocmp.Transform()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	page := ataPage(nil)
	page[100]++
	if parseATA(page, good, &v1.DiskHealth{}) == nil {
		t.Error("a wrong checksum is taken")
	}
}

// As the kernel's ATA layer writes it, in both formats.
func TestSense(t *testing.T) {
	descriptor := []byte{0x72, 1, 0, 0x1d, 0, 0, 0, 14, 9, 12, 0, 0, 0, 0xff, 0, 0, 0, 0x4f, 0, 0xc2, 0x40, 0x50}
	fixed := []byte{0x70, 0, 1, 0, 0x50, 0x40, 0xff, 10, 0, 0, 0x4f, 0xc2, 0, 0x1d}
	for _, sense := range [][]byte{descriptor, fixed} {
		if got, err := parseSense(sense); err != nil || got != (registers{0xff, 0x4f, 0xc2}) {
			t.Errorf("%x: %v, %v", sense, got, err)
		}
	}
	for _, sense := range [][]byte{nil, {0x72}, fixed[:8], {0x72, 0, 0, 0, 0, 0, 0, 0}} {
		if _, err := parseSense(sense); err == nil {
			t.Errorf("%x is taken", sense)
		}
	}
}

func TestMMC(t *testing.T) {
	for _, tc := range []struct {
		life, spare string
		state       v1.DiskHealthState
		used        uint32
	}{
		{"0x01 0x02", "0x01", v1.DiskHealthState_DISK_HEALTH_STATE_GOOD, 20},
		{"0x0b 0x01", "0x01", v1.DiskHealthState_DISK_HEALTH_STATE_WORN, 110},
		{"0x01 0x01", "0x02", v1.DiskHealthState_DISK_HEALTH_STATE_WORN, 10},
		{"0x01 0x01", "0x03", v1.DiskHealthState_DISK_HEALTH_STATE_FAILING, 10},
		{"0x00 0x00", "0x00", v1.DiskHealthState_DISK_HEALTH_STATE_SILENT, 0},
		{"", "", v1.DiskHealthState_DISK_HEALTH_STATE_SILENT, 0},
	} {
		var h v1.DiskHealth
		if parseMMC(tc.life, tc.spare, &h); h.State != tc.state || h.GetUsedPercent() != tc.used {
			t.Errorf("%q %q: %v", tc.life, tc.spare, &h)
		}
	}
}

// What sleeps, or hangs on USB, is not opened: there is no such device here.
func TestReadLeavesDisksAlone(t *testing.T) {
	sysfs := t.TempDir()
	dir := filepath.Join(sysfs, "block/sdz/device/power")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "runtime_status"), []byte("suspended\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	known := &v1.DiskHealth{Name: "sdz", State: v1.DiskHealthState_DISK_HEALTH_STATE_GOOD, Celsius: 30}
	if Read(sysfs, known); !known.Asleep || known.State != v1.DiskHealthState_DISK_HEALTH_STATE_GOOD || known.Celsius != 30 {
		t.Errorf("%v", known)
	}
	fresh := &v1.DiskHealth{Name: "sdz"}
	if Read(sysfs, fresh); !fresh.Asleep || fresh.State != v1.DiskHealthState_DISK_HEALTH_STATE_SILENT {
		t.Errorf("%v", fresh)
	}
	usb := &v1.DiskHealth{Name: "sdy", Removable: true}
	if Read(sysfs, usb); usb.State != v1.DiskHealthState_DISK_HEALTH_STATE_SILENT || usb.Asleep {
		t.Errorf("%v", usb)
	}
	gone := &v1.DiskHealth{Name: "nvme99n1"}
	if Read(sysfs, gone); gone.State != v1.DiskHealthState_DISK_HEALTH_STATE_SILENT || gone.Message != "does not answer: no such file or directory" {
		t.Errorf("%v", gone)
	}
}

// The kernel reads these as they are.
func TestSizes(t *testing.T) {
	if n := unsafe.Sizeof(adminCommand{}); n != 72 {
		t.Errorf("struct nvme_admin_cmd of %d bytes", n)
	}
	if n := unsafe.Sizeof(sgHeader{}); n != 88 {
		t.Errorf("struct sg_io_hdr of %d bytes", n)
	}
}

func FuzzLogs(f *testing.F) {
	f.Add(nvmeLog(func([]byte) {}))
	f.Add(ataPage(map[byte][6]byte{5: {1}}))
	f.Add([]byte{0x72, 1, 0, 0x1d, 0, 0, 0, 14, 9, 12})
	f.Fuzz(func(t *testing.T, data []byte) {
		var h v1.DiskHealth
		if parseNVMe(data, &h) == nil && h.State < v1.DiskHealthState_DISK_HEALTH_STATE_GOOD {
			t.Errorf("no verdict: %v", &h)
		}
		status, _ := parseSense(data)
		if parseATA(data, status, &h) == nil && h.State < v1.DiskHealthState_DISK_HEALTH_STATE_GOOD {
			t.Errorf("no verdict: %v", &h)
		}
		parseMMC(string(data), string(data), &h)
	})
}
