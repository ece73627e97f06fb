package workload

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "capsule/api/capsule/v1"
)

// model is a machine reduced to what decide can see and do.
type model struct {
	t        *testing.T
	obj      *v1.Object // nil when there is none
	uids     int
	now      time.Time
	have     []seen
	local    map[string]bool // images of the cache
	served   uint64
	healthy  uint64
	images   map[uint64]string // by generation
	tried    uint64            // generation that was started, at a time
	trying   time.Time
	jumped   time.Duration // of the clock, so far
	oldRetry time.Time
	oldTries uint32
	mounts   map[uint64]bool // generations that mount the volume
	holder   string          // of the volume: "", us or other
	damaged  bool            // the volume can't be mounted
	freed    bool
	halting  string
	waits    bool      // for another workload
	sickRun  time.Time // start of the run that is unhealthy
	trace    []string
}

// Images of the model by what goes wrong with them.
const (
	goodImage    = "good"
	noImage      = "absent"  // can't be pulled
	brokenImage  = "broken"  // can't be prepared
	brittleImage = "brittle" // can't be started
	illImage     = "ill"     // never becomes healthy
	onwardImage  = "onward"  // runs, and is not to be gone back from
)

// Holders of the model's volume.
const (
	us    = "us"
	other = "another"
)

func (m *model) fail(format string, args ...any) {
	m.t.Helper()
	m.t.Fatalf("%s\nobject %v\ninstances %v\ntrace %q", fmt.Sprintf(format, args...), m.obj, m.have, m.trace)
}

// change is what the world does to the machine.
func (m *model) change(op byte) {
	m.trace = append(m.trace, fmt.Sprint("op ", op%ops))
	switch op % ops {
	case 0, 1:
		m.apply(goodImage)
	case 2:
		m.apply(noImage)
	case 3:
		m.apply(brokenImage)
	case 4:
		m.apply(brittleImage)
	case 5:
		m.intent(true)
	case 6:
		m.intent(false)
	case 7:
		if m.obj != nil && m.obj.Meta.DeletedAt == nil {
			m.obj.Meta.DeletedAt = timestamppb.New(m.now)
			m.obj.Meta.Generation++
		}
	case 8, 9: // what runs ends
		for i := range m.have {
			if m.have[i].State == Running {
				m.have[i].State, m.have[i].ExitCode, m.have[i].FinishedAt = Ended, int(op%2), m.now
			}
		}
	case 10, 11: // the machine loses power
		for i := range m.have {
			m.have[i].FinishedAt = time.Time{}
			if m.have[i].State == Running {
				m.have[i].State = []State{Ended, Prepared}[op%2]
			}
		}
		m.oldRetry, m.oldTries, m.freed, m.halting, m.tried = time.Time{}, 0, false, "", 0
	case 12:
		m.now = m.now.Add(20 * time.Second)
	case 13: // the clock jumps
		m.now, m.jumped = m.now.Add(-24*time.Hour), m.jumped+24*time.Hour
	case 14:
		m.apply(goodImage)
		m.mounts[m.obj.Meta.Generation] = true
	case 15: // another takes the volume, or gives it back
		switch m.holder {
		case "":
			m.holder = other
		case other:
			m.holder, m.freed = "", true
		}
	case 16: // the volume fails under whom has it mounted, or is repaired
		m.damaged = !m.damaged
		if m.freed = !m.damaged; m.damaged && m.holder == us {
			m.halting = "it can't be written to"
		}
	case 17: // what it depends on comes or goes
		m.waits = !m.waits
	case 18: // what runs is unhealthy
		for _, s := range m.have {
			if s.State == Running {
				m.sickRun = s.StartedAt
			}
		}
	case 19:
		m.apply(illImage)
	case 20:
		m.apply(onwardImage)
	}
}

// ops that change knows.
const ops = 21

// op is one byte of a fuzz input: what happens, and how many steps are taken
// then.
func op(what, steps byte) string { return string([]byte{what + ops*steps}) }

func (m *model) apply(image string) {
	if m.obj == nil || m.obj.Meta.DeletedAt != nil {
		m.uids++
		m.obj = declared(1)
		m.obj.Meta.Uid = fmt.Sprint("u", m.uids)
		m.served, m.healthy, m.mounts, m.images = 0, 0, map[uint64]bool{}, map[uint64]string{}
	} else {
		m.obj.Meta.Generation++
	}
	m.obj.GetWorkload().Spec.Image = image
	m.images[m.obj.Meta.Generation] = image
}

func (m *model) intent(stopped bool) {
	if m.obj != nil && m.obj.Meta.DeletedAt == nil {
		m.obj.GetWorkload().Intent = &v1.Intent{Stopped: stopped}
		m.mounts[m.obj.Meta.Generation+1] = m.mounts[m.obj.Meta.Generation]
		m.images[m.obj.Meta.Generation+1] = m.images[m.obj.Meta.Generation]
		m.obj.Meta.Generation++
	}
}

// step has one decision done; it tells how long to wait when that is all.
func (m *model) step() (wait time.Duration, waits bool) {
	if m.obj == nil {
		return 0, true
	}
	image := m.obj.GetWorkload().Spec.Image
	if _, count := m.runs(); count == 0 {
		m.halting = ""
	}
	w := world{Object: m.obj, Seen: slices.Clone(m.have), ImageLocal: m.local[image], Available: true, Served: m.served, OldRetry: m.oldRetry, Freed: m.freed, Halt: m.halting, Now: m.now}
	w.Health = checked{Checked: true, Heals: true, State: healthy}
	for _, s := range m.have {
		switch {
		case s.State != Running:
		case s.StartedAt.Equal(m.sickRun):
			w.Health.State = unwell
		case m.images[s.Generation] == illImage:
			w.Health.State = starting
		}
	}
	if m.waits {
		w.Waits, w.OldWaits = "another is away", true
	}
	w.Healthy, w.Trial = m.healthy, m.trial()
	d := m.next(w)
	m.trace = append(m.trace, show(d))
	m.obj.GetWorkload().Status = d.Status
	m.now = m.now.Add(10 * time.Millisecond)
	switch d.Step.Do {
	case stepWait:
		m.release(d)
		return d.After, true
	case stepPull:
		m.try(d, image != noImage, reasonImage, false, func() { m.local[image] = true })
	case stepPrepare:
		m.try(d, image != brokenImage, reasonConfig, true, func() {
			m.have = append(m.have, seen{Kind: d.Step.Kind, Observed: Observed{ID: d.Step.ID, State: Prepared}})
		})
	case stepStart:
		m.mayStart(d.Step.ID)
		if m.waits {
			m.fail("starts before what it depends on")
		}
		if !m.mount(d.Step.ID) {
			m.obj.GetWorkload().Status = heldUp(d.Status, "fails", true, m.now)
			break
		}
		if d.Step.Once && image == brittleImage {
			m.obj.GetWorkload().Status = startFailed(d.Status, "fails")
			break
		}
		m.try(d, image != brittleImage, reasonStart, false, func() { m.run(d.Step.ID) })
	case stepStartOld:
		m.mayStart(d.Step.ID)
		if m.waits {
			m.fail("starts the old before what it depends on")
		}
		m.oldTries++
		m.oldRetry = m.now.Add(delay(retryMin, m.oldTries))
		if i := m.find(d.Step.ID); m.mount(d.Step.ID) {
			m.have[i].State, m.have[i].StartedAt = Running, m.now
		}
	case stepStop:
		i := m.find(d.Step.ID)
		switch {
		case d.Step.Heal && !m.have[i].StartedAt.Equal(m.sickRun):
			m.fail("stops what is healthy as unhealthy")
		case d.Step.Heal && d.Step.ID.Generation != m.obj.Meta.Generation:
			m.oldTries++
			m.oldRetry = m.now.Add(delay(retryMin, m.oldTries))
		case !d.Step.Heal && !d.Step.Halt:
			m.mayStop(d.Step.ID, d.Status)
		}
		m.have[i].State, m.have[i].ExitCode, m.have[i].FinishedAt = Ended, 143, m.now
		if d.Step.Halt {
			m.halted(d, m.have[i])
		}
	case stepRemove:
		i := m.find(d.Step.ID)
		if m.have[i].State == Running {
			m.fail("removes what runs")
		}
		if id := d.Step.ID; id.UID == m.obj.Meta.Uid && id.Generation == m.healthy && m.obj.Meta.DeletedAt == nil && w.Trial.On && !w.Trial.Same {
			m.fail("removes what is to be gone back to")
		}
		m.have = slices.Delete(m.have, i, i+1)
	case stepTrust:
		if _, count := m.runs(); !w.Trial.Same && (count != 1 || w.Health.State != healthy) {
			m.fail("trusts what is not healthy")
		}
		m.healthy = d.Step.ID.Generation
	case stepBack:
		if m.healthy == 0 || m.images[m.served] == onwardImage {
			m.fail("goes back from what must not be gone back from")
		}
		m.find(ID{"web", m.obj.Meta.Uid, m.healthy})
		m.served, m.oldTries, m.oldRetry = m.healthy, 0, time.Time{}
	case stepForget:
		if len(m.have) > 0 {
			m.fail("forgets with instances left")
		}
		m.obj, m.served = nil, 0
		m.give()
	}
	return 0, false
}

// next decides as the loop does: with the volume claimed that a step needs.
func (m *model) next(w world) decision {
	for {
		d := decide(w)
		generation := map[volumesOf]uint64{ofWanted: m.obj.Meta.Generation, ofServed: m.served}[d.Volumes]
		switch {
		case d.Volumes == ofNone || !m.mounts[generation]:
			return d
		case m.holder != other:
			m.holder = us
			return d
		case d.Volumes == ofServed:
			w.OldHeld = true
		default:
			w.Held = "another holds the volume"
		}
	}
}

// mount tells whether a generation can have the volume, if it mounts it.
func (m *model) mount(id ID) bool {
	if !m.mounts[id.Generation] {
		return true
	}
	if m.holder != us {
		m.fail("starts generation %d without its volume", id.Generation)
	}
	m.freed = false
	return !m.damaged
}

// trialWindow is longer than what a step of the model takes.
const trialWindow = 30 * time.Second

// trial is what the loop tells of the wanted generation's.
func (m *model) trial() trial {
	generation, clock := m.obj.Meta.Generation, m.now.Add(m.jumped)
	switch {
	case m.served != generation, held(m.obj.GetWorkload().Status), m.tried != generation && !begun(m.obj.Meta, m.have):
		m.tried = 0
	case m.tried != generation:
		m.tried, m.trying = generation, clock
	}
	if m.healthy == 0 || m.healthy == generation {
		return trial{}
	}
	t := trial{On: m.images[generation] != onwardImage, Window: trialWindow}
	t.Same = m.images[generation] == m.images[m.healthy] && m.mounts[generation] == m.mounts[m.healthy]
	if m.tried != 0 {
		t.Lasts = clock.Sub(m.trying)
	}
	return t
}

// standing are the generations that may run whatever is declared.
func (m *model) standing() (objs []*v1.Object) {
	for _, generation := range []uint64{m.served, m.healthy} {
		if obj := m.object(generation); obj != nil {
			objs = append(objs, obj)
		}
	}
	return objs
}

// halted is what the loop does after a stop because of a volume.
func (m *model) halted(d decision, s seen) {
	m.halting = ""
	if s.Generation != m.obj.Meta.Generation {
		m.oldTries++
		m.oldRetry = m.now.Add(delay(retryMin, m.oldTries))
		return
	}
	e := &decider{world: world{Object: m.obj}, status: d.Status}
	e.recordEnd(s)
	m.obj.GetWorkload().Status = heldUp(d.Status, d.Status.Message, false, m.now)
}

// release gives the volume back when it is not to be kept.
func (m *model) release(d decision) {
	keep, known := keeps(d.Status, m.object(m.obj.Meta.Generation), m.standing(), m.have)
	if known && m.holder == us && len(keep) == 0 {
		m.give()
	}
}

// give gives the volume back, which nothing may have mounted.
func (m *model) give() {
	for _, s := range m.have {
		if s.State == Running && m.mounts[s.Generation] {
			m.fail("gives back the volume that generation %d has", s.Generation)
		}
	}
	if m.holder == us {
		m.holder = ""
	}
}

// object is a generation with its mounts, nil when it is the zero one.
func (m *model) object(generation uint64) *v1.Object {
	if generation == 0 {
		return nil
	}
	obj := declared(generation)
	obj.Meta.Uid = m.obj.Meta.Uid
	if m.mounts[generation] {
		obj.GetWorkload().Spec.Mounts = []*v1.Mount{{Volume: "v", Path: "/v"}}
	}
	return obj
}

func (m *model) try(d decision, good bool, reason string, permanent bool, do func()) {
	if good {
		do()
		return
	}
	m.obj.GetWorkload().Status = failed(d.Status, reason, "fails", permanent, m.now)
}

func (m *model) find(id ID) int {
	i := slices.IndexFunc(m.have, func(s seen) bool { return s.ID == id })
	if i < 0 {
		m.fail("acts on %v, which is not there", id)
	}
	return i
}

func (m *model) run(id ID) {
	i := m.find(id)
	m.have[i].State, m.have[i].StartedAt = Running, m.now
	m.served, m.oldTries, m.oldRetry = id.Generation, 0, time.Time{}
	if m.images[id.Generation] == onwardImage {
		m.healthy = 0
	}
}

// mayStart: two generations never run at once.
func (m *model) mayStart(id ID) {
	for _, s := range m.have {
		if s.State == Running {
			m.fail("starts generation %d while %d runs", id.Generation, s.Generation)
		}
	}
	if m.have[m.find(id)].UID != m.obj.Meta.Uid || m.obj.GetWorkload().GetIntent().GetStopped() || m.obj.Meta.DeletedAt != nil {
		m.fail("starts what must not run")
	}
}

// mayStop: what serves is not stopped before its replacement is prepared.
func (m *model) mayStop(id ID, status *v1.WorkloadStatus) {
	if status.RolledBack != "" && m.healthy != 0 && m.healthy != id.Generation {
		m.find(ID{"web", id.UID, m.healthy})
		return
	}
	if id.UID != m.obj.Meta.Uid || m.obj.GetWorkload().GetIntent().GetStopped() || m.obj.Meta.DeletedAt != nil {
		return
	}
	for _, s := range m.have {
		if s.UID == id.UID && s.Generation == m.obj.Meta.Generation && s.Generation != id.Generation {
			return
		}
	}
	m.fail("stops generation %d before its replacement is prepared", id.Generation)
}

// settle lets time pass until nothing is left to do.
func (m *model) settle() {
	for range 40 {
		wait, waits := time.Duration(0), false
		for i := 0; !waits; i++ {
			if i > 80 { // each op may have left an instance to remove
				m.fail("does not come to rest")
			}
			wait, waits = m.step()
		}
		if wait == 0 {
			return
		}
		m.now = m.now.Add(wait)
	}
}

func (m *model) runs() (generation uint64, count int) {
	for _, s := range m.have {
		if s.State == Running {
			generation = s.Generation
			count++
		}
	}
	return generation, count
}

// check tells whether a machine at rest is as declared.
func (m *model) check() {
	generation, count := m.runs()
	if m.obj == nil {
		if count > 0 {
			m.fail("something runs that is not declared")
		}
		return
	}
	phase := m.obj.GetWorkload().Status.Phase
	mounts := m.mounts[m.obj.Meta.Generation]
	switch {
	case m.obj.Meta.DeletedAt != nil:
		m.fail("is still there")
	case m.obj.GetWorkload().GetIntent().GetStopped():
		if count > 0 || phase != v1.Phase_PHASE_STOPPED || m.holder == us {
			m.fail("is not stopped, or holds the volume")
		}
	case generation != 0 && m.find(ID{"web", m.obj.Meta.Uid, generation}) >= 0 && m.have[m.find(ID{"web", m.obj.Meta.Uid, generation})].StartedAt.Equal(m.sickRun):
		m.fail("what is unhealthy runs on")
	case m.obj.GetWorkload().Status.RolledBack != "":
		m.checkRolledBack(generation)
	case m.waits && count > 0 && generation == m.obj.Meta.Generation: // since before
	case m.waits:
		if good := m.obj.GetWorkload().Spec.Image == goodImage; good && phase != v1.Phase_PHASE_PENDING || phase == v1.Phase_PHASE_RUNNING {
			m.fail("does not wait for what it depends on")
		}
	case mounts && m.damaged: // tried again and again
		if m.mounts[generation] {
			m.fail("runs with a volume that is damaged")
		}
	case mounts && m.holder == other:
		if phase != v1.Phase_PHASE_PENDING || count == 0 && m.served > 0 && m.canServe() && !m.mounts[m.served] {
			m.fail("is not held, or what served before is not kept up")
		}
	case m.images[m.obj.Meta.Generation] == illImage:
		if m.canServe() && m.healthy != 0 && m.served == m.obj.Meta.Generation && m.healthy != m.served {
			m.find(ID{"web", m.obj.Meta.Uid, m.healthy})
			m.fail("is ill, and what was healthy is not gone back to")
		}
	case m.obj.GetWorkload().Spec.Image == goodImage, m.obj.GetWorkload().Spec.Image == onwardImage:
		if count != 1 || generation != m.obj.Meta.Generation || phase != v1.Phase_PHASE_RUNNING || len(m.have) != 1 || mounts != (m.holder == us) {
			m.fail("does not run, or the volume is not as it should be")
		}
	case m.obj.GetWorkload().Spec.Image == brittleImage:
	default:
		if phase != v1.Phase_PHASE_FAILED || count == 0 && m.served > 0 && m.canServe() && !m.mounts[m.served] {
			m.fail("has failed, and what served before is not kept up")
		}
	}
}

// checkRolledBack: what was healthy before runs, unless it can't, and nothing else
// is left.
func (m *model) checkRolledBack(generation uint64) {
	status := m.obj.GetWorkload().Status
	can := !m.waits && (!m.mounts[m.healthy] || m.holder == us && !m.damaged)
	switch {
	case status.Phase != v1.Phase_PHASE_FAILED || status.Reason != reasonRollback || m.served != m.healthy:
		m.fail("is rolled back, and does not say so")
	case can && generation != m.healthy, generation != 0 && generation != m.healthy, len(m.have) != 1:
		m.fail("is rolled back, and what was healthy does not run alone")
	}
}

func (m *model) canServe() bool {
	return slices.ContainsFunc(m.have, func(s seen) bool { return s.UID == m.obj.Meta.Uid && s.Generation == m.served })
}

func FuzzDecide(f *testing.F) {
	for _, seed := range []string{
		op(0, 0), op(0, 0) + op(2, 2) + op(10, 2), op(0, 3) + op(3, 3) + op(8, 3), op(0, 3) + op(5, 3) + op(10, 0) + op(6, 0),
		op(0, 0) + op(7, 2) + op(0, 0), op(0, 5) + op(4, 5) + op(11, 5) + op(0, 0), op(0, 3) + op(8, 2) + op(8, 2) + op(13, 0) + op(12, 0),
		op(2, 0) + op(5, 0) + op(6, 0) + op(7, 2) + op(1, 0) + op(11, 0),
		// Unhealthy, and waiting for another.
		op(0, 9) + op(18, 9) + op(18, 1) + op(10, 0), op(17, 0) + op(0, 9) + op(17, 9), op(0, 9) + op(17, 0) + op(18, 9) + op(17, 9) + op(18, 1),
		op(0, 9) + op(2, 9) + op(18, 9) + op(18, 9), op(17, 0) + op(14, 9) + op(15, 9) + op(17, 0) + op(11, 9) + op(17, 9), op(0, 9) + op(18, 1) + op(5, 1) + op(6, 9),
		// Gone back from: ill at once, ended, cut, with another spec meanwhile, with a volume.
		op(0, 9) + op(19, 9) + op(12, 9) + op(12, 9), op(0, 9) + op(19, 9) + op(8, 9) + op(12, 3) + op(12, 9), op(0, 9) + op(19, 5) + op(10, 2) + op(12, 9) + op(12, 4) + op(11, 9),
		op(0, 9) + op(19, 9) + op(12, 0) + op(12, 2) + op(2, 1) + op(11, 2) + op(19, 9), op(14, 9) + op(19, 9) + op(15, 9) + op(12, 9) + op(12, 9), op(0, 9) + op(4, 9) + op(10, 9),
		op(0, 9) + op(19, 9) + op(5, 9) + op(6, 9) + op(12, 9) + op(12, 9), op(0, 9) + op(20, 1) + op(19, 9) + op(12, 9) + op(12, 9), op(0, 9) + op(19, 9) + op(17, 0) + op(10, 9) + op(17, 9) + op(12, 9) + op(12, 9),
		"b002000(", // restarted, and ended before it was well
		// Volumes: had, lost, damaged.
		op(14, 9) + op(15, 9) + op(0, 9), op(15, 0) + op(14, 9) + op(15, 9), op(0, 9) + op(15, 0) + op(14, 9) + op(8, 9) + op(15, 9),
		op(14, 9) + op(16, 9) + op(16, 9), op(14, 9) + op(5, 9) + op(15, 0) + op(6, 9) + op(15, 9), op(14, 9) + op(16, 1) + op(0, 9) + op(10, 3) + op(16, 1),
		op(16, 0) + op(14, 9) + op(10, 9) + op(16, 9), op(14, 9) + op(2, 9) + op(16, 9) + op(14, 1) + op(7, 1),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		m := &model{t: t, now: noon, local: map[string]bool{brokenImage: true, brittleImage: true, illImage: true}, mounts: map[uint64]bool{}}
		for _, op := range input[:min(len(input), 60)] {
			m.change(op)
			for range op / ops { // how far the loop gets before the next thing happens
				if wait, waits := m.step(); waits {
					m.now = m.now.Add(wait)
				}
				if _, count := m.runs(); count > 1 {
					m.fail("%d generations run", count)
				}
			}
		}
		m.settle()
		m.check()
	})
}

// LIFE-01 (b): good runs do not add up to a long wait.
func TestGoodRunsRestartAtOnce(t *testing.T) {
	m := &model{t: t, now: noon, local: map[string]bool{}, mounts: map[uint64]bool{}}
	m.apply(goodImage)
	for range 5 {
		m.settle()
		m.now = m.now.Add(5 * time.Minute)
		m.change(8)
		if wait, _ := m.step(); wait > backoffMin {
			m.fail("waits %v after a good run", wait)
		}
	}
}

// LIFE-01 (a): short runs are started ever more rarely.
func TestShortRunsBackOff(t *testing.T) {
	m := &model{t: t, now: noon, local: map[string]bool{}, mounts: map[uint64]bool{}}
	m.apply(goodImage)
	last := time.Duration(0)
	for range 20 {
		for _, count := m.runs(); count == 0; _, count = m.runs() {
			wait, _ := m.step()
			m.now = m.now.Add(wait)
		}
		m.change(8)
		wait, _ := m.step()
		if wait < last || wait > backoffMax {
			m.fail("waits %v after %v", wait, last)
		}
		last = wait
		m.now = m.now.Add(wait)
	}
	if last != backoffMax {
		m.fail("waits %v at last", last)
	}
}
