package lvm

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write golden files")

func TestPlan(t *testing.T) {
	const extent = 4 * mib
	for name, tc := range map[string]struct {
		size                 uint64
		perm, pool, metadata uint64 // MiB
	}{
		"disk of 4 GiB":  {1020 * mib, 508, 404, 28},
		"disk of 8 GiB":  {5116 * mib, 2556, 2048, 128},
		"disk of 32 GiB": {29 * gib, 5936, 22016, 128},
		"1 TB":           {950 * gib, 64 * 1024, 857656, 484},
		"16 TB":          {14000 * gib, 64 * 1024, 13551616, 1024},
		"far too small":  {12 * mib, 4, 0, 8},
	} {
		got := plan(tc.size, tc.size, extent)
		if diff := cmp.Diff(layout{tc.perm * mib, tc.pool * mib, tc.metadata * mib}, got, cmp.AllowUnexported(layout{})); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// Whatever the size, a layout fits and leaves a twentieth free.
func TestPlanFits(t *testing.T) {
	const extent = 4 * mib
	for size := uint64(64 * mib); size < 1<<44; size += size/7/extent*extent + extent {
		l := plan(size, size, extent)
		if used := l.perm + l.pool + 2*l.metadata; l.pool > 0 && used > size-size/20 {
			t.Errorf("size %d MiB: %+v uses %d", size/mib, l, used)
		}
		if l.perm%extent+l.pool%extent+l.metadata%extent != 0 {
			t.Errorf("size %d: %+v isn't in extents", size, l)
		}
	}
}

func TestWanted(t *testing.T) {
	now := state{extent: 4 * mib, size: 5116 * mib, home: 5116 * mib, homeFree: 4200 * mib, volumes: map[string]uint64{Perm: 508 * mib, Pool: 404 * mib, Pool + "_tmeta": 28 * mib}}
	want := growth{perm: 2556 * mib, pool: 2048 * mib, metadata: 128 * mib}
	if diff := cmp.Diff(want, wanted(now), cmp.AllowUnexported(growth{})); diff != "" {
		t.Error(diff)
	}
	now.volumes = map[string]uint64{Perm: 2556 * mib, Pool: 4000 * mib, Pool + "_tmeta": 128 * mib} // the pool has been extended beyond its plan
	if diff := cmp.Diff(growth{}, wanted(now), cmp.AllowUnexported(growth{})); diff != "" {
		t.Error("as planned:", diff)
	}
	// A second disk is the pool's: perm stays, also where its own disk has no room left.
	now.size = 20 * gib
	want = growth{pool: 16644 * mib}
	if diff := cmp.Diff(want, wanted(now), cmp.AllowUnexported(growth{})); diff != "" {
		t.Error("with a second disk:", diff)
	}
	now.home, now.homeFree = 40*gib, 100*mib
	now.size = 60 * gib
	if got := wanted(now).perm; got != 2656*mib {
		t.Errorf("perm gets %d MiB of a disk that the pool has taken", got/mib)
	}
}

// /perm is on PERM alone: a group whose home isn't in it is none of ours.
func TestPlace(t *testing.T) {
	disks := []Physical{{Device: "/dev/vdb", SizeBytes: 2 * gib, FreeBytes: gib}, {Device: "/dev/vda4", SizeBytes: 3 * gib, FreeBytes: mib}}
	var s state
	if err := s.place(disks, "/dev/vda4"); err != nil || s.home != 3*gib || s.homeFree != mib {
		t.Error(s, err)
	}
	if err := s.place(disks, "/dev/vdc4"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
}

func TestConfig(t *testing.T) {
	const golden = "testdata/lvm.conf"
	got := config("/dev/nvme0n1p4")
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Error(diff)
	}
	if two := string(config("/dev/vda4", "/dev/sdb")); !strings.Contains(two, `global_filter=["a|^/dev/vda4$|","a|^/dev/sdb$|","r|.*|"]`) {
		t.Error(two)
	}
}

func TestInspect(t *testing.T) {
	const size = 4 * mib
	for name, tc := range map[string]struct {
		write func(b []byte)
		want  Content
	}{
		"zero":                {func([]byte) {}, Blank},
		"our mark":            {func(b []byte) { copy(b[MarkAt:], Mark()) }, New},
		"mark and label":      {func(b []byte) { copy(b[MarkAt:], Mark()); copy(b[512:], "LABELONE") }, New},
		"label without mark":  {func(b []byte) { copy(b[512:], "LABELONE") }, Used},
		"part of a mark":      {func(b []byte) { copy(b[MarkAt:], Mark()[:10]) }, Used},
		"mark with a tail":    {func(b []byte) { copy(b[MarkAt:], Mark()); b[MarkAt+markLen-1] = 1 }, Used},
		"one byte at the end": {func(b []byte) { b[size-1] = 1 }, Used},
	} {
		b := make([]byte, size)
		tc.write(b)
		got, err := inspect(bytes.NewReader(b), size)
		if err != nil || got != tc.want {
			t.Errorf("%s: %v, %v, want %v", name, got, err, tc.want)
		}
	}
	if _, err := inspect(bytes.NewReader(make([]byte, mib)), mib); !errdefs.IsInvalidArgument(err) {
		t.Errorf("tiny: %v", err)
	}
}

// zeros is a disk of zeros of any size.
type zeros struct{}

func (zeros) ReadAt(p []byte, _ int64) (int, error) { clear(p); return len(p), nil }

func TestInspectTooLargeToProve(t *testing.T) {
	if got, err := inspect(zeros{}, blankMax+mib); err != nil || got != Unknown {
		t.Error(got, err)
	}
}

// clearHead must keep the mark: a cut right after it has to find it.
func TestClearHeadKeepsMark(t *testing.T) {
	file := t.TempDir() + "/perm"
	b := bytes.Repeat([]byte{0xff}, 4*mib)
	copy(b[MarkAt:], Mark())
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := clearHead(file); err != nil {
		t.Fatal(err)
	}
	after, _ := os.ReadFile(file)
	want := bytes.Clone(b)
	clear(want[:zeroLen])
	copy(want[MarkAt:], Mark())
	if !bytes.Equal(after, want) {
		t.Error("more or less than the head was cleared")
	}
}

func TestCreateRefusesUsed(t *testing.T) {
	file := t.TempDir() + "/perm"
	if err := os.WriteFile(file, bytes.Repeat([]byte{1}, 4*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Create(t.Context(), file); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a used partition: %v", err)
	}
}

func TestParseState(t *testing.T) {
	vgs := []byte(`{"report":[{"vg":[{"vg_extent_size":"4194304","vg_size":"1069547520","vg_free":"54525952"}]}]}`)
	lvs := []byte(`{"report":[{"lv":[{"lv_name":"perm","lv_size":"532676608"},{"lv_name":"[thinpool_tmeta]","lv_size":"29360128"}]}]}`)
	got, err := parseState(vgs, lvs)
	want := state{extent: 4 * mib, size: 1069547520, free: 54525952, volumes: map[string]uint64{"perm": 532676608, "thinpool_tmeta": 29360128}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(state{})); err != nil || diff != "" {
		t.Error(err, diff)
	}
	for _, bad := range []string{``, `{}`, `{"report":[{"vg":[]}]}`, `{"report":[{"vg":[{"vg_size":"x"}]}]}`} {
		if _, err := parseState([]byte(bad), lvs); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}
