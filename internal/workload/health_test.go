package workload

import (
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "capsule/api/capsule/v1"
)

// Exec is a check: it fails with what the runtime says of the workload.
func (r *runtime) Exec(_ context.Context, id ID, e Exec) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := r.says[id.Name]
	if text == "" {
		return 0, nil
	}
	_, err := io.WriteString(e.Stdout, text)
	return 1, err
}

// answer has the checks of a workload fail; "" has them succeed.
func (r *runtime) answer(name, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.says[name] = text
}

// check is looked at every ten seconds and unhealthy after two failures.
func check(onFailure string) func(*v1.WorkloadSpec) {
	return func(s *v1.WorkloadSpec) {
		s.Health = &v1.Health{
			Exec: []string{"/check"}, Interval: durationpb.New(10 * time.Second), StartInterval: durationpb.New(5 * time.Second),
			Retries: 2, OnFailure: onFailure,
		}
	}
}

func dependsOn(names ...string) func(*v1.WorkloadSpec) {
	return func(s *v1.WorkloadSpec) { s.DependsOn, s.Ports = names, nil }
}

func (m *machine) healthIs(name string, want v1.HealthState, text string) {
	m.Helper()
	if s := m.status(name); s.Health != want || s.HealthMessage != text {
		m.Errorf("%s: %v %q, want %v %q", name, s.Health, s.HealthMessage, want, text)
	}
}

func (m *machine) says(name, want string) {
	m.Helper()
	if got := m.status(name).Message; got != want {
		m.Errorf("%s says %q, want %q", name, got, want)
	}
}

// told are the messages of the events of a workload about its health.
func (m *machine) told(name string) (list []string) {
	m.Helper()
	page, err := m.store.Events(0, 1000, nil)
	if err != nil {
		m.Fatal(err)
	}
	for _, e := range page.Events {
		if e.Name == name && slices.Contains([]string{"healthy", "unhealthy", "ended"}, e.Type) {
			list = append(list, strings.TrimPrefix(e.Message, "container "+name+": "))
		}
	}
	return list
}

func TestLoopRestartsWhatIsUnhealthy(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.driver.answer("web", "refused")
		m.apply("web", "web:1", check("restart"))
		m.want("web", "running 1/1")
		m.healthIs("web", starting, "exit code 1: refused")
		m.driver.answer("web", "")
		m.rest(5 * time.Second)
		m.healthIs("web", healthy, "")
		m.rest(time.Minute)
		m.took("prepare web 1", "start web 1")

		m.driver.answer("web", "out of threads\nat main.c:3")
		m.rest(23 * time.Second) // and it is stopped in a second
		m.took("stop:2 web 1", "start web 1")
		m.want("web", "running 1/1 unhealthy")
		m.says("web", "restarted: unhealthy: exit code 1: out of threads")
		if s := m.status("web"); s.Restarts != 1 {
			m.Errorf("%d restarts", s.Restarts)
		}
		m.driver.answer("web", "")
		m.rest(20 * time.Second)
		m.want("web", "running 1/1")
		m.says("web", "running")
		m.healthIs("web", healthy, "")
		want := []string{
			"healthy", "unhealthy: exit code 1: out of threads at main.c:3",
			"restarted: unhealthy: exit code 1: out of threads", // and healthy, as it was in this hour
		}
		if diff := cmp.Diff(want, m.told("web")); diff != "" {
			m.Error(diff)
		}
	})
}

// LIFE-01 for health: what never becomes healthy is restarted ever more rarely.
func TestLoopBacksOffFromWhatIsNeverHealthy(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.driver.answer("web", "no")
		m.apply("web", "web:1", check("restart"))
		m.rest(2 * time.Hour)
		s := m.status("web")
		// Each run takes 20 s and a little, and after a dozen of them the wait 5 min.
		if s.Restarts < 20 || s.Restarts > 40 || s.Failures < s.Restarts {
			m.Errorf("%d restarts, %d failures in two hours", s.Restarts, s.Failures)
		}
		m.driver.answer("web", "")
		m.rest(10 * time.Minute)
		if s := m.status("web"); s.Failures != 0 || s.Health != healthy {
			m.Errorf("not forgotten: %v", s)
		}
	})
}

func TestLoopOnlyTellsOfHealth(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("web", "web:1", check("none"))
		m.driver.answer("web", "no")
		m.rest(time.Minute)
		m.want("web", "running 1/1 unhealthy")
		m.says("web", "running, but unhealthy: exit code 1: no")
		m.driver.answer("web", "")
		m.rest(20 * time.Second)
		m.want("web", "running 1/1")
		m.took("prepare web 1", "start web 1")
		m.driver.answer("web", "no")
		m.rest(time.Minute)
		m.driver.crash("web", 0) // an end is an end
		m.rest(time.Second)
		m.want("web", "running 1/1")
		m.healthIs("web", starting, "exit code 1: no")
	})
}

// The image's check is made, also when its name has moved on, unless it is off.
func TestLoopChecksAsTheImageSays(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.images.local["checked:1"] = true
		m.apply("web", "checked:1")
		m.healthIs("web", healthy, "")
		m.apply("web", "checked:1", func(s *v1.WorkloadSpec) { s.Health = &v1.Health{None: true} })
		m.healthIs("web", 0, "")
		m.apply("web", "checked:1")
		m.healthIs("web", healthy, "")
		delete(m.images.local, "checked:1")
		m.kill()
		m.boot()
		m.driver.answer("web", "no")
		m.rest(3 * time.Minute)
		m.want("web", "running 3/3 unhealthy")

		m.images.local["checked:2"] = true
		m.apply("job", "checked:2", func(s *v1.WorkloadSpec) { s.Restart, s.Ports = "never", nil })
		m.driver.answer("job", "no")
		m.rest(3 * time.Minute)
		m.want("job", "running 1/1 unhealthy") // there is no second start to hope for
	})
}

// A daemon that starts goes on where the one before was.
func TestLoopHealthOverARestartOfTheDaemon(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("web", "web:1", check("restart"))
		m.apply("db", "web:1", check("none"), func(s *v1.WorkloadSpec) { s.Ports = nil })
		m.driver.answer("db", "no")
		m.rest(time.Minute)
		m.healthIs("db", unwell, "exit code 1: no")
		before := len(m.told("web")) + len(m.told("db"))
		for range 3 {
			m.kill()
			m.boot()
			m.healthIs("web", healthy, "")
			m.healthIs("db", unwell, "exit code 1: no")
			m.rest(10 * time.Second)
		}
		if n := len(m.told("web")) + len(m.told("db")); n != before {
			m.Errorf("flaps: %q %q", m.told("web"), m.told("db"))
		}
		m.took("prepare web 1", "start web 1", "prepare db 1", "start db 1")
		// With the machine down, what was known is of another run.
		m.kill()
		m.driver.reset()
		m.driver.answer("web", "not yet")
		m.boot()
		m.rest(2 * time.Second)
		m.want("web", "running 1/1")
		m.healthIs("web", starting, "exit code 1: not yet")
	})
}

// A daemon that is killed after it stopped what is unhealthy judges the end so.
func TestLoopHealsAcrossACut(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("web", "web:1", check("restart"), func(s *v1.WorkloadSpec) { s.Restart = "on-failure" })
		m.driver.answer("web", "no")
		for range 100 { // until it is being stopped
			if m.rest(500 * time.Millisecond); m.status("web").Phase == v1.Phase_PHASE_STOPPING {
				break
			}
		}
		m.want("web", "stopping 1/1 unhealthy")
		m.kill()
		m.driver.mu.Lock()
		for id := range m.driver.have {
			m.driver.end(id, 0)
		}
		m.driver.mu.Unlock()
		m.driver.answer("web", "")
		m.boot()
		m.rest(time.Second)
		m.want("web", "running 1/1")
		if s := m.status("web"); s.Restarts != 1 || s.Health != healthy {
			m.Error(s)
		}
	})
}

// The older generation is kept well, too, while the wanted one can't be made.
func TestLoopHealsWhatServes(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("web", "web:1", check("restart"))
		m.apply("web", "absent:1", check("restart"))
		m.want("web", "failed 2/1 image")
		m.healthIs("web", healthy, "")
		m.driver.took()
		m.driver.answer("web", "no")
		m.rest(25 * time.Second)
		m.driver.answer("web", "")
		m.rest(25 * time.Second)
		m.took("stop:2 web 1", "start web 1")
		m.want("web", "failed 2/1 image")
		m.healthIs("web", healthy, "")
	})
}

func TestLoopWaitsForOthers(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("web", "web:1", dependsOn("db", "cache"))
		m.want("web", "pending 1/0 dependency")
		m.says("web", `waits for workload "db", which is not declared`)
		m.took("prepare web 1")

		m.driver.answer("db", "no")
		m.apply("db", "web:1", check("restart"), dependsOn())
		m.says("web", `waits for workload "db", which is not healthy yet`)
		m.driver.answer("db", "")
		m.rest(5 * time.Second)
		m.says("web", `waits for workload "cache", which is not declared`)
		m.apply("cache", "absent:1", dependsOn())
		if s := m.status("web"); !strings.HasPrefix(s.Message, `waits for workload "cache", which does not run: failed (`) {
			m.Error(s.Message)
		}
		m.apply("cache", "web:1", dependsOn())
		m.want("web", "running 1/1")
		m.driver.took()

		// What runs is left alone, whatever becomes of the others.
		m.stopped("db", true)
		m.want("web", "running 1/1")
		// A new generation waits, while the old one serves.
		m.apply("web", "web:2", dependsOn("db", "cache"))
		m.want("web", "pending 2/1 dependency")
		m.says("web", `waits for workload "db", which is stopped by an operator; generation 1 keeps running`)
		m.stopped("db", false)
		m.want("web", "running 2/2")
	})
}

// After a loss of power all start in their order, whatever was known before.
func TestLoopStartsInOrder(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("a", "web:1", dependsOn("b"))
		m.apply("b", "web:1", dependsOn("c"))
		m.apply("c", "web:1", dependsOn(), check("restart"))
		m.rest(5 * time.Second)
		m.took("prepare a 1", "prepare b 1", "prepare c 1", "start c 1", "start b 1", "start a 1")
		m.kill()
		m.driver.reset()
		m.driver.answer("c", "recovers")
		m.boot()
		m.rest(3 * time.Second)
		m.took("start c 1")
		m.want("a", "pending 1/0 dependency")
		m.driver.answer("c", "")
		m.rest(6 * time.Second)
		m.took("start b 1", "start a 1")
		m.kill() // the daemon alone
		m.boot()
		m.rest(time.Minute)
		m.took()
	})
}

// A job that has done its work is waited for no more; one that failed is.
func TestLoopWaitsForJobs(t *testing.T) {
	inMachine(t, func(m *machine) {
		never := func(s *v1.WorkloadSpec) { s.Restart = "never" }
		for name, code := range map[string]int{"good": 0, "bad": 3} {
			m.apply(name, "web:1", dependsOn(), never)
			m.driver.crash(name, code)
			m.rest(time.Second)
			m.apply("after-"+name, "web:1", dependsOn(name))
		}
		m.want("after-good", "running 1/1")
		m.want("after-bad", "pending 1/0 dependency")
		m.says("after-bad", `waits for workload "bad", which does not run: exited (exited with code 3)`)
	})
}
