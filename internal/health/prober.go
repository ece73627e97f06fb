package health

import (
	"context"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	v1 "capsule/api/capsule/v1"
)

const (
	// probesMax is how many checks are made at a time: each may start a process.
	probesMax = 16
	// resumeMax spreads the first checks of what ran before, after a start of the
	// daemon.
	resumeMax = 5 * time.Second
	// textEvery is between two tellings of a text that alone changed: each is
	// written to disk.
	textEvery = time.Minute
)

// A Target is a run of a workload that is to be checked. Run tells it from others
// of the same workload.
type Target struct {
	Run     string
	Check   Check
	Place   Place
	Started time.Time
	// Before is what is known of this very run from a former daemon.
	Before v1.HealthState
}

// A Verdict is what is known of a run.
type Verdict struct {
	Run   string
	State v1.HealthState
	Text  string // of the last check that is worth telling
}

// Prober makes the checks of all workloads, one at a time for each.
type Prober struct {
	tell  func(workload string) // of a new verdict
	slots chan struct{}

	mu   sync.Mutex
	runs map[string]*run // by workload
	done bool
	all  sync.WaitGroup
}

// run is a target that is being checked.
type run struct {
	target Target
	end    context.CancelFunc

	verdict Verdict // guarded by Prober.mu
	judged  bool
}

// NewProber makes a prober that calls tell, which must not wait, when there is a
// new verdict on a workload.
func NewProber(tell func(workload string)) *Prober {
	return &Prober{tell: tell, slots: make(chan struct{}, probesMax), runs: map[string]*run{}}
}

// Watch has a run of a workload checked, in place of any before it. It goes on
// with one that it checks already.
func (p *Prober) Watch(workload string, t Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := p.runs[workload]; p.done || now != nil && now.target.Run == t.Run {
		return
	}
	p.drop(workload)
	ctx, cancel := context.WithCancel(context.Background())
	r := &run{target: t, end: cancel}
	p.runs[workload] = r
	p.all.Go(func() { p.follow(ctx, workload, r) })
}

// Drop ends the checks of a workload.
func (p *Prober) Drop(workload string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop(workload)
}

func (p *Prober) drop(workload string) {
	if r := p.runs[workload]; r != nil {
		r.end()
		delete(p.runs, workload)
	}
}

// Verdict is the newest on a workload; ok is false before the first.
func (p *Prober) Verdict(workload string) (v Verdict, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r := p.runs[workload]; r != nil && r.judged {
		return r.verdict, true
	}
	return Verdict{}, false
}

// Close ends all checks, and waits until nothing of them is left.
func (p *Prober) Close() {
	p.mu.Lock()
	p.done = true
	for workload := range maps.Clone(p.runs) {
		p.drop(workload)
	}
	p.mu.Unlock()
	p.all.Wait()
}

// follow checks a run until it is dropped.
func (p *Prober) follow(ctx context.Context, workload string, r *run) {
	t := r.target
	now := time.Now()
	// The clock may be set while it runs: its age is taken once.
	started := now.Add(-max(now.Sub(t.Started), 0))
	progress := Progress{State: t.Before}
	wait := jitter(progress.Next(t.Check), rand.Float64())
	if t.Before == v1.HealthState_HEALTH_STATE_HEALTHY || t.Before == v1.HealthState_HEALTH_STATE_UNHEALTHY {
		wait = time.Duration(rand.Float64() * float64(min(t.Check.Interval, resumeMax)))
	}
	told := now.Add(-textEvery)
	for pause(ctx, wait) && p.take(ctx) {
		result := Probe(ctx, t.Check, t.Place)
		<-p.slots
		if ctx.Err() != nil {
			return
		}
		before := progress
		progress = progress.After(t.Check, started, time.Now(), result)
		if !result.Void && p.judge(workload, r, progress, before, result, time.Since(told) >= textEvery) {
			told = time.Now()
			p.tell(workload)
		}
		wait = jitter(progress.Next(t.Check), rand.Float64())
	}
}

// judge keeps a verdict, and tells whether it is worth telling.
func (p *Prober) judge(workload string, r *run, now, before Progress, result Result, late bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.runs[workload] != r {
		return false
	}
	v := Verdict{Run: r.target.Run, State: now.State, Text: result.Text}
	first := !r.judged
	news := first || now.State != before.State || now.Failures != before.Failures
	if !news && (result.OK || v.Text == r.verdict.Text || !late) {
		return false
	}
	r.judged, r.verdict = true, v
	return true
}

// take waits for a slot.
func (p *Prober) take(ctx context.Context) bool {
	select {
	case p.slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// pause waits; false when ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
