//go:build machine

package machine

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// prompt TIMES LIMIT COMMAND…: runs the command so many times; each has to end well
// within the limit.
func prompt(ts *testscript.TestScript, _ bool, args []string) {
	need(ts, args, 3, "prompt TIMES LIMIT COMMAND...")
	times, err := strconv.Atoi(args[0])
	ts.Check(err)
	limit, err := time.ParseDuration(args[1])
	ts.Check(err)
	var took []time.Duration
	for range times {
		cmd := exec.Command(args[2], args[3:]...)
		cmd.Env = append(os.Environ(), "CAPSULE_HOST="+ts.Getenv("CAPSULE_HOST"))
		began := time.Now()
		out, err := cmd.CombinedOutput()
		took = append(took, time.Since(began))
		if err != nil {
			ts.Fatalf("%q after %v: %v: %s", args[2:], took[len(took)-1], err, out)
		}
	}
	slices.Sort(took)
	median, worst := took[times/2], took[times-1]
	ts.Logf("%q: median %v, worst %v of %d", args[2:], median.Round(time.Millisecond), worst.Round(time.Millisecond), times)
	if worst > limit {
		ts.Fatalf("%q took %v, at most %v is prompt", args[2:], worst, limit)
	}
}
