package workload

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/store"
)

// tried is looked at every ten seconds, unhealthy after two failures: its trial lasts
// 25 seconds.
func tried(change ...func(*v1.WorkloadSpec)) func(*v1.WorkloadSpec) {
	return func(s *v1.WorkloadSpec) {
		check("restart")(s)
		s.Env = map[string]string{}
		for _, c := range change {
			c(s)
		}
	}
}

// version tells one spec of an image from another.
func version(v string) func(*v1.WorkloadSpec) {
	return func(s *v1.WorkloadSpec) { s.Env = map[string]string{"VERSION": v} }
}

func forward(s *v1.WorkloadSpec) { s.Rollback = proto.Bool(false) }

// declare is apply as the API does it, with its history.
func (m *machine) declare(kind, name string, spec *v1.WorkloadSpec) v1.Outcome {
	m.Helper()
	obj := &v1.Object{Meta: &v1.Meta{Kind: kind, Name: name}, Kind: &v1.Object_Workload{Workload: &v1.Workload{Spec: spec}}}
	results, err := m.store.Apply(m.Context(), []*v1.Object{obj}, false, func(tx store.View, objs []*v1.Object) error {
		return Record(tx, objs, "anna", time.Now())
	})
	if err != nil {
		m.Fatal(err)
	}
	return results[0].Outcome
}

// healthyFirst has a healthy generation 1 of "web" run.
func (m *machine) healthyFirst(change ...func(*v1.WorkloadSpec)) {
	m.Helper()
	m.apply("web", "web:1", tried(change...))
	m.want("web", "running 1/1")
	m.healthIs("web", healthy, "")
	m.driver.took()
}

// rollbacks are the events of that type.
func (m *machine) rollbacks() (list []string) {
	m.Helper()
	page, err := m.store.Events(0, 1000, func(e *v1.Event) bool { return e.Type == reasonRollback })
	if err != nil {
		m.Fatal(err)
	}
	for _, e := range page.Events {
		list = append(list, e.Message)
	}
	return list
}

// What does not become healthy is gone back from, once, with its reason; so it stays,
// over restarts of daemon and machine.
func TestLoopRollsBack(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.healthyFirst()
		m.driver.answer("web", "no table\nnamed users")
		m.apply("web", "web:2", tried())
		m.want("web", "running 2/2")
		if s := m.status("web"); !s.OnTrial || s.HealthyGeneration != 1 {
			m.Error(s)
		}
		m.took("prepare web 2", "stop:2 web 1", "start web 2")
		m.rest(24 * time.Second)
		m.driver.answer("web", "")
		m.rest(7 * time.Second)
		m.took("stop:2 web 2", "start web 1", "remove web 2")
		m.want("web", "failed 2/1 rollback")
		m.says("web", "rolled back to generation 1: unhealthy: exit code 1: no table")
		m.healthIs("web", healthy, "")
		for range 2 {
			m.rest(time.Hour)
			m.took()
			m.kill()
			m.boot()
		}
		m.kill()
		m.driver.reset()
		m.boot()
		m.took("start web 1")
		m.want("web", "failed 2/1 rollback")
		m.driver.answer("web", "ill") // and it is kept well
		m.rest(30 * time.Second)
		m.took("stop:2 web 1", "start web 1")
		m.want("web", "failed 2/1 rollback")
		want := []string{"container web: generation 2 rolled back to generation 1: unhealthy: exit code 1: no table"}
		if diff := cmp.Diff(want, m.rollbacks()); diff != "" {
			m.Error(diff)
		}
		if diff := cmp.Diff([]string{"web 8080/tcp"}, m.net.published); diff != "" {
			m.Error(diff)
		}
	})
}

// What ends again and again is gone back from when its time is over, and what is
// checked only by its image too.
func TestLoopRollsBackWhatEnds(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.images.change(func(c *cache) { c.local["checked:1"], c.local["checked:2"] = true, true })
		m.apply("web", "checked:1")
		m.healthIs("web", healthy, "")
		m.driver.took()
		m.driver.answer("web", "not yet")
		m.apply("web", "checked:2")
		for range 12 { // its time is 3 × 30 s and 5 s
			m.driver.crash("web", 7)
			m.rest(8 * time.Second)
		}
		m.want("web", "failed 2/1 rollback")
		if s := m.status("web"); !strings.HasPrefix(s.Message, "rolled back to generation 1: not healthy within 1m35s: ") {
			m.Error(s.Message)
		}
	})
}

// A trial that is over tells what is known: the last probe's answer or, when none was
// made yet since the last start, how it ended before.
func TestLately(t *testing.T) {
	tests := map[string]struct {
		status *v1.WorkloadStatus
		want   string
	}{
		"nothing known":              {&v1.WorkloadStatus{}, ""},
		"a probe failed":             {&v1.WorkloadStatus{HealthMessage: "exit code 1: no\nmore", Failures: 1, ExitCode: proto.Int32(7)}, "exit code 1: no"},
		"just started again":         {&v1.WorkloadStatus{Failures: 1, ExitCode: proto.Int32(7)}, "exited with code 7"},
		"a generation before it did": {&v1.WorkloadStatus{ExitCode: proto.Int32(7)}, ""},
		"lost with the machine":      {&v1.WorkloadStatus{Failures: 1}, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := (&decider{status: test.status}).lately(); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

// A start that fails takes the older generation down, and is not tried again.
func TestLoopRollsBackAFailedStart(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.healthyFirst()
		m.driver.breaks("start", errors.New(`start workload "web": exec format error`))
		m.apply("web", "web:2", tried())
		m.driver.breaks("start", nil)
		m.rest(time.Hour)
		m.want("web", "failed 2/1 rollback")
		m.says("web", "rolled back to generation 1: exec format error")
		calls := m.driver.took()
		if slices.Index(calls, "start web 2") != slices.Index(calls, "stop:2 web 1")+1 || slices.Contains(calls[slices.Index(calls, "start web 2")+1:], "start web 2") {
			m.Errorf("%q", calls)
		}
	})
}

// Told not to, nothing is gone back from, and nothing that is older is gone back to
// later: it may not read what the newer one wrote.
func TestLoopGoesForward(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.healthyFirst()
		m.driver.answer("web", "no")
		m.apply("web", "web:2", tried(forward))
		m.took("prepare web 2", "stop:2 web 1", "start web 2", "remove web 1")
		m.rest(time.Minute)
		m.want("web", "running 2/2 unhealthy")
		m.apply("web", "web:2", tried(version("3")))
		m.rest(time.Minute)
		m.want("web", "running 3/3 unhealthy")
		m.driver.answer("web", "")
		m.rest(time.Minute)
		m.driver.answer("web", "no")
		m.apply("web", "web:2", tried(version("4")))
		m.rest(time.Minute)
		m.want("web", "failed 4/3 rollback")
	})
}

// What has no check is gone back to when it ran well, and is not gone back from.
func TestLoopTrustsAGoodRun(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("web", "web:1")
		m.rest(10 * time.Second)
		m.driver.answer("web", "no")
		m.apply("web", "web:1", tried())
		m.rest(30 * time.Second)
		m.want("web", "failed 2/1 rollback")
		m.apply("web", "web:2") // and ends at once
		m.driver.crash("web", 1)
		m.rest(time.Second)
		m.apply("web", "web:1", tried(version("4")))
		m.rest(2 * time.Minute)
		if s := m.status("web"); s.Generation != 4 || s.RolledBack != "" || s.Restarts == 0 {
			m.Error(s)
		}
		m.apply("job", "web:1", tried(func(s *v1.WorkloadSpec) { s.Restart, s.Ports = "never", nil }))
		m.apply("job", "web:2", tried(func(s *v1.WorkloadSpec) { s.Restart, s.Ports = "never", nil }))
		m.driver.answer("job", "no")
		m.rest(2 * time.Minute)
		if s := m.status("job"); s.OnTrial || s.RolledBack != "" {
			m.Error(s)
		}
		if err := m.store.Delete("", "job"); err != nil {
			m.Fatal(err)
		}
		m.rest(5 * time.Second)
		for _, policy := range []string{"never", "on-failure"} { // what has done its work is not started again
			m.driver.answer(policy, "no")
			m.apply(policy, "web:1", dependsOn(), func(s *v1.WorkloadSpec) { s.Restart = policy })
			m.driver.crash(policy, 0)
			m.rest(time.Second)
			m.want(policy, "exited 1/0 exit")
			m.apply(policy, "web:2", tried(), dependsOn())
			m.rest(2 * time.Minute)
			if s := m.status(policy); s.RunningGeneration == 1 || s.RolledBack != "" {
				m.Error(s)
			}
		}
		m.apply("vain", "web:1", func(s *v1.WorkloadSpec) { s.Rollback, s.Ports = proto.Bool(true), nil })
		if s := m.status("vain"); !slices.Contains(s.Warnings, noCheck) {
			m.Error(s.Warnings)
		}
	})
}

// A restart of the same spec and image is no change: there is nothing to go back to.
// The same name with another image inside is.
func TestLoopRestartIsNoChange(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.healthyFirst()
		m.driver.answer("web", "no")
		m.stopped("web", false)
		m.took("prepare web 2", "stop:2 web 1", "start web 2", "remove web 1")
		m.rest(time.Minute)
		m.want("web", "running 2/2 unhealthy")
		m.driver.answer("web", "")
		m.rest(time.Minute)
		m.driver.took()
		m.images.change(func(c *cache) { c.moved = "web:1" })
		m.driver.answer("web", "no")
		m.stopped("web", false)
		m.rest(30 * time.Second)
		m.want("web", "failed 3/2 rollback")
		if s := m.status("web"); s.ImageDigest != "sha256:web:1" {
			m.Error(s)
		}
	})
}

// Applied again, it is tried again; changed to what runs, it runs.
func TestLoopTriesAgainWhenAsked(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.healthyFirst()
		spec := func(image string) *v1.WorkloadSpec {
			s := &v1.WorkloadSpec{Image: image}
			tried()(s)
			return s
		}
		m.driver.answer("web", "no")
		for generation := uint64(2); generation < 5; generation++ {
			if outcome := m.declare("Container", "web", spec("web:2")); outcome != v1.Outcome_OUTCOME_CHANGED {
				m.Fatal(outcome)
			}
			m.rest(5 * time.Second)
			if s := m.status("web"); s.RunningGeneration != generation || s.RolledBack != "" || !s.OnTrial {
				m.Fatal(s)
			}
			if outcome := m.declare("Container", "web", spec("web:2")); outcome != v1.Outcome_OUTCOME_UNCHANGED {
				m.Fatal(outcome)
			}
			m.rest(30 * time.Second)
			m.want("web", fmt.Sprintf("failed %d/1 rollback", generation))
		}
		if n := len(m.rollbacks()); n != 3 {
			m.Errorf("%d rollbacks", n)
		}
		m.driver.answer("web", "")
		m.stopped("web", false) // a restart asks for it, too
		m.rest(10 * time.Second)
		m.want("web", "running 5/5")
		if s := m.status("web"); s.HealthyGeneration != 5 || s.OnTrial {
			m.Error(s)
		}
	})
}

// Another spec that can't be had, on trial and while it is gone back: what was healthy
// serves.
func TestLoopRollsBackWithAnotherSpec(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.healthyFirst()
		m.driver.answer("web", "no")
		m.apply("web", "web:2", tried())
		m.apply("web", "absent:3", tried())
		m.want("web", "failed 3/2 image") // it may yet be well
		m.rest(20 * time.Second)
		m.driver.answer("web", "")
		m.rest(10 * time.Second)
		m.want("web", "failed 3/1 image")
		m.apply("web", "web:2", tried())
		m.rest(10 * time.Second)
		m.want("web", "running 4/4")
		m.driver.took()

		// It is stopped for a minute when a spec comes whose pull has no end.
		m.driver.answer("web", "no")
		m.apply("web", "web:1", tried(version("5"), func(s *v1.WorkloadSpec) { s.StopGrace = nil }))
		for range 100 {
			if m.rest(500 * time.Millisecond); m.status("web").RolledBack != "" {
				break
			}
		}
		m.images.change(func(c *cache) { c.hang = "slow:6" })
		m.apply("web", "slow:6", tried())
		m.want("web", "pulling 6/4")
	})
}

// A cut at any step of going back leads to the same end.
func TestLoopRollsBackAcrossCuts(t *testing.T) {
	for cut := range 40 {
		inMachine(t, func(m *machine) {
			m.healthyFirst()
			m.driver.answer("web", "no")
			m.apply("web", "web:2", tried())
			m.rest(15*time.Second + time.Duration(cut)*200*time.Millisecond)
			m.kill()
			m.driver.reset()
			m.boot()
			m.rest(30 * time.Second)
			m.driver.answer("web", "")
			m.rest(30 * time.Second)
			m.want("web", "failed 2/1 rollback")
			if n := len(m.rollbacks()); n != 1 {
				m.Errorf("cut %d: %d rollbacks", cut, n)
			}
		})
	}
}

// A boot that takes long before workloads start takes nothing of a trial's time.
func TestLoopTrialBeginsWithTheProgram(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.healthyFirst()
		m.driver.answer("web", "not yet")
		m.apply("web", "web:2", tried())
		m.kill()
		m.driver.reset()
		m.driver.breaks("start", errdefs.ErrUnavailable)
		m.boot()
		m.rest(time.Minute)
		m.driver.answer("web", "")
		m.driver.breaks("start", nil)
		m.rest(time.Minute)
		m.want("web", "running 2/2")
		if list := m.rollbacks(); len(list) != 0 {
			m.Error(list)
		}
	})
}

// Stopped by an operator on trial, it stays stopped, and is tried again after.
func TestLoopStopsOnTrial(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.healthyFirst()
		m.driver.answer("web", "no")
		m.apply("web", "web:2", tried())
		m.stopped("web", true)
		m.rest(time.Hour)
		m.want("web", "stopped 3/0 operator")
		m.kill()
		m.driver.reset()
		m.boot()
		m.want("web", "stopped 3/0 operator")
		m.stopped("web", false)
		m.rest(30 * time.Second)
		m.want("web", "failed 4/1 rollback")
		m.stopped("web", true)
		m.want("web", "stopped 5/0 operator")
	})
}

// Containers and microVMs are gone back to alike, with their networks and volumes.
func TestLoopRollsBackEachKind(t *testing.T) {
	for _, kinds := range [][2]string{{"Container", "Container"}, {"Container", "MicroVM"}, {"MicroVM", "Container"}, {"MicroVM", "MicroVM"}} {
		inMachine(t, func(m *machine) {
			m.shelf.make("v")
			m.withMicroVMs()
			m.applyAs(kinds[0], "web", "web:1", tried(), mounting("v"))
			m.rest(5 * time.Second)
			m.want("web", "running 1/1")
			m.driver.answer("web", "no")
			m.vms.answer("web", "no")
			m.applyAs(kinds[1], "web", "web:2", tried(), func(s *v1.WorkloadSpec) { s.Network = modeNone })
			m.apply("other", "web:1", mounting("v"), dependsOn())
			m.want("other", "pending 1/0 volume") // it may be gone back to
			m.rest(30 * time.Second)
			m.want("web", "failed 2/1 rollback")
			m.want("other", "pending 1/0 volume")
			if mode := m.net.attached["web"]; mode != modeBridge {
				m.Errorf("%v: network %s", kinds, mode)
			}
		})
	}
}

// What is gone back to has the network that it had.
func TestLoopRollsBackNetworks(t *testing.T) {
	mode := func(mode string) func(*v1.WorkloadSpec) { return func(s *v1.WorkloadSpec) { s.Network = mode } }
	for _, modes := range [][2]string{{modeHost, modeBridge}, {modeBridge, modeHost}, {modeNone, modeBridge}} {
		inMachine(t, func(m *machine) {
			m.healthyFirst(mode(modes[0]))
			before := m.net.attached["web"]
			m.driver.answer("web", "no")
			m.apply("web", "web:2", tried(mode(modes[1])))
			m.want("web", "running 2/2")
			m.rest(30 * time.Second)
			m.want("web", "failed 2/1 rollback")
			if now := m.net.attached["web"]; now != before {
				m.Errorf("%v: attached as %q, was as %q", modes, now, before)
			}
		})
	}
}

// What a generation waits for is no fault of it; the older one waits as well.
func TestLoopTrialWaits(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("db", "web:1", dependsOn())
		m.healthyFirst(func(s *v1.WorkloadSpec) { s.DependsOn = []string{"db"} })
		m.driver.answer("web", "no")
		m.apply("web", "web:2", tried(func(s *v1.WorkloadSpec) { s.DependsOn = []string{"db"} }))
		m.stopped("db", true)
		m.driver.crash("web", 1)
		m.rest(time.Hour)
		m.want("web", "pending 2/0 dependency")
		m.stopped("db", false)
		m.want("web", "running 2/2")
		m.rest(30 * time.Second)
		m.want("web", "failed 2/1 rollback")
		m.stopped("db", true)
		m.kill()
		m.driver.reset()
		m.boot()
		m.rest(time.Minute)
		m.want("web", "failed 2/0 rollback")
		m.stopped("db", false)
		m.want("web", "failed 2/1 rollback")
	})
}

// LIFE-05: the image of what is gone back to may be gone from the cache.
func TestLoopRollsBackWithoutAnImage(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.healthyFirst()
		m.driver.answer("web", "no")
		m.apply("web", "web:2", tried())
		m.images.change(func(c *cache) { delete(c.local, "web:1") })
		m.rest(30 * time.Second)
		m.want("web", "failed 2/1 rollback")
		standing, err := StandingNow(m.store, &v1.Meta{Name: "web", Uid: m.object("web").Meta.Uid})
		if err != nil || len(standing) == 0 || standing[0].GetWorkload().Spec.Image != "web:1" {
			m.Error(standing, err)
		}
	})
}

func (m *machine) object(name string) *v1.Object {
	m.Helper()
	obj, err := m.store.Get("", name)
	if err != nil {
		m.Fatal(err)
	}
	return obj
}

func TestHistory(t *testing.T) {
	inMachine(t, func(m *machine) {
		apply := func(kind, image string, wait time.Duration, change ...func(*v1.WorkloadSpec)) {
			spec := &v1.WorkloadSpec{Image: image}
			for _, c := range change {
				c(spec)
			}
			m.declare(kind, "web", spec)
			m.rest(wait)
		}
		apply("Container", "web:1", 20*time.Second)
		m.stopped("web", false) // no revision, and the same one
		apply("Container", "web:1", 20*time.Second, tried())
		m.driver.answer("web", "no")
		apply("Container", "web:2", 30*time.Second, tried())
		apply("Container", "absent:3", 5*time.Second, tried())
		apply("Container", "web:2", time.Second, tried())
		history := func() (list []string) {
			h, err := Revisions(m.store, m.object("web").Meta)
			if err != nil {
				m.Fatal(err)
			}
			for _, r := range h.Revisions {
				outcome := strings.TrimPrefix(r.Outcome.String(), "REVISION_OUTCOME_")
				list = append(list, strings.TrimSuffix(fmt.Sprintf("%d %s %s %s %s %s", r.Generation, r.AppliedBy, r.Spec.Image, outcome, r.ImageDigest, r.Message), " "))
			}
			return list
		}
		want := []string{
			"1 anna web:1 RAN sha256:web:1",
			"3 anna web:1 HEALTHY sha256:web:1",
			"4 anna web:2 ROLLED_BACK sha256:web:2 unhealthy: exit code 1: no",
			`5 anna absent:3 FAILED  registry has no "absent:3"; generation 3 keeps running`,
			"6 anna web:2 UNSPECIFIED sha256:web:2",
		}
		m.kill()
		if diff := cmp.Diff(want, history()); diff != "" {
			m.Error(diff)
		}
		m.boot()
		m.driver.answer("web", "")
		m.rest(time.Minute)
		want[4] = "6 anna web:2 HEALTHY sha256:web:2"
		if diff := cmp.Diff(want, history()); diff != "" {
			m.Error(diff)
		}
		for i := range 20 {
			apply("Container", "web:1", time.Second, version(fmt.Sprint(i)))
		}
		if list := history(); len(list) != RevisionsMax || !strings.HasPrefix(list[9], "26 ") {
			m.Errorf("%q", list)
		}
		large := strings.Repeat("x", 200<<10)
		for i := range 3 {
			apply("Container", "web:1", time.Second, version(fmt.Sprint(large, i)))
		}
		if list := history(); len(list) != 2 {
			m.Errorf("%d revisions of 200 KiB each", len(list))
		}

		// Another object of the name has none of it.
		if err := m.store.Delete("", "web"); err != nil {
			m.Fatal(err)
		}
		m.rest(10 * time.Second)
		if _, found, err := m.store.Bucket(historyTable).Get("web"); found || err != nil {
			m.Error(found, err)
		}
		apply("Container", "web:1", time.Second)
		if list := history(); len(list) != 1 {
			m.Errorf("%q", list)
		}
	})
}

// A dry run, or a refused apply, leaves no revision.
func TestRecordIsPartOfTheApply(t *testing.T) {
	inMachine(t, func(m *machine) {
		obj := func() []*v1.Object {
			return []*v1.Object{{Meta: &v1.Meta{Kind: "Container", Name: "web"}, Kind: &v1.Object_Workload{Workload: &v1.Workload{Spec: &v1.WorkloadSpec{Image: "web:1"}}}}}
		}
		record := func(tx store.View, objs []*v1.Object) error { return Record(tx, objs, "anna", time.Now()) }
		if _, err := m.store.Apply(m.Context(), obj(), true, record); err != nil {
			m.Fatal(err)
		}
		refused := func(tx store.View, objs []*v1.Object) error {
			return errors.Join(record(tx, objs), errdefs.ErrAlreadyExists)
		}
		if _, err := m.store.Apply(m.Context(), obj(), false, refused); err == nil {
			m.Fatal("not refused")
		}
		if _, found, err := m.store.Bucket(historyTable).Get("web"); found || err != nil {
			m.Error(found, err)
		}
	})
}

// The manual says how much is kept.
func TestManualQuotesHistory(t *testing.T) {
	text, err := os.ReadFile("../../docs/workloads.md")
	if err != nil {
		t.Fatal(err)
	}
	if row := fmt.Sprintf("| manifests in `workload history` | %d, and %d KiB |", RevisionsMax, revisionsMaxBytes>>10); !strings.Contains(string(text), row) {
		t.Errorf("docs/workloads.md lacks %q", row)
	}
}
