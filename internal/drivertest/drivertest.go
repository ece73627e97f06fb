// Package drivertest is what every workload driver must do: one suite, run on
// each of them, so that a workload means the same whatever kind it is of.
//
// Test names carry the number of the case that they settle.
package drivertest

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"capsule/internal/await"
	"capsule/internal/image"
	"capsule/internal/imagetest"
	"capsule/internal/logs"
	"capsule/internal/volume"
	"capsule/internal/workload"
)

// Env is a runtime to test, with nothing in it.
type Env struct {
	// Kind of workloads that the driver runs.
	Kind string
	// Driver makes a new value over the same runtime, as a restart of the
	// daemon does. The one before is not used any more.
	Driver func() workload.Driver
	// Image puts an image in the store.
	Image func(t *testing.T, i imagetest.Image) image.Image
	// Network for an instance of the name.
	Network func(name string) workload.Network
	// Neighbour makes a network for an instance of the name with another machine
	// on it.
	Neighbour func(t *testing.T, name string) *Neighbour
	// Volume makes a volume with the files in it, as package volume lends it: the
	// test says where it is mounted. read gives what one of them holds when no
	// running instance has it mounted.
	Volume func(t *testing.T, files map[string]string) (m workload.Mount, read func(name string) string)
	// Pool gives the capsule an empty pool for volumes; nil when it can't have one.
	// Content shows what is in the images then.
	Pool    func(t *testing.T)
	Content volume.Content
	// Folders tells that volumes are folders of this machine: a pipe in one
	// leads into the instance.
	Folders bool
	// Filtered tells that the payload runs under a filter of system calls; the
	// wall of another kind stands elsewhere.
	Filtered bool
	// CountsIO tells that each instance has a control group, on a kernel that counts.
	CountsIO bool
	// LogRoot is the folder for log folders.
	LogRoot string
	// Disks are the folders that the runtime and the driver keep things in for good,
	// and Memory those of what runs.
	Disks, Memory []string
	// RestartRuntime ends the runtime's daemon by force, calls a function and
	// starts it again; nil when there is none.
	RestartRuntime func(t *testing.T, meanwhile func())
	// Leftovers lists pipes and the like that finished commands left.
	Leftovers func() []string
}

// patience bounds each wait. It is never a pause.
const patience = 2 * time.Minute

// Run runs the suite.
func Run(t *testing.T, env Env) {
	s := &suite{Env: env}
	s.restart()
	s.base = s.Image(t, imagetest.PayloadImage(t, nil))
	for _, group := range []struct {
		name string
		run  func(*suite, *testing.T)
	}{
		{"Life", (*suite).life}, {"Process", (*suite).process}, {"Image", (*suite).image},
		{"Limits", (*suite).limits}, {"Logs", (*suite).logs}, {"Exec", (*suite).exec}, {"Health", (*suite).health}, {"Copy", (*suite).copy},
		{"Volumes", (*suite).volumes}, {"Lent", (*suite).lent}, {"Secrets", (*suite).secrets}, {"Network", (*suite).network}, {"Policy", (*suite).policy},
	} {
		t.Run(group.name, func(t *testing.T) { group.run(s, t) })
	}
}

type suite struct {
	Env
	driver workload.Driver
	base   image.Image
	count  int
}

// restart continues with a new driver, as after the end of the daemon.
func (s *suite) restart() { s.driver = s.Driver() }

// instance of the base image that runs the payload with args.
func (s *suite) instance(args ...string) workload.Instance {
	s.count++
	name := fmt.Sprintf("w%d", s.count)
	return workload.Instance{
		ID:      workload.ID{Name: name, UID: fmt.Sprintf("%08x-0000-4000-8000-000000000000", s.count), Generation: 1},
		Image:   s.base,
		Args:    append([]string{"/payload"}, args...),
		Env:     []string{"PATH=/bin:/usr/bin"},
		Cwd:     "/",
		Network: s.Network(name),
		LogDir:  filepath.Join(s.LogRoot, name),
	}
}

// start prepares and starts an instance that is removed with the test.
func (s *suite) start(t *testing.T, in workload.Instance) {
	t.Helper()
	s.prepare(t, in)
	if err := s.driver.Start(t.Context(), in); err != nil {
		t.Fatalf("start: %v", err)
	}
}

func (s *suite) prepare(t *testing.T, in workload.Instance) {
	t.Helper()
	t.Cleanup(func() {
		if err := s.remove(context.WithoutCancel(t.Context()), in.ID); err != nil {
			t.Errorf("remove: %v", err)
		}
	})
	if err := s.driver.Prepare(t.Context(), in); err != nil {
		t.Fatalf("prepare: %v", err)
	}
}

// remove tries again, as the loop does, where a disk of this machine is too busy for
// processes to end.
func (s *suite) remove(ctx context.Context, id workload.ID) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := s.driver.Remove(ctx, id)
		if !errdefs.IsUnavailable(err) || await.Pause(ctx, 100*time.Millisecond) != nil {
			return err
		}
	}
}

// observe finds an instance in the list; nil when it is not there.
func observe(t *testing.T, d workload.Driver, id workload.ID) *workload.Observed {
	t.Helper()
	list, err := d.List(t.Context())
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	for _, o := range list {
		if o.ID == id {
			return &o
		}
	}
	return nil
}

// ended waits for the end of an instance.
func (s *suite) ended(t *testing.T, id workload.ID) workload.Observed {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	events := s.driver.Events(ctx)
	resync := time.NewTicker(time.Second) // events are hints
	defer resync.Stop()
	for {
		o := observe(t, s.driver, id)
		if o == nil {
			t.Fatalf("%s is not listed", id.Name)
		}
		if o.State == workload.Ended {
			return *o
		}
		select {
		case <-events:
		case <-resync.C:
		case <-ctx.Done():
			t.Fatalf("%s did not end in %v", id.Name, patience)
		}
	}
}

// printed waits until the instance printed the line.
func (s *suite) printed(t *testing.T, in workload.Instance, line string) {
	t.Helper()
	s.printedTimes(t, in, line, 1)
}

// printedTimes waits for the n-th such line, counted over all runs.
func (s *suite) printedTimes(t *testing.T, in workload.Instance, line string, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	found := 0
	err := logs.Follow(ctx, in.LogDir, logs.Options{Follow: true, Tail: -1}, func(r logs.Record) error {
		if strings.Contains(string(r.Data), line) {
			if found++; found == n {
				cancel()
			}
		}
		return nil
	})
	if err != nil || found < n {
		t.Fatalf("%s did not print %q %d times: %v\n%s", in.Name, line, n, err, output(t, in))
	}
}

// output is all that the instance printed so far, both streams.
func output(t *testing.T, in workload.Instance) string {
	t.Helper()
	var b bytes.Buffer
	err := logs.Follow(t.Context(), in.LogDir, logs.Options{Tail: -1}, func(r logs.Record) error {
		if r.Stream != logs.Event {
			b.Write(r.Data)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// result runs an instance to its end.
func (s *suite) result(t *testing.T, in workload.Instance) (out string, o workload.Observed) {
	t.Helper()
	s.start(t, in)
	o = s.ended(t, in.ID)
	return output(t, in), o
}

// command runs a command in an instance.
func (s *suite) command(t *testing.T, id workload.ID, e workload.Exec) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	e.Stdout, e.Stderr = &out, &errs
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	code, err := s.driver.Exec(ctx, id, e)
	if err != nil {
		t.Fatalf("exec %q: %v", e.Command, err)
	}
	return code, out.String(), errs.String()
}

func payload(args ...string) workload.Exec {
	return workload.Exec{Command: append([]string{"/payload"}, args...)}
}

// lines of a text, sorted.
func lines(text string) []string {
	l := strings.Split(strings.TrimRight(text, "\n"), "\n")
	slices.Sort(l)
	return l
}

// slow skips what takes a minute on an emulated machine, when tests are to be short.
func slow(run func(*testing.T)) func(*testing.T) {
	return func(t *testing.T) {
		if testing.Short() {
			t.Skip("takes long; run without -short")
		}
		run(t)
	}
}
