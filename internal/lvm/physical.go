package lvm

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"capsule/internal/dm"
	"capsule/internal/run"
)

const (
	moveMax   = 30 * 24 * time.Hour // a large disk that fails takes days
	moveEvery = "5"                 // seconds between pvmove's own looks
	moveName  = Group + "-pvmove0"  // device mapper's name of what is being moved
)

// A Physical is a disk's part of the group. Sizes in bytes.
type Physical struct {
	ID          string // without dashes
	Device      string // "" while it isn't there
	SizeBytes   int64  // of the group
	FreeBytes   int64  // of that belong to no volume
	DeviceBytes int64  // of the device, which may have grown; 0 while it isn't there
	Missing     bool   // it isn't there, or wasn't when the group was changed
	Closed      bool   // nothing new is put on it
}

// UsedBytes belong to volumes.
func (p Physical) UsedBytes() int64 { return p.SizeBytes - p.FreeBytes }

// Physicals tells the parts of the group.
func Physicals(ctx context.Context) ([]Physical, error) {
	out, err := command(ctx, "pvs", "--reportformat", "json", "--units", "b", "--nosuffix",
		"-o", "pv_name,pv_uuid,pv_size,pv_free,dev_size,pv_missing,pv_allocatable,vg_name", "-S", "vg_name="+Group)
	if err != nil {
		return nil, err
	}
	return parsePhysicals(out)
}

func parsePhysicals(out []byte) ([]Physical, error) {
	var r report
	if err := json.Unmarshal(out, &r); err != nil {
		return nil, fmt.Errorf("read lvm's report of disks: %w", err)
	}
	if len(r.Report) != 1 {
		return nil, fmt.Errorf("%d reports of lvm: %w", len(r.Report), errdefs.ErrDataLoss)
	}
	var all []Physical
	for _, row := range r.Report[0].PV {
		if row["vg_name"] != Group {
			continue
		}
		p := Physical{ID: plain(row["pv_uuid"]), Device: row["pv_name"], Missing: row["pv_missing"] != "", Closed: row["pv_allocatable"] == ""}
		for field, into := range map[string]*int64{"pv_size": &p.SizeBytes, "pv_free": &p.FreeBytes, "dev_size": &p.DeviceBytes} {
			n, err := strconv.ParseInt(row[field], 10, 64)
			if err != nil || n < 0 {
				return nil, fmt.Errorf("%s %q of disk %q: %w", field, row[field], row["pv_name"], errdefs.ErrDataLoss)
			}
			*into = n
		}
		if !idForm.MatchString(p.ID) || p.FreeBytes > p.SizeBytes {
			return nil, fmt.Errorf("lvm tells of disk %q with id %q, %d of %d bytes free: %w", p.Device, p.ID, p.FreeBytes, p.SizeBytes, errdefs.ErrDataLoss)
		}
		if !strings.HasPrefix(p.Device, "/dev/") { // "[unknown]"
			p.Device, p.Missing, p.DeviceBytes = "", true, 0
		}
		all = append(all, p)
	}
	return all, nil
}

// whole is an error while a disk of the group is missing. lvm then refuses all changes
// but the removal of volumes, after which it would take that disk for lost.
func whole(ctx context.Context) error {
	out, err := command(ctx, "vgs", "--reportformat", "json", "-o", "vg_missing_pv_count", Group)
	if err != nil {
		return err
	}
	var r report
	if err := json.Unmarshal(out, &r); err != nil || len(r.Report) != 1 || len(r.Report[0].VG) != 1 {
		return fmt.Errorf("read lvm's report: %w", errors.Join(err, errdefs.ErrDataLoss))
	}
	if n := r.Report[0].VG[0]["vg_missing_pv_count"]; n != "0" {
		return fmt.Errorf("%s disks of volume group %q are missing: %w", n, Group, errdefs.ErrUnavailable)
	}
	return nil
}

// Restore has lvm use a device again that it has noted as missing, and that is there.
func Restore(ctx context.Context, device string) error {
	_, err := command(ctx, "vgextend", "-y", "--restoremissing", Group, device)
	return err
}

// NewID is an id that no physical volume has, without dashes.
func NewID() string {
	return (rand.Text() + rand.Text())[:idLen] // letters and digits
}

// dashed is an id as lvm's commands take it.
func dashed(id string) string {
	var parts []string
	for _, n := range []int{6, 4, 4, 4, 4, 4, 6} {
		parts = append(parts, id[:n])
		id = id[n:]
	}
	return strings.Join(parts, "-")
}

// Join makes a device a part of the group, under an id of NewID. Whatever is on it is
// lost. The device must be among those of Setup, and not be a part of the group; cut
// before its end it isn't one, and can be joined again.
func Join(ctx context.Context, device, id string) error {
	if len(id) != idLen {
		return fmt.Errorf("id %q of a physical volume: %w", id, errdefs.ErrInvalidArgument)
	}
	if _, err := command(ctx, "pvcreate", "-y", "-ff", "--zero", "y", "--norestorefile", "--uuid", dashed(id), device); err != nil {
		return err
	}
	_, err := command(ctx, "vgextend", "-y", Group, device)
	return err
}

// Close has nothing new put on a device; open is its reverse. To say so twice is no error.
func Close(ctx context.Context, device string, open bool) error {
	allow := "n"
	if open {
		allow = "y"
	}
	_, err := command(ctx, "pvchange", "-y", "-x", allow, device)
	return err
}

// refreshAll has all volumes run by what the group's metadata says.
var refreshAll = []string{"vgchange", "-y", "--refresh", Group}

// ofMove tells a hidden volume of what is being moved.
func ofMove(volume string) bool { return strings.HasPrefix(volume, "pvmove") }

// Moving tells whether something is being moved, or was when the machine went down.
func Moving(ctx context.Context) (bool, error) {
	out, err := command(ctx, "lvs", "-a", "--reportformat", "json", "-o", "lv_name", Group)
	if err != nil {
		return false, err
	}
	return parseMoving(out)
}

func parseMoving(lvs []byte) (bool, error) {
	var r report
	if err := json.Unmarshal(lvs, &r); err != nil || len(r.Report) != 1 {
		return false, fmt.Errorf("read lvm's report of volumes: %w", errors.Join(err, errdefs.ErrDataLoss))
	}
	return slices.ContainsFunc(r.Report[0].LV, func(row map[string]string) bool {
		return ofMove(strings.Trim(row["lv_name"], "[]"))
	}), nil
}

// Move moves all that is on one device of the group to another one, while it is used,
// or goes on with that: what is moved is kept through any cut. Other commands run
// meanwhile. When ctx ends, moving rests, at a moment when nothing is suspended.
func Move(ctx context.Context, from, to string) error {
	running, kill := context.WithCancel(context.WithoutCancel(ctx))
	defer kill()
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-ended:
		case <-ctx.Done():
			if unlock, err := lockGroup(running, filepath.Join(lockDir, "V_"+Group)); err == nil {
				defer unlock()
			}
			kill()
		}
	}()
	// What a killed command left may write past the copy that is being made.
	under, err := Moving(ctx)
	if err == nil && under {
		_, err = command(ctx, refreshAll...)
	}
	if err != nil {
		return err
	}
	_, err = run.Output(running, moveMax, "lvm", "pvmove", "-y", "-i", moveEvery, from, to)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// Unmove ends moving: what was moved stays where it is now, and the rest where it was.
func Unmove(ctx context.Context) error {
	_, err := command(ctx, "pvmove", "-y", "--abort")
	return err
}

// Reduce takes a device on which nothing is left out of the group.
func Reduce(ctx context.Context, device string) error {
	_, err := command(ctx, "vgreduce", "-y", Group, device)
	return err
}

// Forget takes lvm's label off a device that belongs to no group any more.
func Forget(ctx context.Context, device string) error {
	_, err := command(ctx, "pvremove", "-y", device)
	return err
}

// Moved says how much of what is being moved to a device is there, in bytes; NotFound
// when nothing is moved. The kernel is asked, which takes milliseconds.
func Moved(to string) (done, total int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(to, &st); err != nil {
		return 0, 0, &os.PathError{Op: "stat", Path: to, Err: err}
	}
	c, err := dm.Open()
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	table, err := c.Table(moveName)
	if err != nil {
		return 0, 0, err
	}
	status, err := c.Status(moveName)
	if err != nil {
		return 0, 0, err
	}
	return moved(table.Targets, status.Targets, fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
}

// moved reads the table and the status of what is being moved. Parts that are still
// where they were, or moved already, are linear; the one under way is a mirror, whose
// status tells of the regions that are equal (dm-mirror's and dm-linear's in the
// kernel's drivers/md).
func moved(table, status []dm.Target, to string) (done, total int64, err error) {
	if len(table) != len(status) {
		return 0, 0, fmt.Errorf("%d parts, and the state of %d: %w", len(table), len(status), errdefs.ErrUnavailable)
	}
	for i, t := range table {
		bytes := int64(t.Sectors) * sectorBytes
		total += bytes
		switch t.Kind {
		case "linear":
			if device, _, _ := strings.Cut(t.Params, " "); device == to {
				done += bytes
			}
		case "mirror":
			same, regions, err := mirrored(status[i].Params)
			if err != nil {
				return 0, 0, err
			}
			done += int64(float64(bytes) * float64(same) / float64(regions))
		}
	}
	return done, total, nil
}

// mirrored reads "2 8:0 8:16 17/400 1 AA …".
func mirrored(status string) (same, regions int64, err error) {
	f := strings.Fields(status)
	bad := fmt.Errorf("status %q of a mirror: %w", status, errdefs.ErrDataLoss)
	if len(f) == 0 {
		return 0, 0, bad
	}
	n, err := strconv.ParseUint(f[0], 10, 8)
	if err != nil || int(n)+1 >= len(f) {
		return 0, 0, bad
	}
	if same, regions, err = fraction(f[n+1], 1); err != nil || regions == 0 {
		return 0, 0, bad
	}
	return same, regions, nil
}
