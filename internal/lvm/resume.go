package lvm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"capsule/internal/dm"
)

// lockAgain is between two tries to take the lock of lvm's commands.
const lockAgain = 50 * time.Millisecond

// Resume lets volumes run on that a killed lvm command left suspended, as it is
// killed with the daemon that started it: whoever writes to them hangs until then.
// With nothing suspended it takes milliseconds.
func Resume(ctx context.Context) error {
	resumed, err := resume(ctx)
	if len(resumed) == 0 {
		return err
	}
	// They run by the table of before the command; the group's metadata may be newer.
	refresh := onVolumes(resumed, "lvchange", "-y", "--refresh")
	if slices.ContainsFunc(resumed, ofMove) { // hidden: lvm refreshes it with those that lie on it
		refresh = refreshAll
	}
	_, refreshErr := command(ctx, refresh...)
	if refreshErr == nil {
		return err
	}
	// A creation that was cut gets in the way: lvm goes on with it at any change. What
	// it makes was never acknowledged, and is removed with the rest of it.
	unblocked, unblockErr := unblock(ctx, func(string) bool { return true })
	if !unblocked {
		return errors.Join(err, refreshErr, unblockErr)
	}
	_, refreshErr = command(ctx, refresh...)
	return errors.Join(err, refreshErr)
}

// resume does so while no command runs, of whatever process: in the middle of one,
// devices are suspended for a reason. It tells which volumes they were.
func resume(ctx context.Context) (resumed []string, err error) {
	free, err := alone(ctx)
	if err != nil {
		return nil, err
	}
	defer free()
	c, err := dm.Open()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stopped, err := suspended(c)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, device := range stopped {
		// With the table it had: whether another one counts, its group knows.
		errs = append(errs, c.Unload(device), c.Resume(device))
		if name := volumeName(device); !slices.Contains(resumed, name) {
			resumed = append(resumed, name)
		}
	}
	return resumed, errors.Join(errs...)
}

// suspended lists the group's suspended devices, what lies below others first: a
// pool that starts writes to its metadata.
func suspended(c *dm.Control) ([]string, error) {
	all, err := c.Names()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, name := range all {
		if !strings.HasPrefix(name, deviceName("")) {
			continue
		}
		if d, err := c.Status(name); err == nil && d.Suspended && len(d.Targets) > 0 {
			out = append(out, name)
		}
	}
	slices.SortStableFunc(out, func(a, b string) int { return cmp.Compare(level(a), level(b)) })
	return out, nil
}

// poolParts are the devices that make up the pool, from below.
var poolParts = []string{deviceName(Pool) + "_tdata", deviceName(Pool) + "_tmeta", poolName}

func level(device string) int {
	if i := slices.Index(poolParts, device); i >= 0 {
		return i
	}
	return len(poolParts)
}

// volumeName is deviceName's reverse; the parts of the pool are the pool's.
func volumeName(device string) string {
	if slices.Contains(poolParts, device) {
		return Pool
	}
	return strings.ReplaceAll(strings.TrimPrefix(device, deviceName("")), "--", "-")
}

// alone waits until no lvm command runs, of whatever process, and lets none begin.
func alone(ctx context.Context) (free func(), err error) {
	next, err := takeTurn(ctx)
	if err != nil {
		return nil, err
	}
	unlock, err := lockGroup(ctx, filepath.Join(lockDir, "V_"+Group))
	if err != nil {
		next()
		return nil, err
	}
	return func() { unlock(); next() }, nil
}

// lockGroup takes the lock that lvm's commands take. They remove its file when they
// let go, so it may have become another one's.
func lockGroup(ctx context.Context, path string) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, commandMax)
	defer cancel()
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o700)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && sameFile(f, path) {
			return func() { f.Close() }, nil
		}
		f.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, &os.PathError{Op: "flock", Path: path, Err: err}
		}
		select {
		case <-time.After(lockAgain):
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for a command on volume group %q: %w", Group, ctx.Err())
		}
	}
}

func sameFile(f *os.File, path string) bool {
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(mine, there)
}
