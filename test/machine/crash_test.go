//go:build machine

package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// load is what a crash must not disturb: a published port that's fetched all
// the time. Programs are run in the workload meanwhile, which may fail while
// nobody is there to run them.
type load struct {
	fetched, executed atomic.Int64
	lost              atomic.Pointer[string]
}

// execEach is after how many crashes a program must have run to its end.
const execEach = 5

// crash TIMES URL WORKLOAD: kills capsuled so many times under load, each time
// as soon as it answers again. No fetch may fail.
func crash(ts *testscript.TestScript, _ bool, args []string) {
	need(ts, args, 3, "crash TIMES URL WORKLOAD")
	times, err := strconv.Atoi(args[0])
	ts.Check(err)
	host := ts.Getenv("CAPSULE_HOST")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var l load
	var wg sync.WaitGroup
	wg.Go(func() { l.fetch(ctx, args[1]) })
	wg.Go(func() { l.exec(ctx, host, args[2]) })
	began := time.Now()
	starts, err := daemonStarts(ctx, host, 0)
	for i := 1; i <= times && err == nil; i++ {
		if out, failed := capsulectl(ctx, host, "capsule", "restart-service", "capsuled"); failed != nil {
			err = fmt.Errorf("kill capsuled: %w: %s", failed, out)
			break
		}
		starts, err = daemonStarts(ctx, host, starts+1)
		if i%execEach == 0 && err == nil {
			err = l.executes(ctx)
		}
	}
	cancel()
	wg.Wait()
	ts.Check(err)
	ts.Logf("%d crashes in %.1f s; %d fetches, %d programs run meanwhile", times, time.Since(began).Seconds(), l.fetched.Load(), l.executed.Load())
	if lost := l.lost.Load(); lost != nil {
		ts.Fatalf("a fetch failed: %s", *lost)
	}
	if l.fetched.Load() < int64(times) {
		ts.Fatalf("too few fetches to tell")
	}
}

func (l *load) fetch(ctx context.Context, url string) {
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	for ctx.Err() == nil {
		if _, err := get(client, url); err != nil {
			text := err.Error()
			l.lost.CompareAndSwap(nil, &text)
			return
		}
		l.fetched.Add(1)
		wait(ctx, 50*time.Millisecond) // leaves the emulated processors something
	}
}

func (l *load) exec(ctx context.Context, host, name string) {
	for ctx.Err() == nil {
		if _, err := capsulectl(ctx, host, "workload", "exec", name, "--", "/payload", "print", "entered"); err == nil {
			l.executed.Add(1)
		}
		wait(ctx, 200*time.Millisecond)
	}
}

// executes waits until one more program ran.
func (l *load) executes(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for before := l.executed.Load(); l.executed.Load() == before; wait(ctx, 100*time.Millisecond) {
		if ctx.Err() != nil {
			return fmt.Errorf("no program can be run in a workload any more")
		}
	}
	return nil
}

// daemonStarts waits until capsuled answers and was started so many times.
func daemonStarts(ctx context.Context, host string, least int) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for {
		var info struct {
			DaemonStarts int `json:"daemonStarts"`
		}
		out, err := capsulectl(ctx, host, "capsule", "info", "-o", "json")
		if err == nil {
			err = json.Unmarshal(out, &info)
		}
		if err == nil && info.DaemonStarts >= least {
			return info.DaemonStarts, nil
		}
		if ctx.Err() != nil {
			return 0, fmt.Errorf("capsuled did not come back: %d starts, want %d: %w\n%s", info.DaemonStarts, least, errors.Join(err, ctx.Err()), out)
		}
		wait(ctx, 100*time.Millisecond)
	}
}

func capsulectl(ctx context.Context, host string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "capsulectl", args...)
	cmd.Env = append(os.Environ(), "CAPSULE_HOST="+host)
	return cmd.CombinedOutput()
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
