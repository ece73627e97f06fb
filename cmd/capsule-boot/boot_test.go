package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"capsule/internal/disk"
	"capsule/internal/slot"
)

func TestParseCmdline(t *testing.T) {
	got, err := parseCmdline("quiet capsule.verity=ab12 capsule.verity_offset=4096 capsule.slot=slot_b panic=10\n")
	if diff := cmp.Diff(cmdline{root: slot.Root{Hash: "ab12", DataBytes: 4096}, slot: "slot_b"}, got, cmp.AllowUnexported(cmdline{})); err != nil || diff != "" {
		t.Error(err, diff)
	}
	for _, bad := range []string{"", "capsule.verity=ab", "capsule.verity_offset=1", "capsule.verity=ab capsule.verity_offset=x", "capsule.verity=ab capsule.verity_offset=-1"} {
		if _, err := parseCmdline(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestBootFile(t *testing.T) {
	d := &disk.Disk{Name: "vda", Table: &disk.Table{Partitions: []disk.Partition{{Number: 1, Name: disk.ESP}}}}
	got := describe(d, "AB", disk.SlotA)
	if diff := cmp.Diff(disk.Boot{Slot: disk.SlotA, Disk: "vda", ESPUUID: "ab"}, got); diff != "" {
		t.Error(diff)
	}
}
