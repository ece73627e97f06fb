package microvm

import "context"

// hintsMax is how many names may wait for a reader; more are dropped, since they
// are hints and the next full pass sees all.
const hintsMax = 256

// Events sends the names of workloads that ended.
func (d *Driver) Events(ctx context.Context) <-chan string {
	names := make(chan string, hintsMax)
	d.mu.Lock()
	d.hints[names] = true
	d.mu.Unlock()
	context.AfterFunc(ctx, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.hints, names)
		close(names)
	})
	return names
}

func (d *Driver) hint(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for names := range d.hints {
		select {
		case names <- name:
		default:
		}
	}
}
