package hardware

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	v1 "capsule/api/capsule/v1"
)

// tree makes files below a folder of its own.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestTemperatures(t *testing.T) {
	for name, tc := range map[string]struct {
		files map[string]string
		want  []*v1.Temperature
	}{
		"none": {nil, nil},
		"chips, but no disks and no sensor that nothing hangs on": {map[string]string{
			"sys/class/hwmon/hwmon0/name":        "coretemp",
			"sys/class/hwmon/hwmon0/temp1_input": "48000", "sys/class/hwmon/hwmon0/temp1_label": "Package id 0", "sys/class/hwmon/hwmon0/temp1_crit": "100000",
			"sys/class/hwmon/hwmon1/name": "nvme", "sys/class/hwmon/hwmon1/temp1_input": "39850",
			"sys/class/hwmon/hwmon2/name": "nct6775", "sys/class/hwmon/hwmon2/temp2_input": "-61000", "sys/class/hwmon/hwmon2/temp3_input": "31500",
			"sys/class/hwmon/hwmon2/temp3_crit": "200000", "sys/class/hwmon/hwmon2/temp7_input": "0",
			"sys/class/thermal/thermal_zone0/type": "acpitz", "sys/class/thermal/thermal_zone0/temp": "27800",
		}, []*v1.Temperature{{Name: "coretemp: Package id 0", Celsius: 48, Critical: 100}, {Name: "nct6775: temp3", Celsius: 31.5}}},
		"cooling only": {map[string]string{
			"sys/class/thermal/thermal_zone0/type": "cpu-thermal", "sys/class/thermal/thermal_zone0/temp": "52000",
			"sys/class/thermal/thermal_zone1/type": "gpu-thermal",
		}, []*v1.Temperature{{Name: "cpu-thermal", Celsius: 52}}},
	} {
		if diff := cmp.Diff(tc.want, Temperatures(tree(t, tc.files)), protocmp.Transform()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestParts(t *testing.T) {
	root := tree(t, map[string]string{
		"proc/cpuinfo": "processor\t: 0\nmodel name\t: Intel(R)  N100\nflags\t: fpu", "proc/loadavg": "0.52 0.41 0.30 1/180 4242",
		"sys/class/tpm/tpm0/tpm_version_major": "2",
		"sys/class/net/enp1s0/address":         "52:54:00:12:34:56", "sys/class/net/enp1s0/carrier": "1", "sys/class/net/enp1s0/speed": "2500",
		"sys/class/net/virt/carrier": "1", "sys/class/net/virt/speed": "-1",
	})
	if got := Processor(root); got != "Intel(R) N100" {
		t.Error(got)
	}
	if diff := cmp.Diff([]float64{0.52, 0.41, 0.3}, Load(root)); diff != "" {
		t.Error(diff)
	}
	if got := TPM(root); got != "TPM 2.0" {
		t.Error(got)
	}
	want := &v1.UplinkState{Name: "enp1s0", HardwareAddress: "52:54:00:12:34:56", Carrier: true, Speed: 2500}
	if diff := cmp.Diff(want, Link(root, "enp1s0"), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(&v1.UplinkState{Name: "virt", Carrier: true}, Link(root, "virt"), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	empty := t.TempDir()
	if Processor(empty) != "" || Load(empty) != nil || TPM(empty) != "" {
		t.Error("something is told of nothing")
	}
}

// Disks are told of at once, asked later, and what was told before of one is not changed.
func TestWatch(t *testing.T) {
	root := tree(t, map[string]string{"sys/block/vda/size": "2097152", "sys/block/vda/serial": "one"})
	synctest.Test(t, func(t *testing.T) {
		w := &Watch{Root: root, System: "vda"}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); _ = w.Run(ctx) }()
		synctest.Wait()
		first := w.Disks()
		want := []*v1.DiskHealth{{Name: "vda", Serial: "one", Size: 1 << 30, System: true, State: v1.DiskHealthState_DISK_HEALTH_STATE_PENDING, Message: "not asked yet"}}
		if diff := cmp.Diff(want, first, protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
		again(ctx, disksAfter+1, disksEvery, cancel) // the clock goes on only now
		<-ended
		asked := w.Disks()
		if len(asked) != 1 || asked[0].State != v1.DiskHealthState_DISK_HEALTH_STATE_SILENT || asked[0].CheckedAt == nil || first[0].State != v1.DiskHealthState_DISK_HEALTH_STATE_PENDING {
			t.Errorf("%v, before %v", asked, first)
		}
		if err := os.RemoveAll(filepath.Join(root, "sys/block/vda")); err != nil {
			t.Fatal(err)
		}
		if left := w.Disks(); len(left) != 0 {
			t.Errorf("%v is gone", left)
		}
	})
}
