//go:build machine

package machine

import (
	"os"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"capsule/internal/lab"
	"capsule/test/machine/faults"
)

const (
	// standMax is how long a machine may take until its process 1 stands still: it
	// restarts first, and is emulated.
	standMax = 10 * time.Minute
	// firmwareMax comes on top of the time until a reset: what the console shows of
	// one is the first line of the firmware, which an emulated machine reaches after
	// some seconds.
	firmwareMax = 10 * time.Second
)

// reset NAME LIMIT COMMAND…: runs a command that leads to a process 1 that stands
// still (test/machine/faults/capsuled), and waits until a watchdog has reset the
// machine, within LIMIT from then on by this host's clock.
func reset(ts *testscript.TestScript, _ bool, args []string) {
	need(ts, args, 3, "reset NAME LIMIT COMMAND...")
	m, err := lab.Attach("", args[0])
	ts.Check(err)
	limit, err := time.ParseDuration(args[1])
	ts.Check(err)
	before, err := os.Stat(m.ConsoleLog())
	ts.Check(err)
	ts.Check(ts.Exec(args[2], args[3:]...))
	var since time.Time
	for deadline := time.Now().Add(standMax); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		log, err := os.ReadFile(m.ConsoleLog())
		ts.Check(err)
		stood, again, err := faults.Standstill(log[before.Size():])
		ts.Check(err)
		if stood && since.IsZero() {
			since = time.Now()
			deadline = since.Add(limit + firmwareMax)
		}
		if again {
			ts.Logf("%s: its firmware ran %.1f s after process 1 stood still", args[0], time.Since(since).Seconds())
			return
		}
	}
	if since.IsZero() {
		ts.Fatalf("process 1 of %s never stood still\n%s", args[0], consoleTail(args[0]))
	}
	ts.Fatalf("%s was not reset within %v and %v for its firmware\n%s", args[0], limit, firmwareMax, consoleTail(args[0]))
}
