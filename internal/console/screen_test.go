package console

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite golden files")

// fills of a machine of which a part is used.
func fills(poolUsed int64) []Fill {
	return []Fill{{"memory", 400 << 20, 1 << 30}, {"storage", 9 << 30, 100 << 30}, {"pool", poolUsed, 200 << 30}}
}

func many(n int, bad ...int) (list []Workload) {
	for i := range n {
		w := Workload{Name: fmt.Sprintf("workload-%02d", i), State: "running"}
		if slices.Contains(bad, i) {
			w.State, w.Bad, w.Message = "back-off", true, "ended with code 1, is started again in 20 s"
		}
		list = append(list, w)
	}
	return list
}

var lastEvents = []string{
	"17:20 container web: created, generation 1", "17:20 container web: runs, generation 1", "17:21 container web: healthy",
	"17:30 capsule capsule-a3f2: has 10.0.2.15/24", "17:42 volume photos: created, generation 1",
}

// screens are cases that an operator may stand before.
func screens() map[string]struct {
	State
	Status
} {
	type both = struct {
		State
		Status
	}
	up := 3*time.Hour + 12*time.Minute
	trial, long, six, recovery, stick := full, full, full, full, full
	trial.Left = 590 * time.Second
	long.Name = strings.Repeat("a-long-name-", 5) + "end"
	six.Address = "[2001:db8:1234:5678:9abc:def0:1234:5678]:50000"
	recovery.Mode, recovery.Reason = "recovery", "/perm can't be mounted: structure needs cleaning; it was checked and could not be put right"
	stick.Mode, stick.Claim, stick.Code, stick.Fingerprint = "installer", "unclaimed", unclaimed.Code, unclaimed.Fingerprint
	stick.Reason = "started from a stick"
	stick.Disks = "nvme0n1: Fast 1000, serial S1, 931 GiB, empty\nsda: Old Spinning Rust 4000, serial WD-1234567890, 3.6 TiB, holds a file system\n"
	return map[string]both{
		"starting":  {State{}, Status{}},
		"idle":      {full, Status{Up: up, Fills: fills(20 << 30)}},
		"claiming":  {unclaimed, Status{Up: time.Minute, Fills: fills(0), Events: lastEvents[:1]}},
		"claimtrap": {unclaimed, Status{Problems: crowd(9), Fills: fills(0), Workloads: many(50), Events: lastEvents}},
		"trial":     {trial, Status{Up: up, Fills: fills(20 << 30), Workloads: many(3), Events: lastEvents}},
		"long": {long, Status{Up: 400 * 24 * time.Hour, Problems: []Problem{
			{Critical: true, What: "workload \"" + strings.Repeat("x", 40) + "\" does not run: " + strings.Repeat("because ", 30), Next: strings.Repeat("do ", 60)},
		}, Workloads: []Workload{{Name: strings.Repeat("x", 40), State: "failed", Message: strings.Repeat("because ", 30) + "\x1b[2Jé", Bad: true}}, Events: []string{"17:20 " + strings.Repeat("event ", 30)}}},
		"many":     {full, Status{Up: up, Fills: fills(20 << 30), Workloads: many(50, 7, 23), Events: lastEvents}},
		"allbad":   {full, Status{Up: up, Fills: fills(20 << 30), Problems: crowd(50), Workloads: many(50, slices.Collect(seq(50))...), Events: lastEvents}},
		"ipv6":     {six, Status{Addresses: []string{"10.0.2.15", "fd00:1234:5678:9abc:def0:1234:5678:9abc"}, Up: up, Fills: fills(20 << 30)}},
		"fullpool": {full, Status{Up: up, Fills: fills(200 << 30), Problems: []Problem{{Critical: true, What: "the pool is full: writes to volumes that need space fail", Next: "delete files, snapshots or volumes"}}, Workloads: many(2)}},
		"recovery": {recovery, Status{Up: up, Workloads: []Workload{{Name: "web", State: "unknown"}}}},
		"stick":    {stick, Status{}},
	}
}

func seq(n int) func(func(int) bool) {
	return func(yield func(int) bool) {
		for i := range n {
			if !yield(i) {
				return
			}
		}
	}
}

func crowd(n int) (list []Problem) {
	for i := range n {
		list = append(list, Problem{ID: fmt.Sprint(i), Critical: i < n/2, What: fmt.Sprintf("thing %d is broken", i), Next: fmt.Sprintf("mend thing %d", i)})
	}
	return list
}

func TestScreens(t *testing.T) {
	for name, s := range screens() {
		lines := place(t, picture(s.State, s.Status, true)) // fails outside of the screen
		for i, line := range lines {
			if i >= screenRows && line != "" {
				t.Errorf("%s: the row that is left to others holds %q", name, line)
			}
		}
		got := strings.TrimRight(strings.Join(lines, "\n"), "\n") + "\n"
		file := filepath.Join("testdata", name+".txt")
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// Whatever there is, some things can be read: who it is, how to claim it, and that more
// is wrong than is shown.
func TestScreensTellWhatCounts(t *testing.T) {
	for name, words := range map[string][]string{
		"claimtrap": {unclaimed.Name, unclaimed.Code, "3f2a:91c0", "8 more: capsulectl capsule info"},
		"allbad":    {"!! thing 0 is broken", "> mend thing 0", "more: capsulectl capsule info", "0 of 50 run, 50 not as they should be", "more: capsulectl get", lastEvents[4]},
		"many":      {"48 of 50 run, 2 not as they should be", "workload-07", "workload-00, ", lastEvents[4]},
		"trial":     {"rolls back in 9m50s", "capsulectl capsule update confirm"},
		"fullpool":  {"[##############] 100 %", "delete files"},
		"recovery":  {"RECOVERY MODE"},
	} {
		s := screens()[name]
		text := strings.Join(screenLines(s.State, s.Status, len(quickCode(s.Code))), "\n")
		for _, w := range words {
			if !strings.Contains(strings.Join(strings.Fields(text), " "), w) { // it may stand in two lines
				t.Errorf("%s lacks %q:\n%s", name, w, text)
			}
		}
	}
}

// What changes each second must not have the screen drawn anew each second.
func TestPictureChangesByTheMinute(t *testing.T) {
	at := func(up time.Duration) string { return picture(full, Status{Up: up.Truncate(time.Minute)}, false) }
	if at(time.Minute) != at(time.Minute+59*time.Second) || at(time.Minute) == at(2*time.Minute) {
		t.Error("it does not")
	}
}

func TestNews(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	pool := Problem{ID: "pool", What: "fills up\x1b[2J", Next: "delete", Loud: true}
	quiet := Problem{ID: "workload/web", What: "is ill"}
	var n news
	for i, step := range []struct {
		problems []Problem
		want     string
	}{
		{nil, ""},
		{[]Problem{pool, quiet}, "capsule problem: pool: fills up [2J; delete\r\n"},
		{[]Problem{pool}, ""},
		{nil, "capsule problem: pool: over\r\n"},
		{[]Problem{pool}, "capsule problem: pool: fills up [2J; delete\r\n"},
	} {
		if got := n.lines(step.problems, start); got != step.want {
			t.Errorf("step %d: %q, want %q", i, got, step.want)
		}
	}
	told := 0
	for i := range 1000 { // one that comes and goes each second
		n.lines(nil, start)
		if n.lines([]Problem{pool}, start.Add(time.Duration(i)*time.Second)) != "" {
			told++
		}
	}
	if told == 0 || told > newsBurst+4 {
		t.Errorf("told %d times", told)
	}
}

func TestHasScreen(t *testing.T) {
	for name, tc := range map[string]struct {
		name, bind string
		want       bool
	}{
		"framebuffer": {"(M) frame buffer device", "1", true},
		"none":        {"(S) dummy device", "1", false},
		"unbound":     {"(M) frame buffer device", "0", false},
	} {
		dir := filepath.Join(t.TempDir(), "class/vtconsole/vtcon0")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for file, text := range map[string]string{"name": tc.name, "bind": tc.bind} {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := hasScreen(filepath.Join(dir, "../../..")); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func BenchmarkPicture(b *testing.B) {
	s := screens()["many"]
	for b.Loop() {
		picture(s.State, s.Status, true)
	}
}
