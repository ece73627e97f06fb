//go:build linux && machine

package torture

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/await"
	"capsule/internal/imagetest"
	"capsule/internal/nettest"
	"capsule/test/campaign"
	"capsule/test/torture/plan"
)

// Variables of the environment.
const (
	minutesVariable = "CAPSULE_TORTURE_MINUTES" // how long faults are begun; 10 when it isn't set
	seedVariable    = "CAPSULE_TORTURE_SEED"    // repeats a campaign; 1 when it isn't set
	faultsVariable  = "CAPSULE_TORTURE_FAULTS"  // "name,name": these only
	// microVMVariable, when set, has a ledger in a microVM although that is emulated.
	microVMVariable = "CAPSULE_TORTURE_MICROVM"
	keepVariable    = "CAPSULE_TORTURE_KEEP"   // a folder in which the machine stays
	reportVariable  = "CAPSULE_TORTURE_REPORT" // a file that has a section for the report
)

const (
	imageName     = "ledger:1"
	containerName = "ledger"
	guestName     = "ledger-vm"
	containerPort = 9001
	guestPort     = 9002
	volumeSize    = "64MiB"
	setupMax      = 5 * time.Minute
	execMax       = 30 * time.Second
)

func TestMain(m *testing.M) { nettest.Main(m) }

// trial is one campaign.
type trial struct {
	*box
	strikes map[string]fault
	keepers []*keeper
	began   time.Time
	summary plan.Summary
}

func TestTorture(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("a fault campaign needs root, for a network of its own with a router: run it as root")
	}
	nettest.Require(t)
	kinds, err := plan.Choose(os.Getenv(faultsVariable))
	if err != nil {
		t.Fatalf("%s: %v", faultsVariable, err)
	}
	minutes := campaign.Number(t, minutesVariable, 10)
	c := newTrial(t)
	c.summary.Seed, c.summary.Minutes = campaign.Number(t, seedVariable, 1), int(minutes) //nolint:gosec // a few
	c.summary.Kinds = c.possible(kinds)
	t.Logf("seed %d, %d minutes, faults %v, %s", c.summary.Seed, minutes, plan.Names(c.summary.Kinds), c.summary.Accel)

	ctx, stop := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	for _, k := range c.keepers {
		writers.Go(func() { k.run(ctx) })
	}
	c.run(time.Duration(c.summary.Minutes) * time.Minute)
	stop()
	writers.Wait()
	c.tell()
}

// newTrial has a capsule with its workloads up.
func newTrial(t *testing.T) *trial {
	t.Helper()
	repository, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := os.Getenv(keepVariable)
	if dir == "" {
		dir = t.TempDir()
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(dir, "config"))
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", filepath.Join(dir, "capsulectl"), "capsule/cmd/capsulectl")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build capsulectl: %v\n%s", err, out)
	}
	c := &trial{box: newBox(t, filepath.Join(repository, "build", "capsule.img"), dir)}
	c.strikes = c.faults()
	c.summary = plan.Summary{Code: campaign.Checkout(repository), Date: time.Now(), Accel: c.machine.Accel}
	if err := c.setUp(); err != nil {
		c.evidence()
		t.Fatal(err)
	}
	return c
}

// setUp brings the workloads, and waits until their ledgers can be written.
func (c *trial) setUp() error {
	if err := c.answers(); err != nil {
		return err
	}
	info, err := c.info()
	if err != nil {
		return err
	}
	c.summary.Version = info.GetVersion()
	c.keepers = []*keeper{newKeeper(c.box, containerName, "Container", containerPort)}
	manifest := timeServer(router) + keeperManifest(containerName, "Container", containerPort)
	if os.Getenv(microVMVariable) != "" || info.GetVirtualization() == "kvm" {
		c.keepers = append(c.keepers, newKeeper(c.box, guestName, "MicroVM", guestPort))
		manifest += keeperManifest(guestName, "MicroVM", guestPort)
	}
	archive := filepath.Join(c.dir, "ledger.tar")
	image := imagetest.PayloadImage(c.t, []string{"ledger", "/data/ledger", ":80"})
	if err := os.WriteFile(archive, imagetest.DockerSave(image, imageName), 0o600); err != nil {
		return err
	}
	if _, err := c.ctl(setupMax, "image", "push", archive); err != nil {
		return err
	}
	if err := c.apply(setupMax, manifest, "--wait", "--timeout", c.allowed(setupMax).String()); err != nil {
		return err
	}
	for _, k := range c.keepers {
		if err := c.until(time.Minute, func() error { return k.verify(c.t.Context()) }); err != nil {
			return err
		}
	}
	return nil
}

func keeperManifest(name, kind string, port int) string {
	return fmt.Sprintf("---\nkind: Volume\nname: %s\nsize: %s\n---\nkind: %s\nname: %s\nimage: %s\nports:\n  - \"%d:80\"\nmounts:\n  - \"%s:/data\"\n",
		name, volumeSize, kind, name, imageName, port, name)
}

// possible leaves out what can't be done to this capsule, and says so.
func (c *trial) possible(kinds []plan.Kind) []plan.Kind {
	_, debugErr := c.inside("true")
	return slices.DeleteFunc(kinds, func(k plan.Kind) bool {
		reason := ""
		switch {
		case k.MicroVM && len(c.keepers) == 1:
			reason = "microVMs would be emulated here"
		case k.Inside && debugErr != nil:
			reason = "no debug session can be had: " + debugErr.Error()
		default:
			return false
		}
		c.t.Logf("fault %q is left out: %s", k.Name, reason)
		c.summary.LeftOut = append(c.summary.LeftOut, "`"+k.Name+"`, "+reason)
		return true
	})
}

// run strikes until the time is over, and cuts the power at last.
func (c *trial) run(limit time.Duration) {
	c.began = time.Now()
	for f := range plan.Faults(c.summary.Seed, c.summary.Kinds) {
		if time.Since(c.began) >= limit || !c.try(f) {
			break
		}
	}
	if c.summary.Ended == "" {
		c.try(plan.Fault{Kind: plan.Power, Pick: 1})
	}
}

// try strikes once, and tells whether the campaign can go on.
func (c *trial) try(f plan.Fault) bool {
	if err := await.Pause(c.t.Context(), f.Calm); err != nil {
		return c.ends(err)
	}
	r := plan.Result{Fault: f, At: time.Since(c.began)}
	var starts []int
	for _, k := range c.keepers {
		starts = append(starts, k.begins())
	}
	begun := time.Now()
	err := c.strike(f)
	gone := time.Now()
	err = errors.Join(err, c.until(f.Recover(), func() error { return c.well(gone) }))
	r.Lasted, r.Recovered = gone.Sub(begun), time.Since(gone)
	for i, k := range c.keepers {
		err = errors.Join(err, c.verify(k))
		silence, now := k.quiet()
		r.Silence = max(r.Silence, silence)
		if f.Undisturbed() && now != starts[i] {
			err = errors.Join(err, fmt.Errorf("workload %q was started again, and nothing was wrong with it", k.name))
		}
	}
	if err != nil {
		r.Problem = err.Error()
	}
	c.summary.Results = append(c.summary.Results, r)
	c.t.Logf("%4.0f s: %v: lasted %.1f s, recovered after %.1f s, silent for %.1f s %s", r.At.Seconds(), f, r.Lasted.Seconds(), r.Recovered.Seconds(), r.Silence.Seconds(), r.Problem)
	return err == nil || c.afresh(err)
}

// verify has a ledger checked, more than once: its workload may be one that a fault
// starts again only now.
func (c *trial) verify(k *keeper) error {
	err := c.until(checkMax, func() error { return k.verify(c.t.Context()) })
	return errors.Join(err, k.loss())
}

// strike begins a fault, lets it last, and ends it. What was begun is ended, whatever
// went wrong.
func (c *trial) strike(f plan.Fault) error {
	of := c.strikes[f.Kind]
	if err := of.begin(f); err != nil {
		err = fmt.Errorf("begin %s: %w", f.Kind, err)
		if of.end != nil {
			err = errors.Join(err, of.end(f))
		}
		return err
	}
	if of.end == nil {
		return nil
	}
	err := c.hold(f)
	if endErr := of.end(f); endErr != nil {
		err = errors.Join(err, fmt.Errorf("end %s: %w", f.Kind, endErr))
	}
	return err
}

// hold lets a fault last, with another one in the middle if that is planned.
func (c *trial) hold(f plan.Fault) error {
	err := await.Pause(c.t.Context(), f.Hold/2)
	if err == nil && f.During != "" {
		if err = c.strikes[f.During].begin(f); err != nil {
			err = fmt.Errorf("%s in the middle: %w", f.During, err)
		} else if !plan.Find(f.Kind).Apart {
			err = c.answers()
		}
	}
	return errors.Join(err, await.Pause(c.t.Context(), f.Hold/2))
}

// well tells whether the API answers, all workloads run, ledgers grow since then, and
// programs can be run beside them: a workload whose runtime is gone looks well otherwise.
func (c *trial) well(since time.Time) error {
	err := c.call(callMax, func(ctx context.Context, conn *grpc.ClientConn) error {
		info, err := capsulev1.NewCapsuleServiceClient(conn).Info(ctx, &capsulev1.InfoRequest{})
		if err != nil {
			return err
		}
		if info.GetMode() != capsulev1.Mode_MODE_NORMAL {
			return fmt.Errorf("it is in %v: %s", info.GetMode(), info.GetModeReason())
		}
		list, err := capsulev1.NewObjectServiceClient(conn).List(ctx, &capsulev1.ListRequest{})
		if err != nil {
			return err
		}
		return c.running(list.GetObjects())
	})
	for _, k := range c.keepers {
		err = errors.Join(err, k.grown(since))
	}
	for _, k := range c.keepers {
		if err == nil {
			_, err = c.ctl(execMax, "workload", "exec", k.name, "--", "/payload", "true")
		}
	}
	return err
}

// running wants every workload to run, and all that were applied to be there.
func (c *trial) running(objects []*capsulev1.Object) error {
	var errs []error
	count := 0
	for _, o := range objects {
		w := o.GetWorkload()
		if w == nil {
			continue
		}
		count++
		if s := w.GetStatus(); s.GetPhase() != capsulev1.Phase_PHASE_RUNNING {
			errs = append(errs, fmt.Errorf("workload %q is in %v: %s", o.GetMeta().GetName(), s.GetPhase(), s.GetMessage()))
		}
	}
	if count != len(c.keepers) {
		errs = append(errs, fmt.Errorf("there are %d workloads, %d were applied", count, len(c.keepers)))
	}
	return errors.Join(errs...)
}

// afresh goes on after a fault that was not got over: from a power cut, when that helps.
// A lost write ends the campaign.
func (c *trial) afresh(problem error) bool {
	c.evidence()
	if errors.Is(problem, errLost) {
		return c.ends(problem)
	}
	if err := errors.Join(c.power(nil), c.empty()); err != nil {
		return c.ends(fmt.Errorf("it does not come back: %w", err))
	}
	since := time.Now()
	if err := c.until(plan.Fault{Kind: plan.Power}.Recover(), func() error { return c.well(since) }); err != nil {
		return c.ends(fmt.Errorf("it is not well after a power cut either: %w", err))
	}
	return true
}

func (c *trial) ends(err error) bool {
	c.summary.Ended = err.Error()
	return false
}

// tell logs what came of it, and writes the report.
func (c *trial) tell() {
	for _, k := range c.keepers {
		l := k.summary()
		c.summary.Ledgers = append(c.summary.Ledgers, l)
		c.t.Logf("%s %q: %d acknowledged writes, %d starts, read %d times, %d lost", l.Kind, l.Name, l.Acked, l.Starts, l.Checks, len(l.Lost))
		if l.Acked == 0 {
			c.t.Errorf("ledger %q was never written", l.Name)
		}
	}
	for _, r := range c.summary.Results {
		if r.Problem != "" {
			c.t.Errorf("fault %v: %s", r.Fault, r.Problem)
		}
	}
	if lost := c.summary.Lost(); lost > 0 || c.summary.Ended != "" {
		c.t.Errorf("%d acknowledged writes are lost; it ended early: %q", lost, c.summary.Ended)
	}
	file := os.Getenv(reportVariable)
	if file == "" {
		return
	}
	page, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, campaign.PutSection(page, "torture", c.summary.Section()), 0o644)
	}
	if err != nil {
		c.t.Error(err)
	}
}
