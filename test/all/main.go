// Command all runs every test of Capsule in the order that fails soonest:
// static checks, unit and CLI tests, drivers on our own kernel, whole machines.
// It prints the slowest ten tests and the coverage of the core packages.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// coverageFloor is the least part of a core package's statements that its
// tests must reach, in percent.
const coverageFloor = 80.0

// core are the packages that the floor holds for.
var core = []string{
	"capsule/internal/workload", "capsule/internal/store", "capsule/internal/reconcile",
	"capsule/internal/network", "capsule/internal/image", "capsule/internal/volume",
}

// machinePackages have tests that need our own kernel. The longest comes first:
// the others run beside it.
var machinePackages = []string{
	"./internal/container", "./internal/dm", "./internal/ext4", "./internal/guest/channel", "./internal/lvm/...", "./internal/volume",
	"./test/powercut/metadata",
}

// rootPackages have tests that need root and a kernel like ours. Those that a
// machine can't run are run on our kernel.
var rootPackages = []string{"./internal/network", "./internal/uplink", "./internal/image"}

// namespaces are the tests of ./test/lan that need no machine: they are among the
// unit tests.
const namespaces = "^Test(FirstContact|NoDHCP|Trial)"

type stage struct {
	name string
	argv []string
	env  []string
	root bool                   // only root can run it
	long bool                   // only with CAPSULE_TEST_LONG=1
	more func(*report) []string // further arguments, by what the stages before found
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run() error {
	vmexec, err := filepath.Abs("bin/vmexec")
	if err != nil {
		return err
	}
	long := os.Getenv("CAPSULE_TEST_LONG") != ""
	short := fmt.Sprintf("-short=%v", !long)
	stages := []stage{
		{name: "static checks", argv: []string{"make", "lint"}},
		{name: "unit", argv: goTest("-race", "-cover", "-p=3", "-timeout=30m", "./...")},
		{name: "build vmexec", argv: []string{"go", "build", "-o", vmexec, "./test/vmexec"}},
		{name: "drivers on our kernel", argv: append(goTest("-cover", "-count=1", "-p=2", short, "-timeout=60m",
			"-exec", vmexec+" -limit=62m --"), machinePackages...), env: []string{"CGO_ENABLED=0"}, more: skippedPackages},
		{name: "microVMs here", argv: goTest("-count=1", "-p=2", short, "-timeout=30m", "./internal/guest/...", "./internal/microvm"),
			env: []string{"CAPSULE_TEST_GUEST=1"}, root: true},
		{name: "the root is reproducible", argv: []string{"go", "run", "./image", "-check-reproducible"}},
		{name: "whole machine", argv: goTest("-count=1", "-p=1", "-timeout=120m", "-tags=machine", "-skip="+namespaces, "./test/machine", "./test/lan")},
		{name: "power cuts", argv: goTest("-count=1", "-timeout=30m", "-tags=machine", "./test/powercut")},
		{name: "ten minutes of faults", argv: goTest("-count=1", "-timeout=60m", "-tags=machine", "./test/torture"), root: true, long: true,
			env: []string{"CAPSULE_TORTURE_MINUTES=10"}},
	}
	r := report{skippedIn: map[string]bool{}, coverage: map[string]float64{}}
	for _, s := range stages {
		if needs := s.lacks(long); needs != "" {
			fmt.Printf("=== %s: SKIPPED, needs %s\n", s.name, needs)
			r.skipped++
			continue
		}
		if s.more != nil {
			s.argv = append(s.argv, s.more(&r)...)
		}
		began := time.Now()
		fmt.Printf("=== %s: %s\n", s.name, strings.Join(s.argv, " "))
		if err := s.run(&r); err != nil {
			r.problems = append(r.problems, fmt.Sprintf("%s: %v", s.name, err))
		}
		fmt.Printf("=== %s: %v\n", s.name, time.Since(began).Round(time.Second))
	}
	r.checkCoverage()
	r.print()
	if len(r.problems) > 0 {
		return fmt.Errorf("%s", strings.Join(r.problems, "; "))
	}
	return nil
}

// lacks says what the stage needs and has not.
func (s stage) lacks(long bool) string {
	switch {
	case s.long && !long:
		return "CAPSULE_TEST_LONG=1"
	case s.root && os.Geteuid() != 0:
		return "root"
	}
	return ""
}

// goTest is a run of tests that report reads. Without the checkout's folder in it
// (-trimpath), what one checkout compiled serves the next one.
func goTest(args ...string) []string {
	return append([]string{"go", "test", "-json", "-trimpath"}, args...)
}

// skippedPackages are those of rootPackages of which a test was skipped here.
func skippedPackages(r *report) []string {
	var skipped []string
	for _, pkg := range rootPackages {
		if r.skippedIn["capsule"+strings.TrimPrefix(pkg, ".")] {
			skipped = append(skipped, pkg)
		}
	}
	return skipped
}

func (s stage) run(r *report) error {
	cmd := exec.Command(s.argv[0], s.argv[1:]...)
	cmd.Env = append(os.Environ(), s.env...)
	cmd.Stderr = os.Stderr
	if s.argv[1] != "test" {
		cmd.Stdout = os.Stdout
		return cmd.Run()
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	r.read(out)
	return cmd.Wait()
}

// report gathers what the test runs said.
type report struct {
	tests                   []timed
	passed, failed, skipped int
	skippedIn               map[string]bool    // packages
	coverage                map[string]float64 // the best of all stages
	failures                []string           // name and last lines
	problems                []string
}

type timed struct {
	name    string
	elapsed time.Duration
}

func (r *report) checkCoverage() {
	for _, pkg := range core {
		if c := r.coverage[pkg]; c < coverageFloor {
			r.problems = append(r.problems, fmt.Sprintf("coverage of %s is %.1f %%, the floor is %.0f %%", pkg, c, coverageFloor))
		}
	}
}

func (r *report) print() {
	sort.Slice(r.tests, func(i, j int) bool { return r.tests[i].elapsed > r.tests[j].elapsed })
	fmt.Println("slowest ten tests:")
	for _, t := range r.tests[:min(10, len(r.tests))] {
		fmt.Printf("%8.1f s  %s\n", t.elapsed.Seconds(), t.name)
	}
	fmt.Println("coverage of the core packages:")
	for _, pkg := range core {
		fmt.Printf("%8.1f %%  %s\n", r.coverage[pkg], pkg)
	}
	for _, failure := range r.failures {
		fmt.Printf("failed: %s\n", failure)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
}
