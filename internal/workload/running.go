package workload

import (
	"context"
	"fmt"
)

// RunningInstance is one that runs now.
type RunningInstance struct {
	ID
	Driver Driver
}

// AllRunning gives the running instances by the name of their workload, the newest
// where one is being replaced. Those of a runtime that does not answer are
// missing, and the error says so.
func (l *Loop) AllRunning(ctx context.Context) (map[string]RunningInstance, error) {
	ctx, cancel := context.WithTimeout(ctx, listMax)
	defer cancel()
	var failed error
	running := map[string]RunningInstance{}
	for kind, lister := range l.listers {
		all, err := lister.list(ctx, l.fresh.now())
		if err != nil {
			failed = fmt.Errorf("list instances of kind %s: %w", kind, err)
		}
		for name, found := range all {
			for _, s := range found {
				if s.State == Running && s.Generation >= running[name].Generation {
					running[name] = RunningInstance{ID: s.ID, Driver: l.opts.Drivers[kind]}
				}
			}
		}
	}
	return running, failed
}
