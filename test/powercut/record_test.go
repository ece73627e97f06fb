//go:build machine

package powercut

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"google.golang.org/grpc"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/contexts"
	"capsule/internal/lab"
	"capsule/test/powercut/plan"
)

// A recording is a machine at work and what it promised.
type recording struct {
	t       testing.TB
	ctx     context.Context
	machine *lab.Machine
	conn    *grpc.ClientConn
	dir     string

	version string // of the image
	steps   []step
	facts   []*fact
	disks   []plan.Disk // sizes of the disk after the first
	grownAt int64       // length of the log when it grew
	pool    int64       // bytes, after that

	systems   []plan.System // the image's, and the one that it is updated to
	updatesAt int64         // length of the log when updates began
	bundle    string        // of the second system
	starts    *fact         // what starts

	// Facts that end when the work goes on.
	live       map[string]*liveFile // by path
	idle, size *fact
	snapshots  []*fact
	copied     []*fact
}

// A step is one operation, as lengths of the log when it began and when it was
// acknowledged.
type step struct {
	Name         string
	Begin, Acked int64
}

// A fact with its validity as lengths of the log.
type fact struct {
	plan.Fact
	Begin, End int64
}

// kept is what a recording is besides its log.
type kept struct {
	Version string
	Steps   []step
	Facts   []*fact
	Disks   []plan.Disk
	GrownAt int64

	Systems   []plan.System
	UpdatesAt int64
	Bundle    string
}

func (r *recording) file() string { return filepath.Join(r.dir, "recording.json") }

func (r *recording) save() {
	data, err := json.MarshalIndent(kept{r.version, r.steps, r.facts, r.disks, r.grownAt, r.systems, r.updatesAt, r.bundle}, "", "  ")
	if err == nil {
		err = os.WriteFile(r.file(), data, 0o600)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// load takes up a recording that was kept.
func (r *recording) load() {
	var k kept
	data, err := os.ReadFile(r.file())
	if err == nil {
		err = json.Unmarshal(data, &k)
	}
	if err == nil {
		r.machine, err = lab.Attach(r.labs(), machineName)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.version, r.steps, r.facts, r.disks, r.grownAt = k.Version, k.Steps, k.Facts, k.Disks, k.GrownAt
	r.systems, r.updatesAt, r.bundle = k.Systems, k.UpdatesAt, k.Bundle
}

// labs is the folder of the machine.
func (r *recording) labs() string { return filepath.Join(r.dir, "lab") }

const machineName = "powercut"

// step does one operation and notes where in the log it lies.
func (r *recording) step(name string, do func() error) {
	r.t.Helper()
	began := time.Now()
	s := step{Name: name, Begin: r.logged()}
	if err := do(); err != nil {
		r.t.Fatalf("%s: %v", name, err)
	}
	s.Acked = r.logged()
	r.steps = append(r.steps, s)
	r.t.Logf("%-28s %5.1f s, log at %6.1f MiB", name, time.Since(began).Seconds(), float64(s.Acked)/(1<<20))
}

// holds notes what must be true from the last step's acknowledgement on.
func (r *recording) holds(f plan.Fact) *fact {
	last := r.steps[len(r.steps)-1]
	f.Said = last.Name
	noted := &fact{Fact: f, Begin: last.Acked}
	r.facts = append(r.facts, noted)
	return noted
}

// ends notes that from now on something need not be true any more.
func (r *recording) ends(facts ...*fact) {
	for _, f := range facts {
		if f == nil {
			continue
		}
		f.End = r.logged()
	}
}

func (r *recording) logged() int64 {
	n, err := r.machine.Logged()
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

// start makes the machine. Its disk is the image as it is: the first boot is
// recorded too.
func (r *recording) start() {
	r.t.Helper()
	err := r.build("capsulectl", "./cmd/capsulectl")
	if err != nil {
		r.t.Fatal(err)
	}
	r.machine, err = lab.Create(r.ctx, lab.Options{
		Name: machineName, Dir: r.labs(), Image: filepath.Join(built(), "capsule.img"),
		MemoryBytes: memoryBytes, DiskBytes: diskBytes, Restrict: true, Record: true,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if r.t.Failed() && r.machine.Running() { // else what failed came later
			log, _ := os.ReadFile(r.machine.ConsoleLog())
			r.t.Logf("console:\n%s", log[max(0, len(log)-4000):])
		}
		if err := r.machine.Kill(context.Background()); err != nil {
			r.t.Error(err)
		}
	})
	r.step("first boot", func() error {
		return errors.Join(r.machine.Start(r.ctx), r.machine.WaitReady(r.ctx))
	})
	c, err := r.machine.Context()
	if err == nil {
		r.conn, err = c.Dial()
	}
	if err == nil {
		err = r.saveContext(c)
	}
	if err == nil {
		var info *capsulev1.InfoResponse
		info, err = capsulev1.NewCapsuleServiceClient(r.conn).Info(r.ctx, &capsulev1.InfoRequest{})
		r.version = info.GetVersion()
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { r.conn.Close() })
}

func (r *recording) saveContext(c contexts.Context) error {
	store, err := contexts.Open("")
	if err != nil {
		return err
	}
	return store.Put(c)
}

// failedIO is what the kernel says of a request that the disk did not do.
var failedIO = regexp.MustCompile(`I/O error, dev .*`)

// stop ends QEMU; its log is whole then, unless a request failed.
func (r *recording) stop() {
	r.t.Helper()
	if err := r.machine.Shutdown(r.ctx); err != nil {
		r.t.Fatal(err)
	}
	console, err := os.ReadFile(r.machine.ConsoleLog())
	if err != nil {
		r.t.Fatal(err)
	}
	if line := failedIO.Find(console); line != nil {
		r.t.Fatalf("the disk failed while it was recorded: %s", line)
	}
}

// ctl is an operator's command.
func (r *recording) ctl(args ...string) error { return r.ctlOf(r.machine, args...) }

func (r *recording) ctlOf(m *lab.Machine, args ...string) error {
	cmd := exec.CommandContext(r.ctx, filepath.Join(r.dir, "capsulectl"), append([]string{"--capsule", m.Name}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("capsulectl %v: %w: %s", args, err, out)
	}
	return nil
}

// apply applies a manifest.
func (r *recording) apply(manifest string, flags ...string) error {
	path := filepath.Join(r.dir, "manifest.yaml")
	if err := os.WriteFile(path, []byte(manifest), 0o600); err != nil {
		return err
	}
	return r.ctl(append([]string{"apply", "-f", path}, flags...)...)
}
