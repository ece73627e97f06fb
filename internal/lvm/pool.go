package lvm

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"capsule/internal/dm"
)

// Device mapper's names: dashes within a name are doubled. The pool itself is a
// layer under the volume of its name.
func deviceName(volume string) string { return Group + "-" + strings.ReplaceAll(volume, "-", "--") }

var poolName = deviceName(Pool) + "-tpool"

const (
	sectorBytes        = 512
	metadataBlockBytes = 4 << 10 // THIN_METADATA_BLOCK_SIZE is 8 sectors
)

// Modes of a pool. A pool that isn't ModeWrite needs help.
const (
	ModeWrite    = "rw"
	ModeFull     = "out_of_data_space" // what needs a new chunk gets an error
	ModeReadOnly = "ro"                // its metadata is full or damaged
	ModeFail     = "Fail"              // nothing can be read
)

// A PoolState is how full the pool is, in bytes, and how it fares. The figures of
// one that failed are zero.
type PoolState struct {
	DataUsed, DataSize, MetadataUsed, MetadataSize int64

	Mode       string
	NeedsCheck bool // its metadata is checked at the next activation
}

// ReadPool asks the kernel, which takes milliseconds.
func ReadPool() (PoolState, error) {
	c, err := dm.Open()
	if err != nil {
		return PoolState{}, err
	}
	defer c.Close()
	return readPool(c)
}

func readPool(c *dm.Control) (PoolState, error) {
	name, _, err := poolDevice(c)
	if err != nil {
		return PoolState{}, fmt.Errorf("volume pool: %w", err)
	}
	table, err := target(c.Table(name))
	if err != nil {
		return PoolState{}, fmt.Errorf("volume pool: %w", err)
	}
	status, err := target(c.Status(name))
	if err != nil {
		return PoolState{}, fmt.Errorf("volume pool: %w", err)
	}
	return parsePool(table.Params, status.Params)
}

// poolDevice finds the pool: lvm makes the layer only with the first volume.
func poolDevice(c *dm.Control) (name string, d dm.Device, err error) {
	name = poolName
	d, err = c.Status(name)
	if errdefs.IsNotFound(err) {
		name = deviceName(Pool)
		d, err = c.Status(name)
	}
	return name, d, err
}

// target is the only one of a device.
func target(d dm.Device, err error) (dm.Target, error) {
	if err != nil {
		return dm.Target{}, err
	}
	if len(d.Targets) != 1 {
		return dm.Target{}, fmt.Errorf("%d targets, want one: %w", len(d.Targets), errdefs.ErrDataLoss)
	}
	return d.Targets[0], nil
}

// parsePool reads a thin-pool's table and its status line
// (Documentation/admin-guide/device-mapper/thin-provisioning.rst of the kernel).
func parsePool(table, status string) (PoolState, error) {
	t := strings.Fields(table) // metadata device, data device, chunk, low water mark, ...
	s := strings.Fields(status)
	if len(s) == 1 && (s[0] == ModeFail || s[0] == "Error") {
		return PoolState{Mode: ModeFail, NeedsCheck: true}, nil
	}
	const fields = 8 // transaction, metadata, data, held root, mode, discards, when full, check
	if len(t) < 4 || len(s) < fields {
		return PoolState{}, fmt.Errorf("status %q of table %q: %w", status, table, errdefs.ErrDataLoss)
	}
	chunk, err := strconv.ParseInt(t[2], 10, 32)
	if err != nil || chunk <= 0 {
		return PoolState{}, fmt.Errorf("chunks of %q sectors: %w", t[2], errdefs.ErrDataLoss)
	}
	p := PoolState{Mode: s[4], NeedsCheck: s[7] == "needs_check"}
	var errs [2]error
	p.MetadataUsed, p.MetadataSize, errs[0] = fraction(s[1], metadataBlockBytes)
	p.DataUsed, p.DataSize, errs[1] = fraction(s[2], chunk*sectorBytes)
	return p, errors.Join(errs[:]...)
}

// fraction reads used/total, counted in units.
func fraction(text string, unit int64) (used, total int64, err error) {
	a, b, _ := strings.Cut(text, "/")
	used, err1 := strconv.ParseInt(a, 10, 64)
	total, err2 := strconv.ParseInt(b, 10, 64)
	const most = 1 << 62
	if err1 != nil || err2 != nil || used < 0 || used > total || total > most/unit {
		return 0, 0, fmt.Errorf("use of %q: %w", text, errdefs.ErrDataLoss)
	}
	return used * unit, total * unit, nil
}

// MappedBytes is how much of the pool an active volume uses; what it shares with a
// snapshot counts for both.
func MappedBytes(name string) (int64, error) {
	t, err := activeTarget(name)
	if err != nil {
		return 0, err
	}
	n, err := parseMapped(t.Params)
	if err != nil {
		return 0, fmt.Errorf("volume %q: %w", name, err)
	}
	return n, nil
}

// parseMapped reads a thin volume's status line: mapped sectors, highest mapped one.
func parseMapped(status string) (int64, error) {
	first, _, _ := strings.Cut(status, " ")
	n, err := strconv.ParseInt(first, 10, 64)
	if err != nil || n < 0 || n > 1<<53 {
		return 0, fmt.Errorf("status %q: %w", status, errdefs.ErrUnavailable) // "Fail", "-" of a pool that fails
	}
	return n * sectorBytes, nil
}

func activeTarget(name string) (dm.Target, error) {
	c, err := dm.Open()
	if err != nil {
		return dm.Target{}, err
	}
	defer c.Close()
	t, err := target(c.Status(deviceName(name)))
	if err != nil {
		return dm.Target{}, fmt.Errorf("volume %q: %w", name, err)
	}
	return t, nil
}

// rewatch is how long WatchPool rests when there's no device mapper to ask.
const rewatch = 30 * time.Second

// WatchPool sends after the pool passed its low water mark, filled up, or changed
// its mode for another reason; several may come as one. It's a hint to look. The
// channel is closed when ctx ends.
func WatchPool(ctx context.Context) <-chan struct{} {
	events := make(chan struct{}, 1)
	go func() {
		defer close(events)
		var seen uint32
		known := false
		for ctx.Err() == nil {
			_ = dm.Watch(ctx, func(c *dm.Control) error {
				d, active := findPool(c)
				if active && known && d.Events != seen {
					select {
					case events <- struct{}{}:
					default:
					}
				}
				seen, known = d.Events, active
				return nil
			})
			select {
			case <-ctx.Done():
			case <-time.After(rewatch):
			}
		}
	}()
	return events
}

func findPool(c *dm.Control) (d dm.Device, active bool) {
	_, d, err := poolDevice(c)
	return d, err == nil
}

// ExtendMetadata makes the pool's metadata larger, in use; lvm's spare of it grows
// alike.
func ExtendMetadata(ctx context.Context, bytes int64) error {
	_, err := command(ctx, "lvextend", "-y", "--poolmetadatasize", "+"+strconv.FormatInt(RoundUp(bytes), 10)+"b", Group+"/"+Pool)
	return err
}

// Free is how many bytes of the group belong to no volume.
func Free(ctx context.Context) (int64, error) {
	out, err := readGroup(ctx)
	if err != nil {
		return 0, err
	}
	s, err := parseGroup(out)
	return int64(s.free), err
}
