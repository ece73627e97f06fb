package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	capsulev1 "capsule/api/capsule/v1"
)

// load reads at a fixed rate while containers are changed, and tells how long the
// answers took.
func (f *fleet) load(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changing, changed := context.WithTimeout(ctx, loadTime)
	defer changed()
	var changes int
	var failed error
	done := make(chan struct{})
	go func() {
		defer close(done)
		changes, failed = f.change(changing)
	}()
	cpu, err := f.daemon.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	gets, lists, err := f.read(ctx, loadTime)
	took := time.Since(began)
	<-done
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	after, err1 := f.daemon.cpu()
	memory, err2 := f.daemon.memory()
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	all := slices.Concat(gets, lists)
	row("reads answered, each second", fmt.Sprintf("%.0f", float64(len(all))/took.Seconds()), "1,000")
	row("containers replaced, each second", fmt.Sprintf("%.1f", float64(changes)/loadTime.Seconds()), "")
	row("**99 % of reads answered within**", milliseconds(quantile(all, 0.99)), "≤ 20 ms")
	row("half of them within", milliseconds(quantile(all, 0.5)), "")
	row("99 % of those that list all 200", milliseconds(quantile(lists, 0.99)), "")
	row("the slowest of all", milliseconds(quantile(all, 1)), "")
	row("capsuled meanwhile, of a processor", fmt.Sprintf("%.0f %%", 100*(after-cpu).Seconds()/took.Seconds()), "")
	row("memory of capsuled after it", fmt.Sprintf("%.1f MiB", memory), "")
	return nil
}

// change applies new generations of the running containers, each once the one before
// runs, until ctx ends.
func (f *fleet) change(ctx context.Context) (n int, err error) {
	for ; ctx.Err() == nil; n++ {
		i := n % scaleRunning
		_, err := f.objects(n).Apply(ctx, &capsulev1.ApplyRequest{Objects: []*capsulev1.Object{declared(i, 1+n/scaleRunning)}})
		if err == nil {
			err = f.await(ctx, capsulev1.Phase_PHASE_RUNNING, i, i+1)
		}
		if err != nil && ctx.Err() == nil {
			return n, fmt.Errorf("change under load: %w", err)
		}
	}
	return n, nil
}

// read asks at fixed times, and gives how long after them the answers came.
func (f *fleet) read(ctx context.Context, d time.Duration) (gets, lists []time.Duration, err error) {
	var mu sync.Mutex
	var all sync.WaitGroup
	began := time.Now()
	for i := 0; i < int(d/readsEvery); i++ {
		due := began.Add(time.Duration(i) * readsEvery)
		if wait := time.Until(due); wait > 0 {
			<-time.After(wait)
		}
		all.Go(func() {
			var e error
			if i%listsOf == 0 {
				_, e = f.objects(i).List(ctx, &capsulev1.ListRequest{})
			} else {
				_, e = f.objects(i).Get(ctx, &capsulev1.GetRequest{Name: nameOf(i % (scaleRunning + scaleStopped))})
			}
			took := time.Since(due)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case e != nil:
				err = e
			case i%listsOf == 0:
				lists = append(lists, took)
			default:
				gets = append(gets, took)
			}
		})
	}
	all.Wait()
	return gets, lists, err
}

// quantile of times, which it sorts; 1 is the longest.
func quantile(times []time.Duration, q float64) time.Duration {
	if len(times) == 0 {
		return 0
	}
	slices.Sort(times)
	return times[min(int(q*float64(len(times))), len(times)-1)]
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}
