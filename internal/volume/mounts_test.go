package volume

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseMountings(t *testing.T) {
	const table = `22 28 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
90 28 253:4 / /run/capsule/volumes/photos rw,noatime - ext4 /dev/mapper/x rw,discard,errors=remount-ro
91 28 253:5 / /run/capsule/volumes/with\040blank rw,noatime master:1 - ext4 /dev/mapper/y ro,discard
92 28 253:6 / /mnt ro - ext4 /dev/mapper/z rw,emergency_ro
`
	want := []mounting{
		{device: "0:20", dir: "/sys"},
		{device: "253:4", dir: "/run/capsule/volumes/photos"},
		{device: "253:5", dir: "/run/capsule/volumes/with blank", readOnly: true},
		{device: "253:6", dir: "/mnt", readOnly: true},
	}
	got, err := parseMountings(strings.NewReader(table))
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(mounting{})); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if _, err := parseMountings(strings.NewReader("nonsense\n")); err == nil {
		t.Error("nonsense was read")
	}
	if all, err := mountings("/proc"); err != nil || len(all) == 0 {
		t.Errorf("of this machine: %v, %v", all, err)
	}
}

func FuzzParseMountings(f *testing.F) {
	f.Add("22 28 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n")
	f.Fuzz(func(t *testing.T, table string) { _, _ = parseMountings(strings.NewReader(table)) })
}
