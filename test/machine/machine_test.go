//go:build machine

package machine

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"capsule/internal/lab"
)

// shared is the machine of testdata/shared.
const shared = "shared"

// sharedPorts of the capsule that scripts on the shared machine may publish,
// each for one script; $WEB_<port> is where it is reached.
var sharedPorts = []int{8080, 8081, 8082, 8083, 8084, 8085}

var (
	repository string // the checkout
	state      string // folder of this run's machines and contexts
)

// keep names a variable: a folder in which the shared machine goes on between
// runs, for work on its scripts. End it with "capsulectl lab down".
const keep = "CAPSULE_TEST_KEEP"

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	var err error
	if repository, err = filepath.Abs("../.."); err != nil {
		return 0, err
	}
	if state = os.Getenv(keep); state == "" {
		if state, err = os.MkdirTemp("", "capsule-machine-"); err != nil {
			return 0, err
		}
		defer os.RemoveAll(state)
		defer downAll()
	}
	for name, value := range environment() {
		if err := os.Setenv(name, value); err != nil {
			return 0, err
		}
	}
	return m.Run(), nil
}

// environment makes every program use this run's own contexts and machines.
func environment() map[string]string {
	return map[string]string{
		"PATH":            filepath.Join(repository, "bin") + ":" + os.Getenv("PATH"),
		"XDG_CONFIG_HOME": filepath.Join(state, "config"),
		"XDG_STATE_HOME":  filepath.Join(state, "state"),
		"CAPSULE_HOST":    "",
		"NO_COLOR":        "1",
		long:              os.Getenv(long),
	}
}

// long names a variable that, when set, makes scripts try rare races as often
// as their reports did, and slow cases at all.
const long = "CAPSULE_TEST_LONG"

// condition tells scripts whether they are to take long.
func condition(cond string) (bool, error) {
	if cond == "long" {
		return os.Getenv(long) != "", nil
	}
	return false, fmt.Errorf("no condition %q", cond)
}

func downAll() {
	machines, err := lab.List("")
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
	}
	for _, m := range machines {
		if err := m.Kill(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
		}
	}
}

// up runs `capsulectl lab up`.
func up(name string, args ...string) error {
	argv := append([]string{"lab", "up", "--name", name, "--image", filepath.Join(repository, "build/capsule.img")}, args...)
	out, err := exec.Command("capsulectl", argv...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("lab up %s: %w\n%s\n%s", name, err, out, consoleTail(name))
	}
	return nil
}

func consoleTail(name string) string {
	m, err := lab.Attach("", name)
	if err != nil {
		return err.Error()
	}
	log, err := os.ReadFile(m.ConsoleLog())
	if err != nil {
		return err.Error()
	}
	return string(log[max(0, len(log)-3000):])
}

// logMachine logs what a machine last said of itself.
func logMachine(t testing.TB, name string) {
	t.Logf("console of %s:\n%s", name, consoleTail(name))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, _ := exec.CommandContext(ctx, "capsulectl", "--capsule", name, "capsule", "logs", "--tail", "200").CombinedOutput()
	t.Logf("logs of %s:\n%s", name, out)
}

// TestShared runs its scripts one after the other: their machine, where it is emulated,
// is one thread here. Scripts with machines of their own run beside it.
func TestShared(t *testing.T) {
	t.Parallel()
	args := []string{"--memory", "1GiB"}
	for _, port := range sharedPorts {
		args = append(args, "--publish", fmt.Sprintf("0:%d", port))
	}
	args = append(args, "--publish", "0:5353/udp")
	if m, err := lab.Attach("", shared); err == nil && m.Running() {
		runShared(t)
		return
	}
	if err := up(shared, args...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			logMachine(t, shared)
		}
		if os.Getenv(keep) != "" {
			return
		}
		m, err := lab.Attach("", shared)
		if err == nil {
			err = m.Down(context.Background(), false)
		}
		if err != nil {
			t.Error(err)
		}
	})
	runShared(t)
}

func runShared(t *testing.T) {
	t.Run("scripts", func(t *testing.T) { testscript.RunT(oneByOne{t}, scripts("testdata/shared", setupShared)) })
}

// oneByOne is a test whose scripts do not run beside each other.
type oneByOne struct{ *testing.T }

func (oneByOne) Parallel() {}

func (o oneByOne) Run(name string, f func(testscript.T)) {
	o.T.Run(name, func(t *testing.T) { f(oneByOne{t}) })
}

func (oneByOne) Verbose() bool { return testing.Verbose() }

func TestOwn(t *testing.T) {
	t.Parallel()
	testscript.Run(t, scripts("testdata/own", nil))
}

// TestNested starts guests within an emulated machine: each in a part of the thread that
// the machine is. Of such machines no more run beside each other than there are processors.
func TestNested(t *testing.T) {
	t.Parallel()
	testscript.Run(t, scripts("testdata/nested", nil))
}

// scripts are those of a folder.
func scripts(dir string, setup func(*testscript.Env) error) testscript.Params {
	return testscript.Params{
		Dir: dir,
		Setup: func(env *testscript.Env) error {
			for name, value := range environment() {
				env.Setenv(name, value)
			}
			env.Setenv("REPOSITORY", repository)
			env.Values[testKey] = env.T().(testing.TB)
			if setup != nil {
				return setup(env)
			}
			return nil
		},
		Cmds:                verbs,
		Condition:           condition,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	}
}

func setupShared(env *testscript.Env) error {
	env.Setenv("CAPSULE_HOST", shared)
	m, err := lab.Attach("", shared)
	if err != nil {
		return err
	}
	for _, p := range m.Publish {
		env.Setenv(fmt.Sprintf("%s_%d", strings.ToUpper(p.Protocol), p.Port), fmt.Sprintf("127.0.0.1:%d", p.HostPort))
	}
	return nil
}
