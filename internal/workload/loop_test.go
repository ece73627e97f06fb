package workload

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/image"
	"capsule/internal/network"
	"capsule/internal/secret"
	"capsule/internal/store"
)

// runtime stands for containerd, which can't run in a unit test. The methods
// that it does not need are those of a nil Driver.
type runtime struct {
	Driver
	mu     sync.Mutex
	have   map[ID]*Observed
	calls  []string
	fails  map[string]error // by verb
	events chan string
	says   map[string]string // why checks fail, by workload
	// Of the second kind: the first, which keeps the calls of both in order.
	first    *runtime
	emulated bool
	started  Instance // last
}

func newRuntime() *runtime {
	return &runtime{have: map[ID]*Observed{}, fails: map[string]error{}, says: map[string]string{}, events: make(chan string)}
}

func (r *runtime) do(verb string, id ID, fn func()) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	call := fmt.Sprint(verb, " ", id.Name, " ", id.Generation)
	if r.first == nil {
		r.calls = append(r.calls, call)
	} else {
		r.first.mu.Lock()
		r.first.calls = append(r.first.calls, call+" MicroVM")
		r.first.mu.Unlock()
	}
	if err := r.fails[verb]; err != nil {
		return err
	}
	fn()
	return nil
}

func (r *runtime) List(context.Context) (list []Observed, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.have {
		list = append(list, *o)
	}
	return list, r.fails["list"]
}

func (r *runtime) Prepare(_ context.Context, in Instance) error {
	return r.do("prepare", in.ID, func() {
		r.have[in.ID] = &Observed{ID: in.ID, State: Prepared, ImageDigest: in.Image.Digest, Emulated: r.emulated}
	})
}

func (r *runtime) Start(_ context.Context, in Instance) error {
	for _, m := range in.Mounts {
		if m.Source == "" {
			return fmt.Errorf("volume %q has no source", m.Volume)
		}
	}
	return r.do("start", in.ID, func() {
		r.started = in
		o := r.have[in.ID]
		o.State, o.StartedAt, o.Emulated = Running, time.Now(), r.emulated
	})
}

func (r *runtime) Stop(ctx context.Context, id ID, signal int, grace time.Duration) error {
	select {
	case <-time.After(min(grace, time.Second)):
	case <-ctx.Done():
		return ctx.Err()
	}
	return r.do(fmt.Sprint("stop:", signal), id, func() { r.end(id, 0) })
}

func (r *runtime) Remove(_ context.Context, id ID) error {
	return r.do("remove", id, func() { delete(r.have, id) })
}

func (r *runtime) Freeze(_ context.Context, id ID, _ time.Duration) (func(), error) {
	return func() { _ = r.do("thaw", id, func() {}) }, r.do("freeze", id, func() {})
}

func (r *runtime) Grown(_ context.Context, id ID, path string, _ int64) error {
	return r.do("grown "+path, id, func() {})
}

func (r *runtime) StepMax() time.Duration { return time.Minute }

func (r *runtime) Events(ctx context.Context) <-chan string {
	out := make(chan string)
	go func() {
		defer close(out)
		for {
			select {
			case name := <-r.events:
				out <- name
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// end has an instance end; r.mu is held.
func (r *runtime) end(id ID, code int) {
	r.have[id].State, r.have[id].ExitCode, r.have[id].FinishedAt = Ended, code, time.Now()
	r.have[id].Emulated = false // a driver may tell it of what runs only
}

// crash ends what runs of a workload.
func (r *runtime) crash(name string, code int) {
	r.mu.Lock()
	for id, o := range r.have {
		if id.Name == name && o.State == Running {
			r.end(id, code)
		}
	}
	r.mu.Unlock()
	r.events <- name
}

// breaks has a verb fail from now on; nil mends it.
func (r *runtime) breaks(verb string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fails[verb] = err
}

// reset is a loss of power.
func (r *runtime) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.have {
		o.State, o.FinishedAt = Ended, time.Time{}
	}
}

func (r *runtime) took() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	calls := r.calls
	r.calls = nil
	return calls
}

// cache stands for the image store.
type cache struct {
	mu    sync.Mutex
	local map[string]bool
	pulls int
	hang  string // a reference whose pull never ends
	moved string // a reference whose name has another image
}

// change changes what is there.
func (c *cache) change(fn func(*cache)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fn(c)
}

func (c *cache) Get(_ context.Context, ref string) (image.Image, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.local[ref] {
		return image.Image{}, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
	}
	var check *v1.Health
	if strings.HasPrefix(ref, "checked") {
		check = &v1.Health{Exec: []string{"/check"}}
	}
	cfg := ocispec.ImageConfig{Cmd: []string{"/serve"}, StopSignal: "SIGINT"}
	if ref == "bare" {
		cfg.Cmd = nil
	}
	digest := "sha256:" + ref
	if ref == c.moved {
		digest += ":moved"
	}
	return image.Image{Name: ref, Digest: digest, Config: cfg, Health: check}, nil
}

func (c *cache) Pull(ctx context.Context, ref string, progress func(done, total int64)) (image.Image, error) {
	c.mu.Lock()
	hangs := ref == c.hang
	c.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return image.Image{}, ctx.Err()
	}
	if strings.HasPrefix(ref, "absent") {
		return image.Image{}, fmt.Errorf("registry has no %q: %w", ref, errdefs.ErrNotFound)
	}
	time.Sleep(3 * time.Second)
	progress(50, 200)
	c.mu.Lock()
	c.pulls++
	c.local[ref] = true
	c.mu.Unlock()
	return c.Get(ctx, ref)
}

// net stands for the bridge.
type net struct {
	mu        sync.Mutex
	attached  map[string]string // mode by name
	published []string
	denied    map[string]bool // kept off the LAN
	stopped   map[string]bool
	times     int
	fails     error
}

func (n *net) attach(name, mode string) (network.Attachment, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.attached[name] = mode
	a := network.Attachment{NetNS: "/run/netns/" + name}
	if mode == modeBridge {
		a.Addresses = []netip.Addr{netip.MustParseAddr("10.0.0.2")}
	}
	return a, n.fails
}

func (n *net) Attach(_ context.Context, name string, denyLAN bool) (network.Attachment, error) {
	a, err := n.attach(name, modeBridge)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.denied[name] = denyLAN; !denyLAN {
		delete(n.denied, name)
	}
	return a, err
}

func (n *net) SetStopped(name string, stopped bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopped[name] = stopped; !stopped {
		delete(n.stopped, name)
	}
	return nil
}

func (n *net) AttachNone(name string) (network.Attachment, error) { return n.attach(name, modeNone) }
func (n *net) HostAttachment() network.Attachment                 { return network.Attachment{} }

func (n *net) Detach(_ context.Context, name string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.attached, name)
	return nil
}

func (n *net) Sync(_ context.Context, names []string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name := range n.attached {
		if !slices.Contains(names, name) {
			delete(n.attached, name)
		}
	}
	return nil
}

func (n *net) Publish(_ context.Context, ports []network.Published) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.times++
	n.published = nil
	for _, p := range ports {
		n.published = append(n.published, p.Workload+" "+p.String())
	}
	return nil
}

// machine is a loop with all that it works on.
type machine struct {
	*testing.T
	store  *store.Store
	driver *runtime
	vms    *runtime // of kind MicroVM, nil when there is none
	images *cache
	net    *net
	shelf  *shelf
	book   *secret.Book
	loop   *Loop
	cancel context.CancelFunc

	dropped []string // logs
}

// inMachine runs a test on a false clock with a real store.
func inMachine(t *testing.T, test func(m *machine)) {
	synctest.Test(t, func(t *testing.T) {
		s, err := store.Open(filepath.Join(t.TempDir(), "state.db"))
		if err != nil {
			t.Fatal(err)
		}
		m := &machine{
			T: t, store: s,
			driver: newRuntime(),
			images: &cache{local: map[string]bool{"web:1": true, "web:2": true, "bare": true}},
			net:    &net{attached: map[string]string{}, denied: map[string]bool{}, stopped: map[string]bool{}},
			shelf:  &shelf{have: map[string]map[string]lent{}, broken: map[string]string{}},
			book:   secret.Open(s, filepath.Join(t.TempDir(), "secret.keys"), noTPM),
		}
		m.boot()
		test(m)
		m.kill()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// boot starts a daemon.
func (m *machine) boot() {
	drivers := map[string]Driver{"Container": m.driver}
	if m.vms != nil {
		drivers["MicroVM"] = m.vms
	}
	m.shelf.driver = m.driver
	m.loop = NewLoop(LoopOptions{
		Store: m.store, Images: m.images, Network: m.net, Volumes: m.shelf, Secrets: m.book, Drivers: drivers,
		LogDir: func(name string) string { return "/logs/" + name },
		Mark:   func(_, text string) error { return nil },
		DropLog: func(dir string) error {
			m.dropped = append(m.dropped, dir)
			return nil
		},
	})
	m.shelf.freed = m.loop.Freed
	ctx, cancel := context.WithCancel(m.Context())
	done := make(chan struct{})
	loop := m.loop
	go func() {
		defer close(done)
		if err := loop.Run(ctx); err != nil {
			m.Error(err)
		}
	}()
	m.cancel = func() { cancel(); <-done }
	m.rest(time.Second)
}

func (m *machine) kill() { m.cancel() }

// withMicroVMs boots a daemon that runs them too, on an emulated processor.
func (m *machine) withMicroVMs() {
	m.kill()
	m.vms = newRuntime()
	m.vms.first, m.vms.emulated = m.driver, true
	m.boot()
}

// rest lets time pass.
func (m *machine) rest(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (m *machine) apply(name, image string, change ...func(*v1.WorkloadSpec)) {
	m.Helper()
	m.applyAs("Container", name, image, change...)
}

func (m *machine) applyAs(kind, name, image string, change ...func(*v1.WorkloadSpec)) {
	m.Helper()
	spec := &v1.WorkloadSpec{Image: image, Ports: []*v1.Port{{HostPort: 8080, Port: 80}}}
	for _, c := range change {
		c(spec)
	}
	obj := &v1.Object{Meta: &v1.Meta{Kind: kind, Name: name}, Kind: &v1.Object_Workload{Workload: &v1.Workload{Spec: spec}}}
	if _, err := m.store.Apply(m.Context(), []*v1.Object{obj}, false, nil); err != nil {
		m.Fatal(err)
	}
	m.rest(5 * time.Second)
}

func (m *machine) stopped(name string, stopped bool) {
	m.Helper()
	_, err := m.store.Mutate(name, "changed", func(o *v1.Object) error {
		o.GetWorkload().Intent = &v1.Intent{Stopped: stopped}
		return nil
	})
	if err != nil {
		m.Fatal(err)
	}
	m.rest(5 * time.Second)
}

func (m *machine) status(name string) *v1.WorkloadStatus {
	m.Helper()
	obj, err := m.store.Get("", name)
	if err != nil {
		m.Fatal(err)
	}
	return obj.GetWorkload().Status
}

// want checks phase, wanted and running generation.
func (m *machine) want(name, want string) {
	m.Helper()
	s := m.status(name)
	got := fmt.Sprintf("%s %d/%d", phaseWords[s.Phase], s.Generation, s.RunningGeneration)
	if s.Reason != "" {
		got += " " + s.Reason
	}
	if got != want {
		m.Errorf("status is %q, want %q: %v", got, want, s)
	}
}

func (m *machine) took(want ...string) {
	m.Helper()
	if diff := cmp.Diff(want, m.driver.took()); diff != "" {
		m.Error(diff)
	}
}

func TestLoopFromApplyToDelete(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("web", "new:1") // pulled
		m.want("web", "running 1/1")
		s := m.status("web")
		if s.ImageDigest != "sha256:new:1" || !slices.Equal(s.Addresses, []string{"10.0.0.2"}) || s.StartedAt == nil {
			m.Error(s)
		}
		if diff := cmp.Diff([]string{"web 8080/tcp"}, m.net.published); diff != "" {
			m.Error(diff)
		}
		m.took("prepare web 1", "start web 1")
		m.apply("web", "web:2", func(s *v1.WorkloadSpec) { s.StopSignal = "SIGTERM" })
		m.want("web", "running 2/2")
		m.took("prepare web 2", "stop:2 web 1", "start web 2", "remove web 1") // by the signal of its own spec
		if err := m.store.Delete("", "web"); err != nil {
			m.Fatal(err)
		}
		m.rest(5 * time.Second)
		m.took("stop:15 web 2", "remove web 2")
		if _, err := m.store.Get("", "web"); !errdefs.IsNotFound(err) || len(m.net.attached) > 0 || len(m.net.published) > 0 {
			m.Error(err, m.net)
		}
		if diff := cmp.Diff([]string{"/logs/web"}, m.dropped); diff != "" {
			m.Error(diff)
		}
	})
}

// LIFE-05: what runs is not touched by an image that can't be had.
func TestLoopKeepsServing(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("web", "web:1")
		m.took("prepare web 1", "start web 1")
		m.apply("web", "absent:2")
		m.want("web", "failed 2/1 image")
		if s := m.status("web"); !strings.Contains(s.Message, "absent:2") || !strings.HasSuffix(s.Message, "generation 1 keeps running") {
			m.Error(s.Message)
		}
		m.rest(time.Hour)
		m.took()
		m.driver.crash("web", 1) // and it is kept up meanwhile
		m.rest(time.Second)
		m.want("web", "failed 2/1 image")
		m.took("start web 1")
		if len(m.net.published) != 1 {
			m.Error(m.net.published)
		}
		m.kill() // also by the next daemon, after a loss of power
		m.driver.reset()
		m.boot()
		m.want("web", "failed 2/1 image")
		m.took("start web 1")
		m.driver.breaks("prepare", fmt.Errorf("no such user: %w", errdefs.ErrInvalidArgument))
		m.apply("web", "web:2")
		m.want("web", "failed 3/1 config")
		m.rest(10 * time.Minute)
		if calls := m.driver.took(); len(calls) > 6 {
			m.Errorf("hot loop: %q", calls)
		}
		m.driver.breaks("prepare", nil)
		m.rest(5 * time.Minute)
		m.want("web", "running 3/3")
	})
}

// One word of the manifest makes a container a microVM, and back: the same
// object, never both at once, the ports kept.
func TestLoopFlipsKind(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.withMicroVMs()
		m.apply("web", "web:1")
		m.want("web", "running 1/1")
		m.took("prepare web 1", "start web 1")
		m.applyAs("MicroVM", "web", "web:1")
		m.want("web", "running 2/2")
		m.took("prepare web 2 MicroVM", "stop:2 web 1", "start web 2 MicroVM", "remove web 1")
		if diff := cmp.Diff([]string{"web 8080/tcp"}, m.net.published); diff != "" {
			m.Error(diff)
		}
		if s := m.status("web"); !s.Emulated || !slices.Equal(s.Warnings, []string{emulatedWarning}) {
			m.Error(s)
		}
		m.kill() // the next daemon finds it by the other driver
		m.boot()
		m.want("web", "running 2/2")
		m.took()
		if s := m.status("web"); !s.Emulated || !slices.Equal(s.Warnings, []string{emulatedWarning}) {
			m.Error(s)
		}
		if id, driver, err := m.loop.Running(context.Background(), "web"); err != nil || id.Generation != 2 || driver != m.vms {
			m.Error(id, driver, err)
		}
		m.apply("web", "web:2")
		m.want("web", "running 3/3")
		m.took("prepare web 3", "stop:2 web 2 MicroVM", "start web 3", "remove web 2 MicroVM")
		if diff := cmp.Diff([]string{"web 8080/tcp"}, m.net.published); diff != "" {
			m.Error(diff)
		}
		if s := m.status("web"); s.Emulated || len(s.Warnings) > 0 {
			m.Error(s)
		}
	})
}

// A microVM that can't be prepared leaves the container of its name serving.
func TestLoopFlipThatFails(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.withMicroVMs()
		m.apply("web", "web:1")
		m.took("prepare web 1", "start web 1")
		m.vms.breaks("prepare", fmt.Errorf("9 processors asked for, the capsule has 2: %w", errdefs.ErrInvalidArgument))
		m.applyAs("MicroVM", "web", "web:1")
		m.want("web", "failed 2/1 config")
		if s := m.status("web"); s.Message != "9 processors asked for, the capsule has 2; generation 1 keeps running" {
			m.Error(s.Message)
		}
		m.driver.crash("web", 1) // and it is kept up meanwhile
		m.rest(time.Second)
		m.want("web", "failed 2/1 config")
		m.took("prepare web 2 MicroVM", "start web 1")
	})
}

// What runs slowly says so, once for each generation.
func TestLoopTellsOfEmulation(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.withMicroVMs()
		m.applyAs("MicroVM", "web", "web:1")
		m.vms.crash("web", 1)
		m.rest(time.Second)
		m.want("web", "running 1/1")
		page, err := m.store.Events(0, 100, nil)
		if err != nil {
			m.Fatal(err)
		}
		var told []string
		for _, e := range page.Events {
			if e.Type == "emulated" {
				told = append(told, e.Message)
			}
		}
		if diff := cmp.Diff([]string{"microvm web: runs without hardware virtualization: slow"}, told); diff != "" {
			m.Error(diff)
		}
	})
}

func TestLoopGivesUpAHangingPull(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.images.hang = "slow:1"
		m.apply("web", "slow:1")
		m.rest(time.Hour)
		m.want("web", "pulling 1/0")
		m.apply("web", "web:1")
		m.want("web", "running 2/2")
	})
}

// A new daemon finds what runs and touches nothing.
func TestLoopTakesOver(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("a", "web:1")
		m.apply("b", "web:1", func(s *v1.WorkloadSpec) { s.Ports[0].HostPort = 9090; s.Ports[0].Protocol = "udp" })
		m.driver.took()
		m.kill()
		m.net.times = 0
		m.boot()
		m.rest(time.Minute)
		m.took()
		if diff := cmp.Diff([]string{"a 8080/tcp", "b 9090/udp"}, m.net.published); diff != "" || m.net.times != 1 {
			m.Error(diff, m.net.times)
		}
	})
}

// LIFE-02: stopped stays stopped.
func TestLoopStopStart(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("web", "web:1")
		m.driver.took()
		m.stopped("web", true)
		m.want("web", "stopped 2/0 operator")
		m.took("stop:2 web 1")
		if len(m.net.published) > 0 {
			m.Error(m.net.published)
		}
		m.rest(time.Hour)
		m.kill()
		m.driver.reset()
		m.boot()
		m.rest(time.Hour)
		m.want("web", "stopped 2/0 operator")
		m.took()
		_, _, err := m.loop.Running(context.Background(), "web")
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "stopped by an operator") {
			m.Error(err)
		}
		m.stopped("web", false)
		m.want("web", "running 3/3")
		m.took("prepare web 3", "start web 3", "remove web 1")
		id, driver, err := m.loop.Running(context.Background(), "web")
		if err != nil || id.Generation != 3 || driver != Driver(m.driver) {
			m.Error(id, driver, err)
		}
		if _, _, err := m.loop.Running(context.Background(), "nobody"); !errdefs.IsNotFound(err) {
			m.Error(err)
		}
	})
}

func TestLoopAfterLossOfPower(t *testing.T) {
	inMachine(t, func(m *machine) {
		for i := range 5 {
			m.apply(fmt.Sprint("w", i), "web:1", func(s *v1.WorkloadSpec) { s.Ports = nil })
		}
		m.kill()
		m.driver.took()
		m.driver.reset()
		m.boot()
		if calls := m.driver.took(); len(calls) != 5 {
			m.Error(calls)
		}
		for i := range 5 {
			m.want(fmt.Sprint("w", i), "running 1/1")
		}
		if m.images.pulls > 0 {
			m.Error("pulled")
		}
		m.kill()
		m.driver.reset()
		m.images.local = map[string]bool{} // lost: what is prepared starts all the same
		m.boot()
		m.want("w0", "running 1/1")
		m.stopped("w0", true)
		if calls := m.driver.took(); calls[len(calls)-1] != "stop:2 w0 1" {
			m.Error(calls)
		}
	})
}

func TestLoopStopAll(t *testing.T) {
	inMachine(t, func(m *machine) {
		policies := map[string]string{"a": "always", "f": "on-failure", "n": "never"}
		for name, policy := range policies {
			m.apply(name, "web:1", func(s *v1.WorkloadSpec) { s.Restart, s.StopGrace = policy, durationpb.New(time.Hour) })
		}
		m.driver.took()
		begun := time.Now()
		ctx, cancel := context.WithTimeout(m.Context(), time.Minute)
		defer cancel()
		if err := m.loop.StopAll(ctx); err != nil {
			m.Error(err)
		}
		if took := time.Since(begun); took > 2*time.Second {
			m.Errorf("one after the other: %v", took)
		}
		if calls := m.driver.took(); len(calls) != 3 {
			m.Error(calls)
		}
		m.loop.Wake("a")
		m.rest(time.Hour)
		m.took()
		if err := m.loop.Run(m.Context()); !errdefs.IsFailedPrecondition(err) {
			m.Error(err)
		}
		m.boot()
		m.want("a", "running 1/1")
		m.want("f", "running 1/1")
		m.want("n", "exited 1/0 machine")
	})
}

func TestLoopCrashes(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("web", "web:1")
		for i := range uint32(3) {
			m.driver.crash("web", 7)
			m.rest(time.Second)
			m.want("web", "running 1/1")
			if s := m.status("web"); s.Restarts != i+1 || s.GetExitCode() != 7 || s.FinishedAt == nil {
				m.Error(s)
			}
		}
		for n := range uint32(4) {
			m.driver.crash("web", 7)
			m.rest(delay(backoffMin, n+4) + time.Second)
		}
		m.driver.crash("web", 7)
		m.rest(time.Second)
		m.want("web", "back-off 1/0 exit")
		next := m.status("web").NextStartAt.AsTime()
		m.kill()
		m.boot() // keeps the wait
		m.want("web", "back-off 1/0 exit")
		if !m.status("web").NextStartAt.AsTime().Equal(next) {
			m.Error(m.status("web"))
		}
		m.stopped("web", false) // an operator's start skips it
		m.want("web", "running 2/2")
		if s := m.status("web"); s.Restarts != 0 || s.Failures != 0 {
			m.Error(s)
		}
	})
}

func TestLoopRefusals(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("bare", "bare")
		m.want("bare", "failed 1/0 config")
		vm := &v1.Object{Meta: &v1.Meta{Kind: "MicroVM", Name: "vm"}, Kind: &v1.Object_Workload{Workload: &v1.Workload{Spec: &v1.WorkloadSpec{Image: "web:1"}}}}
		if _, err := m.store.Apply(m.Context(), []*v1.Object{vm}, false, nil); err != nil {
			m.Fatal(err)
		}
		m.rest(time.Second)
		m.want("vm", "failed 1/0 config")
		if s := m.status("vm"); s.Message != "kind MicroVM is not available on this capsule" {
			m.Error(s)
		}
		m.took()
	})
}

func TestLoopNetworkModes(t *testing.T) {
	inMachine(t, func(m *machine) {
		mode := func(mode string) func(*v1.WorkloadSpec) { return func(s *v1.WorkloadSpec) { s.Network = mode } }
		m.apply("web", "web:1")
		m.driver.breaks("prepare", errors.New("no space"))
		m.apply("web", "web:1", mode(modeNone))
		if m.net.attached["web"] != modeBridge { // of what still serves
			m.Error(m.net.attached)
		}
		m.driver.breaks("prepare", nil)
		m.rest(time.Minute)
		m.want("web", "running 2/2")
		if m.net.attached["web"] != modeNone || len(m.status("web").Addresses) > 0 {
			m.Error(m.net.attached, m.status("web"))
		}
		m.apply("web", "web:1", mode(modeHost))
		m.want("web", "running 3/3")
		if len(m.net.attached) > 0 {
			m.Error(m.net.attached)
		}
	})
}

// A daemon that was killed while it removed a workload leaves its network.
func TestLoopClearsTheNetworkOfFormerWorkloads(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("web", "web:1")
		m.kill()
		m.net.attached["gone"] = modeBridge
		m.boot()
		if diff := cmp.Diff(map[string]string{"web": modeBridge}, m.net.attached); diff != "" {
			m.Error(diff)
		}
		m.want("web", "running 1/1")
	})
}

// A driver whose events broke off says so with an empty name: no workload is
// called that.
func TestLoopLooksAtAllWhenEventsBrokeOff(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("web", "web:1")
		m.driver.took()
		m.driver.mu.Lock()
		for id := range m.driver.have {
			m.driver.end(id, 1)
		}
		m.driver.mu.Unlock()
		m.net.attached[""] = modeNone // detached, were it taken for a name
		m.driver.events <- ""
		m.rest(time.Second)
		if diff := cmp.Diff([]string{"start web 1"}, m.driver.took()); diff != "" {
			m.Error(diff)
		}
		if m.net.attached[""] == "" {
			m.Error("a workload without a name was looked at")
		}
	})
}

// A new daemon that can't take up one workload's network publishes the ports of
// the others all the same.
func TestLoopPublishesDespiteOneBrokenNetwork(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("web", "web:1")
		m.kill()
		m.net.fails = errors.New("the link does not come up")
		m.boot()
		m.apply("host", "web:1", func(s *v1.WorkloadSpec) { s.Network, s.Ports[0].HostPort = modeHost, 9090 })
		m.net.mu.Lock()
		defer m.net.mu.Unlock()
		if len(m.net.published) != 2 {
			m.Error(m.net.published)
		}
	})
}

// One that is declared again before it is gone starts with no log either.
func TestLoopDropsTheLogOfAReplacedWorkload(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("web", "web:1")
		if err := m.store.Delete("", "web"); err != nil {
			m.Fatal(err)
		}
		m.apply("web", "web:2")
		m.want("web", "running 1/1")
		if diff := cmp.Diff([]string{"/logs/web"}, m.dropped); diff != "" {
			m.Error(diff)
		}
		m.apply("web", "web:1")
		m.want("web", "running 2/2")
		if len(m.dropped) != 1 {
			m.Error("the log of an older generation is gone: ", m.dropped)
		}
	})
}

func TestLoopShowsWhatItIsStuckOn(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("web", "web:1")
		m.driver.breaks("stop:2", errors.New("the shim hangs"))
		m.stopped("web", true)
		m.want("web", "stopping 2/1 operator")
		if s := m.status("web"); !strings.Contains(s.Message, "the shim hangs") {
			m.Error(s)
		}
		m.driver.breaks("stop:2", nil)
		m.rest(time.Minute)
		m.want("web", "stopped 2/0 operator")
	})
}

func TestLoopRemovesOrphans(t *testing.T) {
	inMachine(t, func(m *machine) {
		id := ID{Name: "ghost", UID: "gone", Generation: 2}
		m.driver.mu.Lock()
		m.driver.have[id] = &Observed{ID: id, State: Running}
		m.driver.mu.Unlock()
		m.rest(time.Minute)
		m.took("stop:15 ghost 2", "remove ghost 2")
	})
}

// At boot the runtime comes up beside the loop.
func TestLoopTakesUpAtOnceWhenTheRuntimeComes(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("web", "web:1")
		m.kill()
		m.driver.reset()
		m.driver.breaks("list", errdefs.ErrUnavailable)
		m.boot()
		m.rest(20 * time.Second)
		m.driver.breaks("list", nil)
		m.driver.breaks("start", errdefs.ErrUnavailable)
		m.rest(time.Second)
		m.want("web", "starting 1/0 machine")
		m.driver.breaks("start", nil)
		m.rest(2 * time.Second)
		m.want("web", "running 1/1")
	})
}

// A runtime that does not answer changes no status, and is asked again.
func TestLoopWithoutRuntime(t *testing.T) {
	inMachine(t, func(m *machine) {
		m.apply("web", "web:1")
		m.driver.took()
		m.driver.breaks("list", errors.New("containerd is away"))
		m.apply("web", "web:2")
		m.want("web", "running 1/1")
		if _, _, err := m.loop.Running(context.Background(), "web"); err == nil {
			m.Error("no error")
		}
		m.driver.breaks("list", nil)
		m.rest(time.Minute)
		m.want("web", "running 2/2")
	})
}
