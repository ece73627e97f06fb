package volume

import (
	"context"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

func TestDue(t *testing.T) {
	const day = 24 * time.Hour
	base := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		name      string
		last, now time.Duration // after base
		want      time.Duration
	}{
		{"soon after", 0, time.Minute, day},
		{"just due", 0, day, day},
		{"off for a week: one, at once", 0, 7 * day, day},
		{"clock set back a little", time.Hour, 0, day + time.Hour},
		{"clock set back by nearly all of it", day - 1, 0, 2*day - 1},
		{"clock set back by a whole one", day, 0, 0},
		{"the last was made in a year that is not here yet", 365 * day, 0, 0},
	} {
		if got := due(day, base.Add(tc.last), base.Add(tc.now)); !got.Equal(base.Add(tc.want)) {
			t.Errorf("%s: due %s after the start, want %s", tc.name, got.Sub(base), tc.want)
		}
	}
}

// simulate looks at a schedule every 30 seconds of real time, on a clock that is
// off by what wrong says, and gives the real times of snapshots.
func simulate(every, length time.Duration, wrong func(time.Duration) time.Duration) []time.Duration {
	base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	last := base
	var taken []time.Duration
	for at := time.Duration(0); at < length; at += scheduleEvery {
		now := base.Add(at + wrong(at))
		if !due(every, last, now).After(now) {
			last = now
			taken = append(taken, at)
		}
	}
	return taken
}

// Whatever a clock does, a schedule goes on, and never runs wild.
func TestScheduleAndClock(t *testing.T) {
	const every, length = time.Hour, 100 * time.Hour
	jump := func(at, by time.Duration) func(time.Duration) time.Duration {
		return func(now time.Duration) time.Duration {
			if now >= at {
				return by
			}
			return 0
		}
	}
	for _, tc := range []struct {
		name  string
		wrong func(time.Duration) time.Duration
	}{
		{"right", jump(0, 0)},
		{"forward a year", jump(10*time.Hour, 365*24*time.Hour)},
		{"back a year", jump(10*time.Hour, -365*24*time.Hour)},
		{"back half an hour", jump(10*time.Hour, -30*time.Minute)},
		{"back 59 minutes", jump(10*time.Hour, -59*time.Minute)},
		{"wrong for a while", func(now time.Duration) time.Duration {
			if now > 20*time.Hour && now < 30*time.Hour {
				return 40 * 365 * 24 * time.Hour
			}
			return 0
		}},
		{"too fast", func(now time.Duration) time.Duration { return now / 1000 }},
	} {
		taken := simulate(every, length, tc.wrong)
		if n := len(taken); n < 96 || n > 102 {
			t.Errorf("%s: %d snapshots in %s", tc.name, n, length)
		}
		for i := 1; i < len(taken); i++ {
			if gap := taken[i] - taken[i-1]; gap > 2*every+scheduleEvery {
				t.Errorf("%s: nothing for %s from %s on", tc.name, gap, taken[i-1])
			}
		}
	}
}

func TestExpired(t *testing.T) {
	at := func(hour int) time.Time { return time.Date(2026, 1, 1, hour, 0, 0, 0, time.UTC) }
	snaps := map[string]snapshot{
		"before-upgrade": {Seq: 1, CreatedAt: at(1)},
		"auto-1":         {Seq: 2, CreatedAt: at(20), Scheduled: true}, // the clock was wrong
		"auto-2":         {Seq: 3, CreatedAt: at(2), Scheduled: true},
		"mine":           {Seq: 4, CreatedAt: at(3)},
		"auto-3":         {Seq: 5, CreatedAt: at(3), Scheduled: true},
		"auto-0":         {Seq: 6, CreatedAt: at(0), Scheduled: true}, // set back, but made last
	}
	for _, tc := range []struct {
		keep int
		want []string
	}{
		{7, []string{}}, {4, []string{}}, {3, []string{"auto-1"}}, {2, []string{"auto-1", "auto-2"}},
		{1, []string{"auto-1", "auto-2", "auto-3"}}, {0, []string{"auto-1", "auto-2", "auto-3"}},
	} {
		if diff := cmp.Diff(tc.want, expired(snaps, tc.keep)); diff != "" {
			t.Errorf("keep %d: %s", tc.keep, diff)
		}
	}
	if got := expired(nil, 3); len(got) > 0 {
		t.Errorf("of nothing: %q", got)
	}
	if want := []string{"before-upgrade", "auto-1", "auto-2", "mine", "auto-3", "auto-0"}; !slices.Equal(ordered(snaps), want) {
		t.Errorf("ordered %q", ordered(snaps))
	}
}

func TestUnused(t *testing.T) {
	snaps := map[string]snapshot{"a": {}, "a-2": {}, "b-2": {}}
	for name, want := range map[string]string{"a": "a-3", "b": "b", "c": "c"} {
		if got := unused(snaps, name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// A schedule that can't be kept is tried again, not ever faster, and told once.
func TestScheduleFails(t *testing.T) {
	if os.Getenv("CAPSULE_TEST_MACHINE") != "" {
		t.Skip("SKIPPED, here snapshots can be made")
	}
	synctest.Test(t, func(t *testing.T) {
		m := open(t, newStore(t), nil)
		m.kept(t, "a")
		obj := &v1.Object{Meta: &v1.Meta{Kind: manifest.KindVolume, Name: "a"}, Kind: &v1.Object_Volume{Volume: &v1.Volume{
			Spec: &v1.VolumeSpec{Size: 64 << 20, Snapshots: &v1.SnapshotSchedule{Every: durationpb.New(time.Hour), Keep: 1}},
		}}}
		if _, err := m.opts.Store.Apply(t.Context(), []*v1.Object{obj}, false, nil); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() { m.schedules.Run(ctx) })
		tries := func() int {
			synctest.Wait()
			m.complaints.mu.Lock()
			defer m.complaints.mu.Unlock()
			return m.complaints.of["a"]
		}
		time.Sleep(59 * time.Minute)
		if n := tries(); n != 0 {
			t.Errorf("%d tries before it is due", n)
		}
		time.Sleep(2 * time.Minute)
		if n := tries(); n < 1 || n > 2 {
			t.Errorf("%d tries when it was due", n)
		}
		time.Sleep(24 * time.Hour)
		if n := tries(); n < 24*60/10 || n > 24*60/7+10 {
			t.Errorf("%d tries in a day", n)
		}
		cancel()
		run.Wait()
		page, err := m.opts.Store.Events(0, 1000, nil)
		if err != nil {
			t.Fatal(err)
		}
		skipped := slices.DeleteFunc(page.Events, func(e *v1.Event) bool { return e.Type != "snapshot-skipped" })
		if len(skipped) != 1 || !strings.Contains(skipped[0].Message, "snapshot by schedule: ") {
			t.Errorf("events %v", skipped)
		}
	})
}
