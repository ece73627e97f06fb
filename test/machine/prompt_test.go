//go:build machine

package machine

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// idles holds, by machine, the longest answer of when it had nothing to do.
var idles sync.Map

// rounds of a measurement: what else this computer does at the moment makes one fail,
// an API that is not prompt makes all.
const rounds = 3

// prompt TIMES idle|LIMIT COMMAND…: runs the command so many times, and all have to end
// well. How long they take on an emulated machine, beside others on this one, is
// learnt when it is idle: then none of a round may take longer by more than the limit.
func prompt(ts *testscript.TestScript, _ bool, args []string) {
	need(ts, args, 3, "prompt TIMES idle|LIMIT COMMAND...")
	times, err := strconv.Atoi(args[0])
	ts.Check(err)
	machine := ts.Getenv("CAPSULE_HOST")
	if args[1] == "idle" {
		idles.Store(machine, answers(ts, times, args[2:]))
		return
	}
	limit, err := time.ParseDuration(args[1])
	ts.Check(err)
	idle, known := idles.Load(machine)
	if !known {
		ts.Fatalf("nothing is known of %s when it is idle", machine)
	}
	var worst []time.Duration
	for range rounds {
		worst = append(worst, answers(ts, times, args[2:]))
		if worst[len(worst)-1] <= limit+idle.(time.Duration) {
			return
		}
	}
	ts.Fatalf("%q took %v, %v when the machine is idle", args[2:], worst, idle)
}

// answers gives the longest that the command took.
func answers(ts *testscript.TestScript, times int, command []string) time.Duration {
	var took []time.Duration
	for range times {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Env = append(os.Environ(), "CAPSULE_HOST="+ts.Getenv("CAPSULE_HOST"))
		began := time.Now()
		out, err := cmd.CombinedOutput()
		took = append(took, time.Since(began))
		if err != nil {
			ts.Fatalf("%q after %v: %v: %s", command, took[len(took)-1], err, out)
		}
	}
	slices.Sort(took)
	ts.Logf("%q: median %v, worst %v of %d", command, took[times/2].Round(time.Millisecond), took[times-1].Round(time.Millisecond), times)
	return took[times-1]
}
