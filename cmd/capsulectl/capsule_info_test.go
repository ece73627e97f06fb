package main

import (
	"bytes"
	"flag"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	capsulev1 "capsule/api/capsule/v1"
)

var updateInfo = flag.Bool("update-info", false, "rewrite the golden files of capsule info")

// fullInfo has every field that there is.
func fullInfo() *capsulev1.InfoResponse {
	now := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	return &capsulev1.InfoResponse{
		Name: "attic", Id: "a3f2c0ffee00112233445566778899aa", Version: "1.2.3", Kernel: "6.12.118", Architecture: "amd64", Slot: "slot_a",
		Mode: capsulev1.Mode_MODE_NORMAL, ModeReason: "none", BootedAt: timestamppb.New(now.Add(-76 * time.Hour)), Time: timestamppb.New(now), ClockSynchronized: true,
		Cpus: 4, MemoryTotal: 16 << 30, MemoryAvailable: 12 << 30, PermTotal: 100 << 30, PermFree: 60 << 30,
		Addresses: []string{"10.0.0.2/24", "fd00::2/64"}, Workloads: 3, WorkloadsRunning: 2, DaemonStarts: 1, Watchdog: "i6300esb",
		NetworkMessage: "eth1: no cable", Virtualization: "kvm", Secrets: "key sealed to the TPM", Tpm: "TPM 2.0",
		Pool:      &capsulev1.Pool{Size: 200 << 30, Used: 20 << 30, MetadataSize: 1 << 30, MetadataUsed: 1 << 28, Promised: 300 << 30, OvercommitMax: 1000, Level: capsulev1.PoolLevel_POOL_LEVEL_OK, Reserve: 10 << 30},
		Tentative: &capsulev1.TentativeSystem{Left: durationpb.New(9 * time.Minute), ConfirmsIn: durationpb.New(time.Minute)},
		Problems: []*capsulev1.Problem{
			{Severity: capsulev1.Severity_SEVERITY_CRITICAL, Id: "disk/sda", What: "disk sda (Old S2) fails: it says itself that it fails soon", Next: "replace it"},
			{Severity: capsulev1.Severity_SEVERITY_NOTE, Id: "clock", What: "the clock was wrong by 3s", Next: "watch it"},
		},
		CpuModel: "Intel(R) N100", Load: []float64{0.5, 0.25, 0.1},
		Temperatures: []*capsulev1.Temperature{{Name: "coretemp: Package id 0", Celsius: 48, Critical: 100}, {Name: "nct6775: temp3", Celsius: 31.5}},
		Disks: []*capsulev1.DiskHealth{
			{Name: "nvme0n1", Model: "Fast", Serial: "S1", Size: 1 << 40, State: capsulev1.DiskHealthState_DISK_HEALTH_STATE_GOOD, CheckedAt: timestamppb.New(now.Add(-time.Minute)), Celsius: 41,
				PowerOnHours: 12345, UsedPercent: proto.Uint32(3), MediaErrors: 1, System: true},
			{Name: "sda", Model: "Old", Serial: "S2", Size: 4 << 40, State: capsulev1.DiskHealthState_DISK_HEALTH_STATE_FAILING, Message: "it says itself that it fails soon", Asleep: true, ReallocatedSectors: 9, PendingSectors: 1},
			{Name: "sdb", Model: "Stick", Size: 8 << 30, State: capsulev1.DiskHealthState_DISK_HEALTH_STATE_SILENT, Message: "not asked: a disk on USB or in a slot", Removable: true},
		},
		Uplinks: []*capsulev1.UplinkState{
			{Name: "enp1s0", Addresses: []string{"10.0.0.2/24", "fd00::2/64"}, HardwareAddress: "52:54:00:12:34:56", Carrier: true, Speed: 2500},
			{Name: "enp2s0", HardwareAddress: "52:54:00:12:34:57"},
		},
		NameServers: []string{"10.0.0.1"},
		Clock:       &capsulev1.ClockState{Server: "10.0.0.1", Offset: durationpb.New(-1500 * time.Microsecond), CheckedAt: timestamppb.New(now.Add(-10 * time.Minute)), Error: "no answer"},
	}
}

// What programs read stays as it is: whoever changes a line of the golden file breaks
// them. Every field is in it.
func TestInfoJSONIsStable(t *testing.T) {
	info := fullInfo()
	fields := info.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if !info.ProtoReflect().Has(fields.Get(i)) {
			t.Errorf("the test lacks the field %q", fields.Get(i).Name())
		}
	}
	got, err := view{single: true, values: []any{info}}.json()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/info.json", append(got, '\n'))
}

func TestInfoTable(t *testing.T) {
	var text bytes.Buffer
	info := fullInfo()
	rows := append(problemRows(info.GetProblems()), infoFacts(info, "1.2.2 in slot_b")...)
	if err := (&ui{out: &text}).table(nil, append(rows, storageFacts(info.GetPool(), nil)...)); err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/info.txt", text.Bytes())
}

func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *updateInfo {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Error(diff)
	}
}

// Of a capsule that tells none of what is new, or has none, nothing is made up.
func TestInfoOfAnOlderCapsule(t *testing.T) {
	info := &capsulev1.InfoResponse{Name: "old", Time: timestamppb.Now(), BootedAt: timestamppb.Now()}
	for _, row := range infoFacts(info, "") {
		for _, absent := range []string{"temperature:", "disk ", "uplink ", "name servers:", "other slot:"} {
			if len(row[0]) >= len(absent) && row[0][:len(absent)] == absent {
				t.Errorf("%q", row)
			}
		}
	}
	if rows := problemRows(nil); rows != nil {
		t.Errorf("%q", rows)
	}
}
