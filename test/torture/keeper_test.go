//go:build linux && machine

package torture

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"capsule/internal/await"
	"capsule/internal/imagetest/ledger"
	"capsule/test/torture/plan"
)

const (
	// appendEach leaves an emulated processor something.
	appendEach = 100 * time.Millisecond
	appendMax  = 10 * time.Second
	checkMax   = time.Minute
)

// keeper is a workload's ledger, as the campaign knows it.
type keeper struct {
	name, kind string
	append     ledger.Client
	check      ledger.Client

	mu      sync.Mutex
	witness ledger.Witness
	checks  int
	lost    []string
	// begun is when the last acknowledged append began, ended when it was acknowledged.
	begun, ended time.Time
	silence      time.Duration // the longest since it was last asked for
}

func newKeeper(b *box, name, kind string, port int) *keeper {
	url := fmt.Sprintf("http://capsule:%d", port)
	return &keeper{
		name: name, kind: kind, ended: time.Now(),
		append: ledger.Client{URL: url, HTTP: b.client(appendMax)},
		check:  ledger.Client{URL: url, HTTP: b.client(b.allowed(checkMax))},
	}
}

// run has records written until the context ends.
func (k *keeper) run(ctx context.Context) {
	for ctx.Err() == nil {
		begun := time.Now()
		if e, err := k.append.Append(ctx); err == nil {
			k.told(e, begun)
		}
		_ = await.Pause(ctx, appendEach) // the loop sees its end
	}
}

func (k *keeper) told(e ledger.Entry, begun time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.witness.Told(e); err != nil {
		k.lost = append(k.lost, err.Error())
		k.witness.Last = e // it goes on from here: each loss is told once
	}
	k.silence = max(k.silence, time.Since(k.ended))
	k.begun, k.ended = begun, time.Now()
}

// grown tells whether a record was asked for since then, and acknowledged.
func (k *keeper) grown(since time.Time) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.begun.After(since) {
		return nil
	}
	return fmt.Errorf("ledger %q does not grow: its last acknowledged record is %d, %.0f s ago", k.name, k.witness.Last.Number, time.Since(k.ended).Seconds())
}

// begins a time of which quiet gives the longest silence, and gives how often the
// workload was started.
func (k *keeper) begins() (starts int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.silence = 0
	return k.witness.Starts
}

func (k *keeper) quiet() (silence time.Duration, starts int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.silence, k.witness.Starts
}

// errLost is in the error of a ledger that is not as it was acknowledged.
var errLost = errors.New("an acknowledged write is lost")

// verify has the ledger read from its disk, and compares; loss tells what is lost. An
// error is that it could not be read.
func (k *keeper) verify(ctx context.Context) error {
	k.mu.Lock()
	acked := k.witness.Last
	k.mu.Unlock()
	s, err := k.check.Check(ctx, acked.Number)
	if err != nil {
		return fmt.Errorf("read ledger %q: %w", k.name, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.checks++
	if lost := ledger.Verify(acked, s); lost != nil {
		k.lost = append(k.lost, lost.Error())
	}
	return nil
}

// loss gives what was lost so far.
func (k *keeper) loss() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.lost) == 0 {
		return nil
	}
	return fmt.Errorf("ledger %q: %s: %w", k.name, k.lost[len(k.lost)-1], errLost)
}

func (k *keeper) summary() plan.Ledger {
	k.mu.Lock()
	defer k.mu.Unlock()
	return plan.Ledger{Name: k.name, Kind: k.kind, Acked: k.witness.Acked, Starts: k.witness.Starts, Checks: k.checks, Lost: k.lost}
}
