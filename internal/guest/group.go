package guest

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"capsule/internal/cgroup"
	"capsule/internal/process"
)

// newGroup makes the cgroup of the payload and its commands.
func newGroup(dir string) (cgroup.Group, error) {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("make the payload's cgroup: %w", err)
	}
	return cgroup.Group(dir), nil
}

// limitGroup sets the limits; no memory is none. All processes go together when the
// memory is used up: half of a workload is no use.
func limitGroup(g cgroup.Group, memory, pids int64) error {
	if pids <= 0 {
		pids = process.PIDsDefault
	}
	values := [][2]string{{"pids.max", strconv.FormatInt(pids, 10)}, {"memory.oom.group", "1"}}
	if memory > 0 {
		values = append(values, [2]string{"memory.max", strconv.FormatInt(memory, 10)}, [2]string{"memory.swap.max", "0"})
	}
	for _, v := range values {
		err := g.Set(v[0], v[1])
		if errors.Is(err, os.ErrNotExist) && v[0] == "memory.swap.max" {
			continue // a kernel without swap
		}
		if err != nil {
			return fmt.Errorf("limit the payload: %w", err)
		}
	}
	return nil
}
