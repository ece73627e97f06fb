package main

import (
	"context"
	"fmt"
	"regexp"
	"time"

	"capsule/internal/lab"
)

const startMethod = `Seconds of the machine's own time, as under Boot, from the apply's stamp of the object to the start of the
program; 1 GiB, one processor, the image in the cache. Check is the look for user and program in the image,
create runc's create with the logger and, for the first container, the shim that all share, start runc's
start. The rest is the API, the store, the loop and the network.`

// Lines that the daemon logs for each start.
var (
	prepared = regexp.MustCompile(`msg="prepared workload" name=(\S+) .*check=(\S+) snapshot=(\S+)`)
	started  = regexp.MustCompile(`msg="started workload" name=(\S+) .*create=(\S+) start=(\S+)`)
)

const starts = 5

func (b *bench) start(ctx context.Context) error {
	m, err := b.up(ctx, lab.Options{Name: "start", MemoryBytes: 1024 * mib, CPUs: 1, Accel: "tcg", ICount: icount})
	if m != nil {
		defer b.discard(ctx, m)
	}
	if err != nil {
		return err
	}
	if err := b.push(m); err != nil {
		return err
	}
	head("Container", "apply → running", "check", "snapshot", "create", "start", "rest")
	for i := 1; i <= starts; i++ {
		name := fmt.Sprintf("c-%d", i)
		took, err := b.apply(m, name)
		if err != nil {
			return err
		}
		log, err := b.ctl(m, "capsule", "logs", "capsuled")
		if err != nil {
			return err
		}
		parts, err := split(log, name)
		if err != nil {
			return err
		}
		took += parts[len(parts)-1] // the stamp is from before runc's start
		cells, rest := []any{i, seconds(took)}, took
		for _, p := range parts {
			cells, rest = append(cells, seconds(p)), rest-p
		}
		row(append(cells, seconds(rest))...)
	}
	return nil
}

// split gives check, snapshot, create and start of a workload, in that order.
func split(log, name string) (parts []time.Duration, err error) {
	for _, line := range []*regexp.Regexp{prepared, started} {
		found := false
		for _, m := range line.FindAllStringSubmatch(log, -1) {
			if m[1] != name {
				continue
			}
			found = true
			for _, text := range m[2:] {
				d, err := time.ParseDuration(text)
				if err != nil {
					return nil, fmt.Errorf("log of the start of %q: %w", name, err)
				}
				parts = append(parts, d)
			}
			break
		}
		if !found {
			return nil, fmt.Errorf("the log has no line %s of workload %q", line, name)
		}
	}
	return parts, nil
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f", d.Seconds()) }
