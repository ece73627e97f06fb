// Package lvm owns the machine's volume group "capsule" on the PERM partition, and on
// the disks that were added to it: it creates it on a disk that is provably new,
// activates it, grows it with its disks, and makes, extends and removes the thin
// volumes in its pool. Nothing is ever initialised that might hold data, and no volume
// is removed but by name.
//
// Which disks belong to the group, their metadata says (Assemble): no other disk is
// looked at, whatever is on it. /perm lies on PERM alone, so that the machine comes
// up without the others.
//
// Each call takes a third of a second and more, so there is one per operation, and
// what the kernel knows (how full the pool is, whether a volume is there) is asked
// of the kernel. One command runs at a time, in the order of the calls. Its verdict
// is the exit status; its warnings on stderr mean nothing. A command that has begun
// goes on when its caller gives up: killed in the middle it would leave volumes
// suspended, whose users hang.
package lvm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/errdefs"

	"capsule/internal/durable"
	"capsule/internal/run"
)

// The volume group and the logical volumes in it that every capsule has.
const (
	Group = "capsule"
	Perm  = "perm"
	Pool  = "thinpool"
)

const (
	// PermDevice is the file system of /perm.
	PermDevice = "/dev/" + Group + "/" + Perm

	// ConfigDir holds lvm.conf; the root is read-only and the filter names a disk
	// of this boot.
	ConfigDir = "/run/capsule/lvm"

	lockDir = "/run/lock/lvm" // stands in lvm.conf too

	commandMax = 5 * time.Minute // thin_check of a large pool runs within a command
	needsLook  = 5               // lvm's status when some of several things failed
)

// turn is taken by whoever runs a command.
var turn = make(chan struct{}, 1)

// takeTurn waits for the turn, and gives what hands it on.
func takeTurn(ctx context.Context) (free func(), err error) {
	select {
	case turn <- struct{}{}:
		return func() { <-turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// command runs one lvm command and returns its stdout. ctx ends the wait for its
// turn, not the command.
func command(ctx context.Context, args ...string) ([]byte, error) {
	free, err := takeTurn(ctx)
	if err != nil {
		return nil, fmt.Errorf("lvm %s: waiting for another lvm command: %w", args[0], err)
	}
	defer free()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("lvm %s: %w", args[0], err)
	}
	return run.Output(context.WithoutCancel(ctx), commandMax, "lvm", args...)
}

// Setup writes lvm.conf for exactly these physical volumes and points the process
// and its children to it. Commands that run already keep to what they have read.
func Setup(devices ...string) error {
	for _, dir := range []string{ConfigDir, lockDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	file, text := filepath.Join(ConfigDir, "lvm.conf"), config(devices...)
	if now, err := os.ReadFile(file); err != nil || !bytes.Equal(now, text) {
		if err := durable.WriteFile(file, text, 0o600); err != nil {
			return fmt.Errorf("configure lvm: %w", err)
		}
	}
	return errors.Join(os.Setenv("LVM_SYSTEM_DIR", ConfigDir), os.Setenv("LVM_SUPPRESS_FD_WARNINGS", "1"))
}

// ActivatePerm makes /dev/capsule/perm appear, and nothing else: it's what the
// start waits for.
func ActivatePerm(ctx context.Context) error {
	_, err := command(ctx, "lvchange", "-y", "-ay", "--poll", "n", Group+"/"+Perm)
	return err
}

// Activate activates the pool and all volumes. Status 5 means that some volume
// stayed inactive, which a cut in the middle of creating one leaves behind; the
// rest is usable, so look tells the caller to look instead of giving up.
func Activate(ctx context.Context) (look bool, err error) {
	_, err = command(ctx, "vgchange", "-y", "-ay", "--poll", "n", Group)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == needsLook {
		return true, nil
	}
	return false, err
}

// Deactivate closes all volumes that nobody uses any more.
func Deactivate(ctx context.Context) error {
	_, err := command(ctx, "vgchange", "-an", Group)
	return err
}

// state is what the group looks like now, in bytes. home is the part of it on PERM.
type state struct {
	extent, size, free uint64
	home, homeFree     uint64
	volumes            map[string]uint64
}

func readGroup(ctx context.Context) ([]byte, error) {
	return command(ctx, "vgs", "--reportformat", "json", "--units", "b", "--nosuffix",
		"-o", "vg_extent_size,vg_size,vg_free", Group)
}

// readState asks for the group whose home is this device.
func readState(ctx context.Context, home string) (state, error) {
	out, err := readGroup(ctx)
	if err != nil {
		return state{}, err
	}
	lvs, err := command(ctx, "lvs", "-a", "--reportformat", "json", "--units", "b", "--nosuffix",
		"-o", "lv_name,lv_size", Group)
	if err != nil {
		return state{}, err
	}
	s, err := parseState(out, lvs)
	if err != nil {
		return state{}, err
	}
	disks, err := Physicals(ctx)
	if err != nil {
		return state{}, err
	}
	return s, s.place(disks, home)
}

// place notes which part of the group lies on its home.
func (s *state) place(disks []Physical, home string) error {
	for _, d := range disks {
		if d.Device == home {
			s.home, s.homeFree = uint64(d.SizeBytes), uint64(d.FreeBytes)
			return nil
		}
	}
	return fmt.Errorf("volume group %q is not on %q: %w", Group, home, errdefs.ErrNotFound)
}

// report is the shape of lvm's JSON: every value is a string.
type report struct {
	Report []struct {
		VG []map[string]string `json:"vg"`
		PV []map[string]string `json:"pv"`
		LV []map[string]string `json:"lv"`
	} `json:"report"`
}

func parseState(vgs, lvs []byte) (state, error) {
	s, err := parseGroup(vgs)
	if err != nil {
		return state{}, err
	}
	var lv report
	if err := json.Unmarshal(lvs, &lv); err != nil || len(lv.Report) != 1 {
		return state{}, fmt.Errorf("read lvm's report of volumes: %w", errors.Join(err, errdefs.ErrDataLoss))
	}
	for _, row := range lv.Report[0].LV {
		name := row["lv_name"]
		if len(name) > 2 && name[0] == '[' { // hidden ones, as [thinpool_tmeta]
			name = name[1 : len(name)-1]
		}
		if s.volumes[name], err = strconv.ParseUint(row["lv_size"], 10, 64); err != nil {
			return state{}, fmt.Errorf("size of volume %q: %w", name, err)
		}
	}
	return s, nil
}

// parseGroup reads the group's own figures.
func parseGroup(vgs []byte) (state, error) {
	var vg report
	if err := json.Unmarshal(vgs, &vg); err != nil {
		return state{}, fmt.Errorf("read lvm's report: %w", err)
	}
	if len(vg.Report) != 1 || len(vg.Report[0].VG) != 1 {
		return state{}, fmt.Errorf("volume group %q: %w", Group, errdefs.ErrNotFound)
	}
	s := state{volumes: map[string]uint64{}}
	for field, into := range map[string]*uint64{"vg_extent_size": &s.extent, "vg_size": &s.size, "vg_free": &s.free} {
		n, err := strconv.ParseUint(vg.Report[0].VG[0][field], 10, 64)
		if err != nil {
			return state{}, fmt.Errorf("%s of volume group %q: %w", field, Group, err)
		}
		*into = n
	}
	return s, nil
}
