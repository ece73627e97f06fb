package volume

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/lvm"
)

const (
	levelOK       = v1.PoolLevel_POOL_LEVEL_OK
	levelWarn     = v1.PoolLevel_POOL_LEVEL_WARN
	levelCritical = v1.PoolLevel_POOL_LEVEL_CRITICAL
	levelFull     = v1.PoolLevel_POOL_LEVEL_FULL
	levelUnknown  = v1.PoolLevel_POOL_LEVEL_UNSPECIFIED
)

// filled is a pool of which so many percent of data and metadata are used.
func filled(data, metadata int64) lvm.PoolState {
	return lvm.PoolState{DataUsed: data << 30, DataSize: 100 << 30, MetadataUsed: metadata << 20, MetadataSize: 100 << 20, Mode: lvm.ModeWrite}
}

func TestLevel(t *testing.T) {
	mode := func(m string) lvm.PoolState { return lvm.PoolState{DataSize: 1, MetadataSize: 1, Mode: m} }
	for _, tc := range []struct {
		name   string
		pool   lvm.PoolState
		level  v1.PoolLevel
		says   string
		refuse bool
	}{
		{"empty", filled(0, 0), levelOK, "", false},
		{"79", filled(79, 79), levelOK, "", false},
		{"80", filled(80, 1), levelWarn, "80 % full (80.0 GiB of 100 GiB of data)", false},
		{"metadata", filled(1, 89), levelWarn, "89 % full (89.0 MiB of 100 MiB of metadata)", false},
		{"90", filled(90, 1), levelCritical, "no new volumes", true},
		{"metadata 99", filled(50, 99), levelCritical, "delete", true},
		{"100", filled(100, 1), levelFull, "the pool is full", true},
		{"out of space", mode(lvm.ModeFull), levelFull, "the pool is full", true},
		{"read-only", mode(lvm.ModeReadOnly), levelFull, "read-only", true},
		{"failed", lvm.PoolState{Mode: lvm.ModeFail}, levelFull, "can't be read", true},
		{"new mode", mode("strange"), levelFull, "full", true},
	} {
		if got := DefaultLimits.level(tc.pool); got != tc.level {
			t.Errorf("%s: level %v", tc.name, got)
		}
		if says := DefaultLimits.sentence(tc.pool); !strings.Contains(says, tc.says) || (says == "") != (tc.says == "") {
			t.Errorf("%s: says %q", tc.name, says)
		}
		if err := DefaultLimits.tooFull(tc.pool); (err != nil) != tc.refuse || err != nil && !errdefs.IsResourceExhausted(err) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

// What an operator declares counts instead.
func TestLimits(t *testing.T) {
	l := Limits{Warn: 50, Critical: 60, Overcommit: 100}
	for used, want := range map[int64]v1.PoolLevel{49: levelOK, 50: levelWarn, 60: levelCritical, 100: levelFull} {
		if got := l.level(filled(used, 1)); got != want {
			t.Errorf("%d %%: level %v, want %v", used, got, want)
		}
	}
}

// What was set before it was declared with the machine.
func TestKeptOvercommit(t *testing.T) {
	s := newStore(t)
	if kept, err := KeptOvercommit(s); err != nil || kept != 0 {
		t.Errorf("nothing was kept: %d, %v", kept, err)
	}
	for text, want := range map[string]uint32{`{"overcommitMax":300}`: 300, `{}`: 0, `half`: 0} {
		if err := s.Bucket(bucketName).Put(settingsKey, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if kept, err := KeptOvercommit(s); kept != want || (err != nil) != (text == "half") {
			t.Errorf("%s: %d, %v", text, kept, err)
		}
	}
}

// Each change is told once; a pool at a threshold does not tell for ever.
func TestAnnouncements(t *testing.T) {
	before := levelUnknown
	for i, step := range []struct {
		data int64
		want string
	}{
		{10, ""}, {79, ""}, {80, "pool-warn"}, {79, ""}, {81, ""}, {79, ""}, {78, "pool-ok"}, {79, ""}, {85, "pool-warn"},
		{91, "pool-critical"}, {89, ""}, {91, ""}, {88, "pool-warn"}, {100, "pool-full"}, {100, ""}, {99, "pool-critical"}, {10, "pool-ok"},
	} {
		p := filled(step.data, 1)
		now := settled(before, p, DefaultLimits)
		kind, text := announcement(before, now, p, DefaultLimits)
		if kind != step.want || (text == "") != (kind == "") {
			t.Errorf("step %d, %d %%: %q %q, want %q", i, step.data, kind, text, step.want)
		}
		before = now
	}
	if kind, _ := announcement(levelUnknown, levelCritical, filled(95, 1), DefaultLimits); kind != "pool-critical" {
		t.Errorf("at the start: %q", kind)
	}
}

func TestPercent(t *testing.T) {
	for _, tc := range []struct{ used, total, want int64 }{
		{0, 0, 0}, {1, 0, 0}, {1, 3, 33}, {999, 1000, 99}, {1000, 1000, 100}, {1 << 62, 1 << 62, 100}, {5 << 60, 1 << 58, 2000},
	} {
		if got := percent(tc.used, tc.total); got != tc.want {
			t.Errorf("%d of %d: %d, want %d", tc.used, tc.total, got, tc.want)
		}
	}
}

func TestOvercommitted(t *testing.T) {
	const pool = 100 << 30
	for _, tc := range []struct {
		promised int64
		most     uint32
		refused  bool
	}{
		{0, 100, false}, {pool, 100, false}, {pool + 1, 100, true}, {10 * pool, 1000, false}, {10*pool + 4<<20, 1000, true}, {16 << 40, 100_000, false},
	} {
		if err := overcommitted(tc.promised, pool, tc.most); (err != nil) != tc.refused || err != nil && !errdefs.IsResourceExhausted(err) {
			t.Errorf("%d at %d %%: %v", tc.promised, tc.most, err)
		}
	}
}

func TestAmount(t *testing.T) {
	for bytes, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1 << 30: "1.0 GiB", 99<<30 + 1<<29: "99.5 GiB", 100 << 30: "100 GiB", 2000 << 40: "2000 TiB",
	} {
		if got := amount(bytes); got != want {
			t.Errorf("%d: %q, want %q", bytes, got, want)
		}
	}
}
