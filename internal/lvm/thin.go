package lvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// ExtentBytes is the unit of sizes in the group.
const ExtentBytes = 4 << 20

// RoundUp is the least size in extents that holds so many bytes.
func RoundUp(sizeBytes int64) int64 {
	return (sizeBytes + ExtentBytes - 1) / ExtentBytes * ExtentBytes
}

// Device is the block device of an active volume.
func Device(name string) string { return "/dev/" + Group + "/" + name }

// A Thin is a thin volume of the pool. One that isn't active is a snapshot, was
// closed by SetActive, or is the rest of a creation that was cut.
type Thin struct {
	Name      string
	SizeBytes int64
	Active    bool
	Tags      []string
}

// List tells all thin volumes.
func List(ctx context.Context) ([]Thin, error) {
	out, err := command(ctx, "lvs", "--reportformat", "json", "--units", "b", "--nosuffix",
		"-o", "lv_name,lv_size,lv_active,lv_tags,pool_lv", Group)
	if err != nil {
		return nil, err
	}
	return parseThin(out)
}

func parseThin(out []byte) ([]Thin, error) {
	var r report
	if err := json.Unmarshal(out, &r); err != nil {
		return nil, fmt.Errorf("read lvm's report: %w", err)
	}
	if len(r.Report) != 1 {
		return nil, fmt.Errorf("%d reports of lvm: %w", len(r.Report), errdefs.ErrDataLoss)
	}
	var all []Thin
	for _, row := range r.Report[0].LV {
		if row["pool_lv"] != Pool {
			continue
		}
		size, err := strconv.ParseInt(row["lv_size"], 10, 64)
		if err != nil || size < 0 || row["lv_name"] == "" {
			return nil, fmt.Errorf("lvm tells of volume %q with size %q: %w", row["lv_name"], row["lv_size"], errdefs.ErrDataLoss)
		}
		t := Thin{Name: row["lv_name"], SizeBytes: size, Active: row["lv_active"] == "active"}
		if tags := row["lv_tags"]; tags != "" {
			t.Tags = strings.Split(tags, ",")
		}
		all = append(all, t)
	}
	return all, nil
}

// CreateThin makes an active volume that reads as zeros and uses no space yet. Cut
// in the middle it leaves one that isn't active, which RemoveThin takes away; until
// then no other volume must be made, as that would finish it.
func CreateThin(ctx context.Context, name string, sizeBytes int64, tags ...string) error {
	return create(ctx, tags, "-V", strconv.FormatInt(RoundUp(sizeBytes), 10)+"b", "--thinpool", Pool, "-n", name, Group)
}

// Snapshot makes a volume with the content that origin has now, which uses no space
// until one of both is written to. A mounted file system is brought in order for
// it, so it needs no repair. The snapshot isn't active, neither now nor after a
// boot, until SetActive. Cut in the middle it has to be removed as after
// CreateThin: finished later, it would hold the content of that later moment.
func Snapshot(ctx context.Context, origin, name string, tags ...string) error {
	return snapshot(ctx, origin, name, "y", tags)
}

// SnapshotToRead is Snapshot also of a pool that is nearly full, where lvm refuses
// new volumes: to get data out of it. It is to be removed soon: the kernel has no
// low water mark until the next volume is made or removed.
func SnapshotToRead(ctx context.Context, origin, name string, tags ...string) error {
	return create(ctx, tags, "--config", "activation/thin_pool_autoextend_threshold=100",
		"--type", "thin", "--setactivationskip", "y", "-n", name, Group+"/"+origin)
}

// Clone is Snapshot for a volume that is used on its own: active now and after
// every boot.
func Clone(ctx context.Context, origin, name string, tags ...string) error {
	return snapshot(ctx, origin, name, "n", tags)
}

func snapshot(ctx context.Context, origin, name, skip string, tags []string) error {
	// With -s, lvm would look for a kernel module that thin snapshots don't need.
	return create(ctx, tags, "--type", "thin", "--setactivationskip", skip, "-n", name, Group+"/"+origin)
}

func create(ctx context.Context, tags []string, args ...string) error {
	args = append([]string{"lvcreate", "-y"}, args...)
	for _, tag := range tags {
		args = append(args, "--addtag", tag)
	}
	_, err := command(ctx, args...)
	return err
}

// ExtendThin makes a volume larger, in use or not. One that has the size already
// stays as it is.
func ExtendThin(ctx context.Context, name string, sizeBytes int64) error {
	sizeBytes = RoundUp(sizeBytes)
	_, err := command(ctx, "lvextend", "-y", "-L", strconv.FormatInt(sizeBytes, 10)+"b", Group+"/"+name)
	if err == nil {
		return nil
	}
	all, listErr := List(ctx)
	if listErr != nil {
		return errors.Join(err, listErr)
	}
	for _, t := range all {
		if t.Name == name && t.SizeBytes >= sizeBytes {
			return nil
		}
	}
	return err
}

// RemoveThin removes volumes for good, with what a cut creation left; one that is
// absent is no error. A volume that somebody has open stops it before anything is
// removed, with an error of class FailedPrecondition.
func RemoveThin(ctx context.Context, names ...string) error {
	if len(names) == 0 {
		return nil
	}
	for _, name := range names {
		if err := unused(name); err != nil {
			return err
		}
	}
	if err := whole(ctx); err != nil {
		return fmt.Errorf("remove volumes: %w", err)
	}
	remove := []string{"lvremove", "-y", "-f"}
	_, err := command(ctx, onVolumes(names, remove...)...)
	if err == nil {
		return nil
	}
	left, err2 := present(ctx, names)
	if err2 != nil {
		return errors.Join(err, err2)
	}
	if len(left) == 0 {
		return nil
	}
	mine := func(name string) bool { return slices.Contains(left, name) }
	if unblocked, err2 := unblock(ctx, mine); !unblocked {
		return errors.Join(err, err2)
	}
	_, err = command(ctx, onVolumes(left, remove...)...)
	return err
}

// unused refuses a volume that is open; one that isn't active has no device.
func unused(name string) error {
	f, err := os.OpenFile(Device(name), os.O_RDONLY|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("remove volume %q: it is mounted or open: %w", name, errdefs.ErrFailedPrecondition)
	}
	if err == nil {
		f.Close()
	}
	return nil
}

// onVolumes completes a command by the volumes that it's for.
func onVolumes(names []string, args ...string) []string {
	for _, name := range names {
		args = append(args, Group+"/"+name)
	}
	return args
}

// present picks the volumes that are there.
func present(ctx context.Context, names []string) ([]string, error) {
	all, err := List(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, t := range all {
		if slices.Contains(names, t.Name) {
			out = append(out, t.Name)
		}
	}
	return out, nil
}

// SetActive opens a volume, or closes one that nobody uses.
func SetActive(ctx context.Context, name string, active bool) error {
	how := []string{"-an"}
	if active {
		how = []string{"-ay", "-K"} // a snapshot too
	}
	_, err := command(ctx, append(append([]string{"lvchange", "-y"}, how...), Group+"/"+name)...)
	return err
}
