package slot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	gocmp "github.com/google/go-cmp/cmp"
)

const (
	ownLine  = "capsule.verity=ab12 capsule.verity_offset=4096 console=ttyS0 quiet"
	secondA  = "loader/entries/capsule-slot_a-5+3-0.conf"
	triedA   = "loader/entries/capsule-slot_a-5+2-1.conf"
	secondA1 = "loader/entries/capsule-slot_a-5+0-3.conf"
)

// alone is a system in A that was confirmed, with a UKI whose line can be read.
func alone(t *testing.T, more files) files {
	f := files{goodA: "4 1.0", kernels + "1.0.efi": string(uki(t, ".cmdline", ownLine)), conf: confText}
	for file, text := range more {
		f[file] = text
	}
	return f
}

// withArguments is an entry of A.
func withArguments(generation int, args string) string {
	return fmt.Sprintf("title Capsule 1.0\nsort-key capsule\nversion %d\noptions %s capsule.added %s\nefi /EFI/capsule/capsule-1.0.efi\n", generation, ownLine, args)
}

// starts is the command line that the kernel of the next boot gets.
func starts(t *testing.T, e esp) string {
	t.Helper()
	list, err := e.list()
	if err != nil {
		t.Fatal(err)
	}
	f := best(list, "slot_a")
	if f == nil {
		t.Fatal("nothing boots")
	}
	if got := boots(t, e.dir); got != f.UKI {
		t.Fatalf("boots %s, want %s", got, f.UKI)
	}
	if f.Options != "" {
		return f.Options
	}
	return ownLine
}

func TestArguments(t *testing.T) {
	e := plain(t, alone(t, nil))
	set := func(counted string, args ...string) {
		t.Helper()
		if err := e.setArguments("slot_a", counted, args); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(counted string, failed, open bool, args ...string) {
		t.Helper()
		f, o, err := e.argumentsOpen("slot_a", counted, args)
		if f != failed || o != open || err != nil {
			t.Errorf("%q: failed %v, open %v, %v", args, f, o, err)
		}
	}
	expect("", false, false)
	expect("", false, true, "nomodeset")
	set("", "nomodeset", "mitigations=off")
	want := ownLine + " capsule.added nomodeset mitigations=off"
	if got := starts(t, e); got != want {
		t.Errorf("starts with %q", got)
	}
	expect("", false, false, "nomodeset", "mitigations=off")
	// Others before the restart, and none at all.
	set("", "nosmt")
	if diff := gocmp.Diff(files{goodA: "4 1.0", "loader/entries/capsule-slot_a-6+3-0.conf": withArguments(6, "nosmt")}, entriesOf(t, e)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	set("")
	if diff := gocmp.Diff(files{goodA: "4 1.0"}, entriesOf(t, e)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// A start with them was good: they are what there is, and can be taken away.
	set("", "nosmt")
	counted := filepath.Join(filepath.Dir(secondA), "capsule-slot_a-5+2-1.conf")
	if err := os.Rename(filepath.Join(e.dir, secondA), filepath.Join(e.dir, counted)); err != nil {
		t.Fatal(err)
	}
	expect(counted, false, false, "nosmt")
	if err := e.setArguments("slot_a", counted, nil); !errdefs.IsUnavailable(err) {
		t.Errorf("while on trial: %v", err)
	}
	if err := e.bless(counted); err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(files{"loader/entries/capsule-slot_a-5.conf": withArguments(5, "nosmt")}, entriesOf(t, e)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	set(counted)
	if got := starts(t, e); got != ownLine {
		t.Errorf("starts with %q", got)
	}
}

// entriesOf are the boot entries, as they are.
func entriesOf(t *testing.T, e esp) files {
	t.Helper()
	got := files{}
	for file, text := range readFiles(t, e.dir) {
		if strings.HasPrefix(file, entriesDir) {
			got[file] = text
		}
	}
	return got
}

// A start that fails is followed by one of the same system without them, which is
// known, and told.
func TestArgumentsFail(t *testing.T) {
	for name, have := range map[string]files{
		"it never came up":    alone(t, files{secondA1: withArguments(5, "nosmt")}),
		"it was given up":     alone(t, files{triedA: withArguments(5, "nosmt")}),
		"and there's another": alone(t, files{triedA: withArguments(5, "nosmt"), goodB: "3 0.9", kernels + "0.9.efi": "MZ b"}),
	} {
		e := plain(t, have)
		if have[triedA] != "" {
			if err := e.giveUp(triedA); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if got := starts(t, e); got != ownLine {
			t.Errorf("%s: starts with %q", name, got)
		}
		if failed, open, err := e.argumentsOpen("slot_a", "", []string{"nosmt"}); !failed || open || err != nil {
			t.Errorf("%s: failed %v, open %v, %v", name, failed, open, err)
		}
		if _, err := e.tidy("slot_a"); err != nil {
			t.Fatal(err)
		}
		// Others may work.
		if err := e.setArguments("slot_a", "", []string{"nomodeset"}); err != nil {
			t.Fatal(err)
		}
		if got := starts(t, e); got != ownLine+" capsule.added nomodeset" {
			t.Errorf("%s: starts with %q", name, got)
		}
		if failed, open, err := e.argumentsOpen("slot_a", "", []string{"nomodeset"}); failed || open || err != nil {
			t.Errorf("%s: failed %v, open %v, %v", name, failed, open, err)
		}
	}
}

// The last try that is under way is no failure.
func TestArgumentsOnTheLastTry(t *testing.T) {
	e := plain(t, alone(t, files{secondA1: withArguments(5, "nosmt")}))
	if failed, open, err := e.argumentsOpen("slot_a", secondA1, []string{"nosmt"}); failed || open || err != nil {
		t.Errorf("failed %v, open %v, %v", failed, open, err)
	}
}

// An update starts with the machine's arguments; it can be pushed while they wait.
func TestArgumentsOfAnUpdate(t *testing.T) {
	for name, have := range map[string]files{
		"they wait": alone(t, files{secondA: withArguments(5, "nosmt")}),
		"they hold": alone(t, files{goodA: withArguments(4, "nosmt")}),
	} {
		e := plain(t, have)
		if err := e.forget("slot_b"); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		image := uki(t, ".cmdline", "capsule.verity=cd34 capsule.verity_offset=8192")
		file, err := e.copyKernel(t, string(image))
		if err != nil {
			t.Fatal(err)
		}
		if err := e.activate(Entry{Slot: "slot_b", Version: "2.0", UKI: file}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		text := entriesOf(t, e)[newB]
		if !strings.Contains(text, "\noptions capsule.verity=cd34 capsule.verity_offset=8192 capsule.added nosmt\n") {
			t.Errorf("%s: %s", name, text)
		}
		if got := boots(t, e.dir); got != file {
			t.Errorf("%s: boots %s", name, got)
		}
		// And going back, with those that held there.
		if name == "they hold" {
			if err := errors.Join(e.bless(newB), e.prefer("slot_a")); err != nil {
				t.Fatal(err)
			}
			if got := starts(t, e); got != ownLine+" capsule.added nosmt" {
				t.Errorf("after going back it starts with %q", got)
			}
		}
	}
}

// copyKernel writes the UKI of version 2.0.
func (e esp) copyKernel(t *testing.T, image string) (string, error) {
	t.Helper()
	file := kernels + "2.0.efi"
	return "/" + file, os.WriteFile(filepath.Join(e.dir, file), []byte(image), 0o600)
}

// Options that are not ours make an entry one that we didn't write.
func TestOddOptions(t *testing.T) {
	for _, options := range []string{
		"init=/bin/sh", ownLine, ownLine + " capsule.added", "capsule.added nosmt", ownLine + " capsule.added no\x01smt",
	} {
		e := Entry{}
		text := "title Capsule 1.0\nsort-key capsule\nversion 4\noptions " + options + "\nefi /EFI/capsule/capsule-1.0.efi\n"
		if err := e.parseText([]byte(text)); !errdefs.IsDataLoss(err) {
			t.Errorf("%q: %v", options, err)
		}
	}
}

// TestArgumentsCut cuts the power before each step.
func TestArgumentsCut(t *testing.T) {
	set := func(args ...string) func(esp) error {
		return func(e esp) error { return e.setArguments("slot_a", "", args) }
	}
	waiting := alone(t, files{secondA: withArguments(5, "nosmt")})
	const line = ownLine + " capsule.added "
	for name, tc := range map[string]struct {
		before files
		do     func(esp) error
		starts []string // the last at the end
		steps  int
	}{
		"first":  {alone(t, nil), set("nosmt"), []string{ownLine, line + "nosmt"}, 2},
		"others": {waiting, set("nomodeset"), []string{line + "nosmt", line + "nomodeset"}, 3},
		"none":   {waiting, set(), []string{line + "nosmt", ownLine}, 1},
	} {
		for kind, waste := range wastes {
			steps := 0
			for more := true; more; steps++ {
				e := plain(t, tc.before)
				c := &cutter{dir: e.dir, steps: steps, waste: waste}
				if err := tc.do(esp{dir: e.dir, step: c.step}); (err != nil) != c.off {
					t.Fatalf("%s, %s, cut %d: %v", name, kind, steps, err)
				}
				if kind != "old" { // that one names another UKI
					if got := starts(t, e); !strings.Contains(strings.Join(tc.starts, "\n")+"\n", got+"\n") {
						t.Errorf("%s, %s, cut %d: starts with %q", name, kind, steps, got)
					}
				}
				if err := tc.do(e); err != nil {
					t.Fatalf("%s, %s, cut %d: again: %v", name, kind, steps, err)
				}
				if got := starts(t, e); got != tc.starts[len(tc.starts)-1] {
					t.Errorf("%s, %s, cut %d: starts with %q in the end", name, kind, steps, got)
				}
				more = c.off
			}
			if steps-1 < tc.steps {
				t.Errorf("%s: %d steps", name, steps-1)
			}
		}
	}
}
