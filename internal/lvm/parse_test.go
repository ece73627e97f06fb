package lvm

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"capsule/internal/dm"
)

// What lvm 2.03.31 reports of a group with a pool and volumes.
const someThins = `{"report": [{"lv": [
	{"lv_name":"perm","lv_size":"532676608","lv_active":"active","lv_tags":"","pool_lv":""},
	{"lv_name":"thinpool","lv_size":"1073741824","lv_active":"active","lv_tags":"","pool_lv":""},
	{"lv_name":"snap-a.000002","lv_size":"67108864","lv_active":"","lv_tags":"","pool_lv":"thinpool"},
	{"lv_name":"vol-a.000001","lv_size":"67108864","lv_active":"active","lv_tags":"a,b=c","pool_lv":"thinpool"}
]}], "log": []}`

func TestParseThin(t *testing.T) {
	want := []Thin{
		{Name: "snap-a.000002", SizeBytes: 64 * mib},
		{Name: "vol-a.000001", SizeBytes: 64 * mib, Active: true, Tags: []string{"a", "b=c"}},
	}
	got, err := parseThin([]byte(someThins))
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if got, err := parseThin([]byte(`{"report":[{"lv":[]}]}`)); err != nil || got != nil {
		t.Error("an empty group:", got, err)
	}
	for _, bad := range []string{``, `{}`, `[]`, `{"report":[]}`, `{"report":[{"lv":[{"pool_lv":"thinpool"}]}]}`,
		`{"report":[{"lv":[{"pool_lv":"thinpool","lv_name":"a","lv_size":"4.00m"}]}]}`,
		`{"report":[{"lv":[{"pool_lv":"thinpool","lv_name":"a","lv_size":"-1"}]}]}`} {
		if got, err := parseThin([]byte(bad)); err == nil {
			t.Errorf("%s: %v", bad, got)
		}
	}
}

const someTable = "254:0 254:1 128 1638 1 error_if_no_space"

func TestParsePool(t *testing.T) {
	for status, want := range map[string]PoolState{
		"5 420/4096 16/16384 - rw discard_passdown error_if_no_space - 1024 ":                        {DataUsed: mib, DataSize: gib, MetadataUsed: 420 * 4 * kib, MetadataSize: 16 * mib, Mode: ModeWrite},
		"5 1024/1024 16/16384 - ro no_discard_passdown error_if_no_space needs_check 1024 ":          {DataUsed: mib, DataSize: gib, MetadataUsed: 4 * mib, MetadataSize: 4 * mib, Mode: ModeReadOnly, NeedsCheck: true},
		"5 0/1024 16384/16384 123 out_of_data_space ignore_discard queue_if_no_space - 1024 a_new_1": {DataUsed: gib, DataSize: gib, MetadataSize: 4 * mib, Mode: ModeFull},
		"Fail":  {Mode: ModeFail, NeedsCheck: true},
		"Error": {Mode: ModeFail, NeedsCheck: true},
	} {
		got, err := parsePool(someTable, status)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(PoolState{})); err != nil || diff != "" {
			t.Error(status, err, diff)
		}
	}
	for _, bad := range [][2]string{
		{someTable, ""}, {someTable, "5 1/2"}, {someTable, "5 2/1 1/2 - rw a b -"}, {someTable, "5 1/2 1/99999999999999999999 - rw a b -"},
		{someTable, "5 -1/2 1/2 - rw a b -"}, {someTable, "5 1/2 1/4611686018427387904 - rw a b -"}, {"", "5 1/2 1/2 - rw a b -"}, {"1:1 1:2 0 1", "5 1/2 1/2 - rw a b -"},
	} {
		if got, err := parsePool(bad[0], bad[1]); !errdefs.IsDataLoss(err) {
			t.Errorf("%q: %+v, %v", bad, got, err)
		}
	}
}

func TestParseMapped(t *testing.T) {
	if got, err := parseMapped("256 1023"); err != nil || got != 128*kib {
		t.Error(got, err)
	}
	if got, err := parseMapped("0 -"); err != nil || got != 0 {
		t.Error(got, err)
	}
	for _, bad := range []string{"", "Fail", "-", "Error", "-1 5", "99999999999999999999 1"} {
		if got, err := parseMapped(bad); !errdefs.IsUnavailable(err) {
			t.Errorf("%q: %d, %v", bad, got, err)
		}
	}
}

func TestHalf(t *testing.T) {
	const lvs = `{"report":[{"lv":[
		{"lv_name":"thinpool","pool_lv":"","thin_id":"","transaction_id":"6"},
		{"lv_name":"vol-a.000001","pool_lv":"thinpool","thin_id":"1","transaction_id":"0"},
		{"lv_name":"vol-b.000002","pool_lv":"thinpool","thin_id":"2","transaction_id":"5"}]}]}`
	if name, id, err := half([]byte(lvs), "5 420/4096 8/16384 -"); name != "vol-b.000002" || id != 2 || err != nil {
		t.Error("lvm is one step ahead:", name, id, err)
	}
	for _, same := range []string{"6 ", "4 ", "0"} {
		if name, id, err := half([]byte(lvs), same); id != 0 || err != nil {
			t.Error(same, name, id, err)
		}
	}
	for _, bad := range [][2]string{{lvs, "Fail"}, {lvs, ""}, {"", "5"}, {`{"report":[]}`, "5"},
		{`{"report":[{"lv":[{"lv_name":"thinpool","transaction_id":"6"},{"lv_name":"a","pool_lv":"thinpool","thin_id":"x","transaction_id":"5"}]}]}`, "5"}} {
		if name, id, err := half([]byte(bad[0]), bad[1]); err == nil {
			t.Error(bad, name, id)
		}
	}
}

func TestNames(t *testing.T) {
	for volume, device := range map[string]string{"perm": "capsule-perm", "vol-a--b.0a1b2c": "capsule-vol--a----b.0a1b2c", "thinpool": "capsule-thinpool"} {
		if got := deviceName(volume); got != device {
			t.Errorf("%q: %q", volume, got)
		}
		if got := volumeName(device); got != volume {
			t.Errorf("%q: %q", device, got)
		}
	}
	for _, part := range []string{"capsule-thinpool-tpool", "capsule-thinpool_tdata", "capsule-thinpool_tmeta"} {
		if got := volumeName(part); got != Pool {
			t.Errorf("%q: %q", part, got)
		}
	}
}

func TestRoundUp(t *testing.T) {
	for in, want := range map[int64]int64{1: 4 * mib, 4 * mib: 4 * mib, 4*mib + 1: 8 * mib, 3221225473: 3221225472 + 4*mib} {
		if got := RoundUp(in); got != want {
			t.Errorf("%d: %d, want %d", in, got, want)
		}
	}
}

func FuzzParsePool(f *testing.F) {
	f.Add(someTable, "5 420/4096 16/16384 - rw discard_passdown error_if_no_space - 1024 ")
	f.Add(someTable, "Fail")
	f.Fuzz(func(t *testing.T, table, status string) {
		p, err := parsePool(table, status)
		if err == nil && (p.DataUsed < 0 || p.DataUsed > p.DataSize || p.MetadataUsed < 0 || p.MetadataUsed > p.MetadataSize) {
			t.Errorf("%+v", p)
		}
		if n, err := parseMapped(status); err == nil && n < 0 {
			t.Error(n)
		}
	})
}

func FuzzParseThin(f *testing.F) {
	f.Add([]byte(someThins), "5 ")
	f.Fuzz(func(t *testing.T, lvs []byte, status string) {
		all, err := parseThin(lvs)
		for _, v := range all {
			if err == nil && (v.Name == "" || v.SizeBytes < 0) {
				t.Errorf("%+v", v)
			}
		}
		if name, id, err := half(lvs, status); err == nil && (id != 0) != (name != "") && id < 0 {
			t.Error(name, id)
		}
		_, _ = parseState(lvs, lvs)
	})
}

// What lvm 2.03.31 reports of a group on three disks, of which one is gone and one is
// left.
const somePhysicals = `{"report": [{"pv": [
	{"pv_name":"/dev/vda4", "pv_uuid":"Zs1b0m-rAtE-4cQk-BqQx-0JmY-0aZk-3n9UOe", "pv_size":"1069547520", "pv_free":"54525952", "dev_size":"1073741824", "pv_missing":"", "pv_allocatable":"allocatable", "vg_name":"capsule"},
	{"pv_name":"/dev/vdb", "pv_uuid":"aaaaaa-bbbb-cccc-dddd-eeee-ffff-gggggg", "pv_size":"4290772992", "pv_free":"0", "dev_size":"4294967296", "pv_missing":"", "pv_allocatable":"", "vg_name":"capsule"},
	{"pv_name":"[unknown]", "pv_uuid":"hhhhhh-bbbb-cccc-dddd-eeee-ffff-gggggg", "pv_size":"4290772992", "pv_free":"4290772992", "dev_size":"0", "pv_missing":"missing", "pv_allocatable":"allocatable", "vg_name":"capsule"},
	{"pv_name":"/dev/vdc", "pv_uuid":"iiiiii-bbbb-cccc-dddd-eeee-ffff-gggggg", "pv_size":"1", "pv_free":"1", "dev_size":"1", "pv_missing":"", "pv_allocatable":"", "vg_name":""}
]}], "log": []}`

func TestParsePhysicals(t *testing.T) {
	got, err := parsePhysicals([]byte(somePhysicals))
	want := []Physical{
		{ID: "Zs1b0mrAtE4cQkBqQx0JmY0aZk3n9UOe", Device: "/dev/vda4", SizeBytes: 1069547520, FreeBytes: 54525952, DeviceBytes: 1 << 30},
		{ID: "aaaaaabbbbccccddddeeeeffffgggggg", Device: "/dev/vdb", SizeBytes: 4290772992, DeviceBytes: 4 << 30, Closed: true},
		{ID: "hhhhhhbbbbccccddddeeeeffffgggggg", SizeBytes: 4290772992, FreeBytes: 4290772992, Missing: true},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	for _, bad := range []string{``, `{}`, `{"report":[{"pv":[{"vg_name":"capsule"}]}]}`,
		`{"report":[{"pv":[{"vg_name":"capsule","pv_uuid":"x","pv_size":"1","pv_free":"1","dev_size":"1"}]}]}`} {
		if got, err := parsePhysicals([]byte(bad)); err == nil {
			t.Errorf("%s: %v", bad, got)
		}
	}
}

func FuzzParsePhysicals(f *testing.F) {
	f.Add([]byte(somePhysicals), "2 254:1 254:2 17/400 1 AA 1 core")
	f.Fuzz(func(t *testing.T, pvs []byte, status string) {
		all, err := parsePhysicals(pvs)
		for _, p := range all {
			if err == nil && (len(p.ID) != idLen || p.UsedBytes() < 0 || p.Device == "" && !p.Missing) {
				t.Errorf("%+v", p)
			}
		}
		if same, regions, err := mirrored(status); err == nil && (same < 0 || same > regions) {
			t.Error(same, regions)
		}
	})
}

func TestMoved(t *testing.T) {
	linear := func(sectors uint64, at string) dm.Target {
		return dm.Target{Sectors: sectors, Kind: "linear", Params: at + " 2048"}
	}
	mirror := func(params string) dm.Target { return dm.Target{Sectors: 800, Kind: "mirror", Params: params} }
	plain := func(sectors uint64) dm.Target { return dm.Target{Sectors: sectors, Kind: "linear"} }
	const table = "core 2 1024 nosync 2 8:0 2048 8:16 2048"
	for name, tc := range map[string]struct {
		table, status []dm.Target
		done, total   int64 // sectors
		fails         bool
	}{
		"a part done, one under way, one to come": {
			table:  []dm.Target{linear(100, "8:16"), mirror(table), linear(300, "8:0")},
			status: []dm.Target{plain(100), mirror("2 8:0 8:16 1/4 1 AA 1 core"), plain(300)}, done: 300, total: 1200,
		},
		"all done":                   {table: []dm.Target{linear(100, "8:16")}, status: []dm.Target{plain(100)}, done: 100, total: 100},
		"another disk's number":      {table: []dm.Target{linear(100, "8:160")}, status: []dm.Target{plain(100)}, total: 100},
		"of two moments":             {table: []dm.Target{linear(100, "8:16")}, fails: true},
		"a status that says nothing": {table: []dm.Target{mirror(table)}, status: []dm.Target{mirror("")}, fails: true},
		"of no regions":              {table: []dm.Target{mirror(table)}, status: []dm.Target{mirror("2 8:0 8:16 0/0 1 AA 1 core")}, fails: true},
		"cut short":                  {table: []dm.Target{mirror(table)}, status: []dm.Target{mirror("2 8:0 8:16")}, fails: true},
	} {
		done, total, err := moved(tc.table, tc.status, "8:16")
		if done != tc.done*512 || total != tc.total*512 || (err != nil) != tc.fails {
			t.Errorf("%s: %d of %d, %v", name, done, total, err)
		}
	}
}
