//go:build linux

package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"testing"

	"golang.org/x/sys/unix"

	"capsule/test/machine/faults"
)

func TestStateOfThread(t *testing.T) {
	for stat, want := range map[string]string{
		"":                              "",
		"1 (capsuled) t 0 1 1 0 -1":     "t",
		"7 (a) Z (b) S 0 1 1 0 -1 4194": "S",
		"1 (capsuled)":                  "",
	} {
		if got := stateOf(stat); got != want {
			t.Errorf("%q: %q, want %q", stat, got, want)
		}
	}
}

// The test runs as three programs: one looks at what the second does to the third,
// which is its child, since a tracer needs a right to others.
func TestFreeze(t *testing.T) {
	switch os.Getenv("FREEZE") {
	case "victim":
		fmt.Println("ready") // a Go program under test has several threads
		_ = hang()
	case "tracer":
		freezeVictim(t)
	default:
		cmd := freezeTest("tracer")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
}

func freezeTest(who string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], "-test.run=^TestFreeze$")
	cmd.Env = append(os.Environ(), "FREEZE="+who)
	return cmd
}

func freezeVictim(t *testing.T) {
	cmd := freezeTest("victim")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	defer func() { _ = unix.Kill(pid, unix.SIGKILL) }() // nobody waits: its threads are reaped with the tracer's end
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	running, err := threads(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := frozen(pid, running); err == nil {
		t.Fatal("frozen before it was")
	}
	if err := freeze(pid); err != nil {
		t.Fatal(err)
	}
	still, err := threads(pid)
	if err != nil {
		t.Fatal(err)
	}
	if len(still) < 2 {
		t.Fatalf("threads %v: the test needs several", still)
	}
	if err := frozen(pid, still); err != nil {
		t.Error(err)
	}
}

// What the stand-in prints is what the machine tests wait for.
func TestStandstillIsFound(t *testing.T) {
	stood, again, err := faults.Standstill([]byte("[   12.345678] fault: " + standsStill() + "\r\n"))
	if !stood || again || err != nil {
		t.Errorf("%q: %v, %v, %v", standsStill(), stood, again, err)
	}
}

// A fault that is misspelled in the table of bundles would make a good bundle.
func TestEveryFaultHasABundle(t *testing.T) {
	source, err := os.ReadFile("../../update_test.go")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{"nowhere": true}
	for _, names := range [][]string{keys(ofInit), keys(ofServe), keys(onReady)} {
		for _, name := range names {
			if known[name] {
				t.Errorf("%s has two places", name)
			}
			known[name] = true
		}
	}
	made := map[string]bool{}
	for _, m := range regexp.MustCompile(`"([^"]+)": +failing\("([^"]+)"\)`).FindAllStringSubmatch(string(source), -1) {
		name, fault := m[1], m[2]
		made[fault] = true
		if !known[fault] {
			t.Errorf("bundle %s has the unknown fault %s", name, fault)
		} else if name != fault && fault != "nowhere" {
			t.Errorf("bundle %s has the fault %s", name, fault)
		}
	}
	for fault := range known {
		if !made[fault] {
			t.Errorf("no bundle has the fault %s", fault)
		}
	}
}

func keys[V any](m map[string]V) (out []string) {
	for k := range m {
		out = append(out, k)
	}
	return out
}
