//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/rogpeppe/go-internal/testscript"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/contexts"
	"capsule/internal/version"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"capsulectl": func() {
		if v := os.Getenv("VERSION"); v != "" {
			version.Version = v
		}
		main()
	}})
}

// TestScripts runs each script of testdata/script against a capsule of its own,
// with the contexts "test" (current, an admin's), "reader", and "cut", whose network
// breaks after a mebibyte.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Getuid() == 0, nil
			}
			return false, fmt.Errorf("no condition %q", cond)
		},
		Setup: func(env *testscript.Env) error {
			dir := filepath.Join(env.WorkDir, ".capsule")
			if err := os.Mkdir(dir, 0o700); err != nil {
				return err
			}
			c, err := startCapsule(dir, nil, env.Defer)
			if err != nil {
				return err
			}
			config := filepath.Join(env.WorkDir, ".config")
			own := filepath.Join(config, "capsule")
			if err := c.save(own, "test", capsulev1.Role_ROLE_ADMIN); err != nil {
				return err
			}
			if err := c.save(own, "reader", capsulev1.Role_ROLE_READER); err != nil {
				return err
			}
			cut := *c
			if cut.address, err = cutNetwork(c.address, cutAfter, env.Defer); err != nil {
				return err
			}
			if err := cut.save(own, "cut", capsulev1.Role_ROLE_ADMIN); err != nil {
				return err
			}
			store, err := contexts.Open(own)
			if err != nil {
				return err
			}
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("XDG_CONFIG_HOME", config)
			env.Setenv("XDG_STATE_HOME", filepath.Join(env.WorkDir, ".state"))
			env.Setenv("CAPSULE_ROOT", filepath.Join(dir, "root"))
			env.Setenv("VOLUMES", filepath.Join(dir, "volumes"))
			env.Setenv("ADDRESS", c.address)
			for name, address := range serveBundles(env.WorkDir, env.Defer) {
				env.Setenv(name, address)
			}
			examples, err := filepath.Abs("../../examples")
			env.Setenv("EXAMPLES", examples)
			if err != nil {
				return err
			}
			return store.Use("test")
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": code, "bundle": makeBundle},
	})
}

// code runs a program that must end with the given code: code 3 capsulectl …
func code(ts *testscript.TestScript, _ bool, args []string) {
	want, program := args[0], args[1:]
	err := ts.Exec(program[0], program[1:]...)
	got := "0"
	if err != nil {
		got = exitText(err)
	}
	if got != want {
		ts.Fatalf("exit code %s, want %s", got, want)
	}
	for line := range strings.Lines(ts.ReadFile("stderr")) {
		if what := insides(strings.TrimSpace(line)); what != "" {
			ts.Fatalf("%s in %q", what, line)
		}
	}
}

// insides tells what of our own an error line shows that no operator can use:
// names of error classes, words of gRPC, temporary paths, and anything twice.
func insides(line string) string {
	text, ok := strings.CutPrefix(line, "error: ")
	if !ok {
		return ""
	}
	parts := strings.Split(text, ": ")
	for i, part := range parts {
		if i > 0 && part == parts[i-1] {
			return "the same words twice"
		}
	}
	for _, class := range []error{errdefs.ErrInvalidArgument, errdefs.ErrNotFound, errdefs.ErrFailedPrecondition, errdefs.ErrUnavailable, errdefs.ErrAlreadyExists} {
		if strings.HasSuffix(text, ": "+class.Error()) {
			return "the name of an error class"
		}
	}
	for _, ours := range []string{"rpc error", "desc =", "/perm/tmp", "containerd-mount", "callback"} {
		if strings.Contains(text, ours) {
			return ours
		}
	}
	return ""
}

func TestInsides(t *testing.T) {
	for line, clean := range map[string]bool{
		`error: copy to "/no/": no such folder`:                                  true,
		`error: copy to "/no/": copy to "/no/": no such folder`:                  false,
		`error: copy to "f": not a folder: invalid argument`:                     false,
		`error: mount callback failed on /perm/tmp/x: user "ghost" is not there`: false,
		`error: rpc error: code = Internal desc = x`:                             false,
		`copy: copy: what a program prints is its own`:                           true,
	} {
		if got := insides(line); (got == "") != clean {
			t.Errorf("%q: %q", line, got)
		}
	}
}
