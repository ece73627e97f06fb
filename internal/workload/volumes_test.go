package workload

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/image"
	"capsule/internal/volume"
)

// shelf stands for the volumes, which need a disk of their own. It has those
// that it is told of.
type shelf struct {
	driver *runtime // which keeps the calls in order
	freed  func(string)

	mu     sync.Mutex
	have   map[string]map[string]lent // by volume, by workload
	broken map[string]string          // why a volume can't be mounted
	tries  int                        // mounts of those
	slow   time.Duration              // of giving one back
}

type lent struct{ vm, shared bool }

func (s *shelf) Claim(_ context.Context, c volume.Claimant, mounts []*v1.Mount) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	want := map[string]lent{}
	for _, m := range mounts {
		before, again := want[m.Volume]
		want[m.Volume] = lent{c.VM, m.Shared && !c.VM && (!again || before.shared)}
	}
	for name, w := range want {
		if s.have[name] == nil {
			return &volume.HeldError{Volume: name, Reason: "which does not exist"}
		}
		for other, l := range s.have[name] {
			if other != c.Workload && !(l.shared && w.shared) {
				return &volume.HeldError{Volume: name, Holder: other}
			}
		}
	}
	for name, w := range want {
		s.have[name][c.Workload] = w
	}
	return nil
}

func (s *shelf) Mount(ctx context.Context, c volume.Claimant, mounts []*v1.Mount, img image.Image) ([]volume.Mounted, error) {
	if err := s.Claim(ctx, c, mounts); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var mounted []volume.Mounted
	for _, m := range mounts {
		if why := s.broken[m.Volume]; why != "" {
			s.tries++
			return nil, &volume.HeldError{Volume: m.Volume, Reason: why}
		}
		mounted = append(mounted, volume.Mounted{Volume: m.Volume, Source: "/volumes/" + m.Volume, Path: m.Path})
	}
	return mounted, s.driver.do("mount "+strings.Join(names(mounts), ","), ID{Name: c.Workload}, func() {})
}

func (s *shelf) Release(_ context.Context, workload string, keep []string) error {
	var freed []string
	s.mu.Lock()
	for name, holders := range s.have {
		if _, ok := holders[workload]; ok && !slices.Contains(keep, name) {
			time.Sleep(s.slow)
			delete(holders, workload)
			freed = append(freed, name)
		}
	}
	s.mu.Unlock()
	for _, name := range freed {
		s.freed(name)
	}
	return nil
}

// make makes volumes.
func (s *shelf) make(names ...string) {
	s.mu.Lock()
	for _, name := range names {
		s.have[name] = map[string]lent{}
	}
	s.mu.Unlock()
	for _, name := range names {
		s.freed(name)
	}
}

// breaks has a volume fail from now on; "" mends it.
func (s *shelf) breaks(name, why string) {
	s.mu.Lock()
	s.broken[name] = why
	s.mu.Unlock()
	if why == "" {
		s.freed(name)
	}
}

func (s *shelf) holders(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for workload, l := range s.have[name] {
		if l.vm {
			workload += " (VM)"
		}
		if l.shared {
			workload += " (shared)"
		}
		list = append(list, workload)
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

func (m *machine) held(volume, want string) {
	m.Helper()
	if got := m.shelf.holders(volume); got != want {
		m.Errorf("volume %q is held by %q, want %q", volume, got, want)
	}
}

func mounting(volumes ...string) func(*v1.WorkloadSpec) {
	return func(s *v1.WorkloadSpec) {
		for _, v := range volumes {
			s.Mounts = append(s.Mounts, &v1.Mount{Volume: v, Path: "/" + v})
		}
	}
}

func shared(s *v1.WorkloadSpec) {
	for _, m := range s.Mounts {
		m.Shared = true
	}
}

func anyPort(s *v1.WorkloadSpec) { s.Ports = nil }

// Whoever reads that a workload has stopped finds its volumes given back.
func TestLoopStopsWithItsVolumes(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.shelf.make("photos")
		m.apply("blog", "web:1", mounting("photos"))
		m.want("blog", "running 1/1")
		m.shelf.slow = time.Minute
		m.stopped("blog", true)
		m.want("blog", "stopping 2/1 operator")
		m.rest(time.Minute)
		m.want("blog", "stopped 2/0 operator")
		m.held("photos", "")
		m.driver.took()
	})
}

// One workload at a time: the second starts by itself when the first gives the
// volume back.
func TestLoopHolds(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("blog", "web:1", mounting("photos"))
		m.want("blog", "pending 1/0 volume")
		m.shelf.make("photos")
		m.rest(time.Second)
		m.want("blog", "running 1/1")
		m.took("prepare blog 1", "mount photos blog 0", "start blog 1")
		m.apply("show", "web:1", mounting("photos"), anyPort)
		m.want("show", "pending 1/0 volume")
		if s := m.status("show"); !strings.Contains(s.Message, `which workload "blog" holds`) || s.NextStartAt != nil {
			m.Error(s)
		}
		m.rest(time.Hour)
		m.kill() // claims and the wait survive
		m.boot()
		m.want("show", "pending 1/0 volume")
		m.took()
		m.stopped("blog", true)
		m.want("blog", "stopped 2/0 operator")
		m.want("show", "running 1/1")
		m.held("photos", "show")
		m.stopped("blog", false)
		m.want("blog", "pending 3/0 volume")
		m.driver.took()
		if err := m.store.Delete("", "show"); err != nil {
			m.Fatal(err)
		}
		m.rest(5 * time.Second)
		m.want("blog", "running 3/3")
		m.held("photos", "blog")
		m.took("stop:2 show 1", "remove show 1", "prepare blog 3", "mount photos blog 0", "start blog 3", "remove blog 1")
	})
}

// A new generation that waits for a volume leaves the old one serving, which is
// kept up with the volumes that it has.
func TestLoopServesWhileHeld(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.shelf.make("a", "b")
		m.apply("other", "web:1", mounting("b"), anyPort)
		m.apply("web", "web:1", mounting("a"))
		m.driver.took()
		m.apply("web", "web:2", mounting("a", "b"))
		m.want("web", "pending 2/1 volume")
		if s := m.status("web"); !strings.HasSuffix(s.Message, "; generation 1 keeps running") {
			m.Error(s.Message)
		}
		m.took()
		m.driver.crash("web", 1)
		m.rest(2 * time.Second)
		m.want("web", "pending 2/1 volume")
		m.took("mount a web 0", "start web 1")
		m.held("a", "web")
		m.stopped("other", true)
		m.want("web", "running 2/2")
		m.held("b", "web")
		m.took("stop:2 other 1", "prepare web 2", "stop:2 web 1", "mount a,b web 0", "start web 2", "remove web 1")
		m.apply("web", "web:1", mounting("b"))
		m.want("web", "running 3/3")
		m.held("a", "") // no longer mounted
		m.held("b", "web")
	})
}

// A workload that has ended for good gives its volumes back; one that starts
// again does not.
func TestLoopReleasesAtTheEnd(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.shelf.make("v")
		m.apply("job", "web:1", mounting("v"), func(s *v1.WorkloadSpec) { s.Restart = "on-failure" })
		m.apply("next", "web:1", mounting("v"), anyPort)
		m.driver.crash("job", 1)
		m.rest(50 * time.Millisecond)
		m.want("job", "back-off 1/0 exit")
		m.held("v", "job")
		m.rest(time.Minute)
		m.driver.crash("job", 0)
		m.rest(time.Second)
		m.want("job", "exited 1/0 exit")
		m.want("next", "running 1/1")
		m.held("v", "next")
	})
}

func TestLoopShares(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.withMicroVMs()
		m.shelf.make("v")
		m.apply("a", "web:1", mounting("v"), shared)
		m.apply("b", "web:1", mounting("v"), shared, anyPort)
		m.want("b", "running 1/1")
		m.held("v", "a (shared), b (shared)")
		m.applyAs("MicroVM", "b", "web:1", mounting("v"), shared, anyPort)
		m.want("b", "pending 2/1 volume") // another kernel has to wait
		m.held("v", "a (shared), b (shared)")
		m.stopped("a", true)
		m.want("b", "running 2/2")
		m.held("v", "b (VM)")
		m.apply("c", "web:1", mounting("v"), shared, anyPort)
		m.want("c", "pending 1/0 volume")
		// Until the machine has ended, its container's wish to share is no promise.
		m.driver.breaks("prepare", errors.New("no space"))
		m.apply("b", "web:1", mounting("v"), shared, anyPort)
		m.want("b", "failed 3/2 start")
		m.want("c", "pending 1/0 volume")
		m.driver.breaks("prepare", nil)
		m.rest(time.Minute)
		m.want("b", "running 3/3")
		m.want("c", "running 1/1")
		m.held("v", "b (shared), c (shared)")
	})
}

// The volume goes along when the kind flips, after the old one has ended.
func TestLoopFlipsKindWithVolume(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.withMicroVMs()
		m.shelf.make("v")
		m.apply("web", "web:1", mounting("v"))
		m.driver.took()
		m.applyAs("MicroVM", "web", "web:1", mounting("v"))
		m.want("web", "running 2/2")
		m.held("v", "web (VM)")
		m.took("prepare web 2 MicroVM", "stop:2 web 1", "mount v web 0", "start web 2 MicroVM", "remove web 1")
		m.apply("web", "web:1", mounting("v"))
		m.want("web", "running 3/3")
		m.held("v", "web")
	})
}

// A volume that can't be mounted is tried again, ever more rarely, and at once
// when it was repaired.
func TestLoopWaitsForADamagedVolume(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.shelf.make("v")
		m.shelf.breaks("v", "which is damaged; restore a snapshot of it")
		m.apply("web", "web:1", mounting("v"))
		m.want("web", "pending 1/0 volume")
		if s := m.status("web"); !strings.Contains(s.Message, "restore a snapshot") {
			m.Error(s)
		}
		m.rest(time.Hour)
		if m.shelf.tries > 20 {
			m.Errorf("hot loop: %d mounts in an hour", m.shelf.tries)
		}
		m.shelf.breaks("v", "")
		m.rest(time.Second)
		m.want("web", "running 1/1")
	})
}

// LIFE-05 with a volume: what the old generation mounts is damaged, too.
func TestLoopWithADamagedVolumeOfBoth(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.shelf.make("v")
		m.apply("web", "web:1", mounting("v"))
		m.shelf.breaks("v", "which is damaged")
		m.apply("web", "web:2", mounting("v"))
		m.rest(time.Hour)
		m.want("web", "pending 2/0 volume")
		if m.shelf.tries > 60 {
			m.Errorf("hot loop: %d mounts in an hour", m.shelf.tries)
		}
		m.shelf.breaks("v", "")
		m.rest(time.Second)
		m.want("web", "running 2/2")
	})
}

// What can't write to its volume any more is stopped, and started with a
// repaired one.
func TestLoopHoldsForAVolume(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.shelf.make("v")
		m.apply("web", "web:1", mounting("v"), func(s *v1.WorkloadSpec) { s.Restart = "on-failure" })
		m.apply("job", "web:1", mounting("v"), anyPort, func(s *v1.WorkloadSpec) { s.Restart = "never" })
		m.driver.took()
		if err := m.loop.Hold(m.Context(), "web", `volume "v" became read-only`); err != nil {
			m.Fatal(err)
		}
		m.rest(1100 * time.Millisecond)
		m.want("web", "pending 1/0 volume")
		if s := m.status("web"); s.Message != `volume "v" became read-only` || s.NextStartAt == nil {
			m.Error(s)
		}
		m.rest(2 * time.Second)
		m.want("web", "running 1/1")
		m.took("stop:2 web 1", "mount v web 0", "start web 1")
		if err := m.loop.Hold(m.Context(), "nobody", "x"); err == nil {
			m.Error("no error")
		}
		m.stopped("web", true)
		m.want("job", "running 1/1")
		if err := m.loop.Hold(m.Context(), "job", `volume "v" became read-only`); err != nil {
			m.Fatal(err)
		}
		m.rest(time.Minute)
		m.want("job", "exited 1/0 volume")
		m.held("v", "")
	})
}

// A volume that grows or is kept as it is asks the kernel that has it.
func TestLoopGuests(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.withMicroVMs()
		m.shelf.make("v")
		m.applyAs("MicroVM", "web", "web:1", mounting("v"))
		m.apply("web", "absent:1") // generation 1 serves on
		m.driver.took()
		var guests volume.Guests = m.loop
		thaw, err := guests.Freeze(m.Context(), "web", time.Second)
		if err != nil {
			m.Fatal(err)
		}
		thaw()
		for _, name := range []string{"v", "w"} {
			if err := guests.Grown(m.Context(), "web", name, 1<<30); err != nil {
				m.Error(err)
			}
		}
		m.took("freeze web 1 MicroVM", "thaw web 1 MicroVM", "grown /v web 1 MicroVM")
		m.stopped("web", true)
		m.driver.took()
		for _, name := range []string{"web", "nobody"} {
			thaw, err := guests.Freeze(m.Context(), name, time.Second)
			if err != nil {
				m.Fatal(err)
			}
			thaw()
			if err := guests.Grown(m.Context(), name, "v", 1<<30); err != nil {
				m.Error(err)
			}
		}
		m.took()
	})
}

// Nothing is released from under what runs.
func TestKeeps(t *testing.T) {
	with := func(generation uint64, volumes ...string) *v1.Object {
		obj := declared(generation)
		mounting(volumes...)(obj.GetWorkload().Spec)
		return obj
	}
	old := func(objs ...*v1.Object) []*v1.Object { return objs }
	tests := []struct {
		name     string
		status   *v1.WorkloadStatus
		obj      *v1.Object
		standing []*v1.Object
		seen     []seen
		want     string
	}{
		{"runs", phase(v1.Phase_PHASE_RUNNING, ""), with(2, "b", "a"), old(with(2, "b", "a")), []seen{instance(2, Running)}, "[a b]"},
		{"no longer mounted", phase(v1.Phase_PHASE_RUNNING, ""), with(2, "b"), old(with(2, "b")), []seen{instance(2, Running)}, "[b]"},
		{"the old serves", phase(v1.Phase_PHASE_FAILED, reasonImage), with(2, "b"), old(with(1, "a")), []seen{instance(1, Running)}, "[a b]"},
		{"the old is kept up", phase(v1.Phase_PHASE_FAILED, reasonImage), with(2, "b"), old(with(1, "a")), []seen{instance(1, Ended)}, "[a b]"},
		{"the old is gone", phase(v1.Phase_PHASE_FAILED, reasonImage), with(2, "b"), old(with(1, "a")), nil, "[b]"},
		{"held: has nothing", phase(v1.Phase_PHASE_PENDING, reasonVolume), with(2, "b"), nil, nil, "[]"},
		{"held: the old serves", phase(v1.Phase_PHASE_PENDING, reasonVolume), with(2, "a", "b"), old(with(1, "a")), []seen{instance(1, Running)}, "[a]"},
		{"the old is gone back to, should this fail", phase(v1.Phase_PHASE_RUNNING, ""), with(2, "b"), old(with(2, "b"), with(1, "a")), []seen{instance(2, Running), instance(1, Ended)}, "[a b]"},
		{"the old is not gone back to any more", phase(v1.Phase_PHASE_RUNNING, ""), with(2, "b"), old(with(2, "b"), with(1, "a")), []seen{instance(2, Running)}, "[b]"},
		{"stopped", phase(v1.Phase_PHASE_STOPPED, reasonOperator), with(2, "a"), old(with(1, "a")), []seen{instance(1, Ended)}, "[]"},
		{"exited", phase(v1.Phase_PHASE_EXITED, reasonExit), with(1, "a"), old(with(1, "a")), []seen{instance(1, Ended)}, "[]"},
		{"something else runs", phase(v1.Phase_PHASE_RUNNING, ""), with(3, "a"), old(with(1, "a")), []seen{instance(2, Running)}, "unknown"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			keep, known := keeps(test.status, test.obj, test.standing, test.seen)
			got := fmt.Sprint(keep)
			if !known {
				got = "unknown"
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func phase(phase v1.Phase, reason string) *v1.WorkloadStatus {
	return &v1.WorkloadStatus{Phase: phase, Reason: reason}
}

// A folder comes before those in it, whatever the manifest's order.
func TestPlanned(t *testing.T) {
	obj := declared(1, func(o *v1.Object) {
		for _, path := range []string{"/data/cache", "/b", "/data", "/data/cache/deep"} {
			o.GetWorkload().Spec.Mounts = append(o.GetWorkload().Spec.Mounts, &v1.Mount{Volume: "v", Path: path})
		}
	})
	var got []string
	for _, m := range planned(obj) {
		got = append(got, m.Path)
	}
	if diff := cmp.Diff([]string{"/b", "/data", "/data/cache", "/data/cache/deep"}, got); diff != "" {
		t.Error(diff)
	}
}
