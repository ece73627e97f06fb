//go:build machine

package powercut

import (
	"cmp"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"capsule/internal/blocklog"
	"capsule/test/campaign"
	"capsule/test/powercut/plan"
)

const (
	memoryBytes = 768 << 20
	// Sizes of the disk: a little more than the image has, so that the first boot
	// grows the partition, and few so that the pool can be filled.
	diskBytes = 4224 << 20
	diskGrown = 5 << 30

	// checkers are machines that check side by side.
	checkers = 2
)

// Variables of the environment.
const (
	// minutesVariable makes this the whole sweep: more work is recorded, then it is
	// cut at every flush and at more writes, but no longer than so many minutes.
	minutesVariable = "CAPSULE_POWERCUT_MINUTES"
	// seedVariable repeats a run's choice of cuts; 1 when it isn't set.
	seedVariable = "CAPSULE_POWERCUT_SEED"
	// keepVariable is a folder in which the recording stays.
	keepVariable = "CAPSULE_POWERCUT_KEEP"
	// againVariable, when set, checks the recording that was kept there.
	againVariable = "CAPSULE_POWERCUT_AGAIN"
	// cutsVariable are the only cuts to try, as JSON: [{"mode":"drop","n":1234,"seed":5}].
	cutsVariable = "CAPSULE_POWERCUT_CUTS"
	// partVariable is the only part to record: "work", or "update" right after the first boot.
	partVariable = "CAPSULE_POWERCUT_PART"
	// bundleVariable is a file with the version that is updated to.
	bundleVariable = "CAPSULE_POWERCUT_BUNDLE"
	// startsVariable is the number of cut disks that are started; 1 in the quick form.
	startsVariable = "CAPSULE_POWERCUT_STARTS"
	// buildVariable is a folder with another image than that of the checkout.
	buildVariable = "CAPSULE_POWERCUT_BUILD"
	// reportVariable is a file that the sweep writes its report to.
	reportVariable = "CAPSULE_POWERCUT_REPORT"
)

// repository is the checkout.
var repository string

func TestPowerCut(t *testing.T) {
	var err error
	if repository, err = filepath.Abs("../.."); err != nil {
		t.Fatal(err)
	}
	minutes := campaign.Number(t, minutesVariable, 0)
	r := &recording{t: t, ctx: t.Context(), dir: os.Getenv(keepVariable), live: map[string]*liveFile{}}
	if r.dir == "" {
		r.dir = t.TempDir()
	}
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(r.dir, "config"))
	if os.Getenv(againVariable) == "" {
		r.record(os.Getenv(partVariable), minutes == 0)
	} else {
		r.load()
	}
	l, p := r.plan()
	s := &summary{version: r.version, log: l, logBytes: p.LogBytes, steps: r.steps, seed: campaign.Number(t, seedVariable, 1), began: time.Now()}
	t.Logf("%d writes, discards and flushes, %d of them flushes, %d MiB; seed %d", len(l.Entries), len(l.Flushes()), p.LogBytes>>20, s.seed)
	rounds := [][]blocklog.Cut{r.quick(l, p, s.seed)}
	starts := campaign.Number(t, startsVariable, 1)
	if minutes > 0 {
		p.Deep = true
		rounds = sweep(l, r.steps, sweepCuts, s.seed)
		starts = campaign.Number(t, startsVariable, sweepStarts)
	}
	if text := os.Getenv(cutsVariable); text != "" {
		var only []blocklog.Cut
		if err := json.Unmarshal([]byte(text), &only); err != nil {
			t.Fatalf("%s: %v", cutsVariable, err)
		}
		rounds = [][]blocklog.Cut{byBase(l, only)}
	}
	r.tryAll(p, rounds, time.Duration(minutes)*time.Minute, s)
	r.startSome(l, p, int(starts), minutes > 0, s) //nolint:gosec // a few
	if file := os.Getenv(reportVariable); file != "" {
		old, _ := os.ReadFile(file) // what "make torture" wrote there stays
		if err := os.WriteFile(file, campaign.KeepSection(s.report(), old, "torture"), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// record makes a recording of one part or both.
func (r *recording) record(part string, quick bool) {
	r.start()
	if part != "update" {
		r.work(quick)
	}
	if part != "work" {
		r.update(quick)
	}
	r.stop()
	r.save()
}

// quick are the cuts of the quick form.
func (r *recording) quick(l *blocklog.Log, p plan.Plan, seed uint64) []blocklog.Cut {
	work, updates := r.steps, []step(nil)
	if r.systems != nil {
		i := slices.IndexFunc(r.steps, func(s step) bool { return s.Begin >= r.updatesAt })
		work, updates = r.steps[:i], r.steps[i:]
	}
	var cuts []blocklog.Cut
	if len(work) > 1 {
		cuts = sample(l, work, quickCuts, spots, seed)
	}
	if len(updates) > 0 {
		cuts = append(cuts, slices.DeleteFunc(sample(l, updates, quickUpdateCuts, updateSpots, seed), func(c blocklog.Cut) bool { return !p.Updates(c) })...)
	}
	return byBase(l, cuts)
}

// tryAll checks one round after another while there is time; limit 0 is no bound.
func (r *recording) tryAll(p plan.Plan, rounds [][]blocklog.Cut, limit time.Duration, s *summary) {
	for _, cuts := range rounds {
		s.planned += len(cuts)
	}
	told := func(c plan.Result) {
		s.results = append(s.results, c)
		r.t.Logf("%v: %s, %d facts, %.1f s %s", c.Cut, c.Stage, c.Facts, float64(c.Millis)/1000, c.Problem)
	}
	for _, cuts := range rounds {
		if limit > 0 && time.Since(s.began) > limit {
			break
		}
		before := len(s.results)
		if err := r.check(p, cuts, checkers, &checked{told: told}); err != nil {
			r.t.Error(err)
		}
		if got := len(s.results) - before; got != len(cuts) {
			r.t.Errorf("%d of %d cuts were checked", got, len(cuts))
		}
	}
	s.took = time.Since(s.began)
	r.tellFailed(s.results)
	r.t.Logf("%d of %d cuts checked in %v", len(s.results), s.planned, s.took.Round(time.Second))
}

// tellFailed tells of failed cuts at the end, where they are seen.
func (r *recording) tellFailed(results []plan.Result) {
	for _, c := range results {
		if c.Problem != "" {
			r.t.Errorf("cut %v (%s): %s\nto make this disk: cp --sparse=always %s DISK && go run ./test/powercut/cut -log %s -disk DISK -mode %s -n %d -seed %d",
				c.Cut, c.Stage, c.Problem, r.machine.BaseDisk(), r.machine.WriteLog(), c.Cut.Mode, c.Cut.N, c.Cut.Seed)
		}
	}
}

// built is the folder of the image.
func built() string { return cmp.Or(os.Getenv(buildVariable), filepath.Join(repository, "build")) }
