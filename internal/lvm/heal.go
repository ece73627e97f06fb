package lvm

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"capsule/internal/dm"
)

// lvm makes a thin volume in three steps: it notes in the group's metadata what it
// will tell the pool, tells the pool to create the volume, and tells it the number
// of this transaction. Cut between the last two, lvm would do all of it again at
// every later change, fail since the volume is there, and ask for manual
// intervention: no volume can be made or removed any more.

// unblock makes lvm able to do that: it takes the volume that only the pool knows
// out of it again, when it's one that may go. It says whether there was one.
func unblock(ctx context.Context, may func(name string) bool) (bool, error) {
	out, err := command(ctx, "lvs", "--reportformat", "json", "-o", "lv_name,pool_lv,thin_id,transaction_id", Group)
	if err != nil {
		return false, err
	}
	c, err := dm.Open()
	if err != nil {
		return false, err
	}
	defer c.Close()
	pool, device, err := poolDevice(c)
	if errdefs.IsNotFound(err) { // not active yet: only the kernel knows how far it came
		if _, err := Activate(ctx); err != nil {
			return false, err
		}
		pool, device, err = poolDevice(c)
	}
	status, err := target(device, err)
	if err != nil {
		return false, fmt.Errorf("volume pool: %w", err)
	}
	name, id, err := half(out, status.Params)
	if err != nil || id == 0 || !may(name) {
		return false, err
	}
	return takeOut(ctx, c, pool, name, id, status.Params)
}

// takeOut deletes a volume that only the pool knows, if it's still half made once
// no command runs: process 1 has its own at a start, which may just finish it.
func takeOut(ctx context.Context, c *dm.Control, pool, name string, id int64, seen string) (bool, error) {
	free, err := alone(ctx)
	if err != nil {
		return false, err
	}
	defer free()
	now, err := target(c.Status(pool))
	if err != nil {
		return false, fmt.Errorf("volume pool: %w", err)
	}
	if transaction(now.Params) != transaction(seen) {
		return false, nil
	}
	if _, err := c.Status(deviceName(name)); !errdefs.IsNotFound(err) {
		return false, err // active: it's a whole one
	}
	return true, c.Message(pool, "delete "+strconv.FormatInt(id, 10))
}

// transaction is the last one in the pool's status.
func transaction(status string) string {
	first, _, _ := strings.Cut(status, " ")
	return first
}

// half picks the volume whose transaction lvm has begun, and the pool's status
// doesn't know; id is zero without one.
func half(lvs []byte, status string) (name string, id int64, err error) {
	var r report
	if err := json.Unmarshal(lvs, &r); err != nil {
		return "", 0, fmt.Errorf("read lvm's report: %w", err)
	}
	done := transaction(status)
	kernel, err := strconv.ParseInt(done, 10, 64)
	if err != nil || len(r.Report) != 1 {
		return "", 0, fmt.Errorf("transaction %q of the pool: %w", done, errdefs.ErrDataLoss)
	}
	begun := slices.ContainsFunc(r.Report[0].LV, func(row map[string]string) bool {
		return row["lv_name"] == Pool && row["transaction_id"] == strconv.FormatInt(kernel+1, 10)
	})
	for _, row := range r.Report[0].LV {
		if begun && row["pool_lv"] == Pool && row["transaction_id"] == done {
			if id, err = strconv.ParseInt(row["thin_id"], 10, 32); err != nil || id <= 0 {
				return "", 0, fmt.Errorf("number %q of volume %q: %w", row["thin_id"], row["lv_name"], errdefs.ErrDataLoss)
			}
			return row["lv_name"], id, nil
		}
	}
	return "", 0, nil
}
