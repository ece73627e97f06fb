package installer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"

	"capsule/internal/disk"
	"capsule/internal/slot"
)

// Options of an Installer.
type Options struct {
	Sysfs string
	Boot  disk.Boot
	// Personality of the capsule that is installed: that of the running system, or that
	// of the backup which was staged under a digest.
	Personality func(restore string) (Personality, error)
	// Needs is how many bytes the volumes of that backup have.
	Needs func(restore string) (uint64, error)
	Log   *slog.Logger
}

// An Installer serves one boot of a stick. It installs one capsule: a second one
// would have the first one's identity.
type Installer struct {
	Options
	working   sync.Mutex
	takenFile string
	read      func(disk.Device) ([]disk.Content, error)

	mu       sync.Mutex
	readings map[disk.Device]*reading // that are under way
}

// New makes an Installer.
func New(o Options) *Installer {
	return &Installer{Options: o, takenFile: takenFile, read: contentsOf, readings: map[disk.Device]*reading{}}
}

// Plan says what would be done.
func (i *Installer) Plan(choice Choice) (Plan, error) {
	need := uint64(0)
	if choice.Restore != "" {
		var err error
		if need, err = i.Needs(choice.Restore); err != nil {
			return Plan{}, err
		}
	}
	p, err := NewPlan(i.Disks(), choice)
	if err == nil {
		err = Holds(p.Disk, need)
	}
	return i.once(p, choice, err)
}

// Install does what the plan with this digest says. It stops when ctx ends, which
// leaves a disk that doesn't boot and that the next run takes as empty; but its last
// step, once begun, is brought to its end.
func (i *Installer) Install(ctx context.Context, choice Choice, planned string, progress func(Progress)) (err error) {
	if !i.working.TryLock() {
		return fmt.Errorf("another installation is under way: %w", errdefs.ErrFailedPrecondition)
	}
	defer i.working.Unlock()
	plan, err := i.Plan(choice)
	if err != nil {
		return err
	}
	if plan.Digest != planned {
		return changed(plan.Disk)
	}
	i.Log.Info("install", "disk", plan.Disk.ID(), "name", plan.Disk.Name)
	if err := i.install(ctx, plan, choice.Restore, progress); err != nil {
		return fmt.Errorf("install on disk %s: %w", named(plan.Disk), err)
	}
	i.Log.Info("installed", "disk", plan.Disk.ID())
	if choice.Restore != "" { // the new capsule isn't the one of the stick's seed
		return nil
	}
	if err := i.dropSeed(); err != nil {
		return fmt.Errorf("disk %s is installed and verified, but a seed may still be on the stick: remove file %q from its first partition, or the next capsule has the same identity: %w",
			named(plan.Disk), disk.SeedFile, err)
	}
	return nil
}

func changed(c Candidate) error {
	return fmt.Errorf("disk %s has changed since it was shown: look at it again: %w", named(c), errdefs.ErrAborted)
}

func (i *Installer) install(ctx context.Context, plan Plan, restore string, progress func(Progress)) error {
	target := plan.Disk
	table, err := disk.NewTable(target.Sector, target.Bytes/uint64(target.Sector))
	if err != nil {
		return err
	}
	root, err := slot.RunningRoot()
	if err != nil {
		return err
	}
	who, err := i.Personality(restore)
	if err != nil {
		return fmt.Errorf("identity of the new capsule: %w", err)
	}
	device, err := i.Boot.Device(i.Boot.Slot)
	if err != nil {
		return err
	}
	system, err := os.Open(device)
	if err != nil {
		return fmt.Errorf("open the stick: %w", err)
	}
	defer system.Close()
	to, err := i.Open(target.Path(), plan)
	if err != nil {
		return err
	}
	defer to.Close()
	var w *writer
	if err := i.Boot.WithESP(disk.ReadOnly, func(dir string) error {
		files, closeAll, err := espFiles(dir, i.Boot.Slot, root, who)
		if err != nil {
			return err
		}
		defer closeAll()
		w = newWriter(ctx, to, table, Source{System: system, Root: root, Files: files}, progress)
		return w.fill()
	}); err != nil {
		return err
	}
	return i.finish(w, target.Device)
}

// Open opens the disk of the plan for writing, and makes sure that it's this one, with
// what was shown on it. While it's open nobody else can take it, nor can another disk
// take its place.
func (i *Installer) Open(path string, plan Plan) (*Device, error) {
	to, err := openDevice(path)
	if err != nil {
		return nil, err
	}
	d, err := to.describe(i.Sysfs)
	if err == nil {
		contents, failed := disk.Contents(to, d.Sector, d.Bytes)
		if c := i.candidate(d, contents, failed); c.Booted || digest(c) != plan.Digest {
			err = changed(c)
		}
	}
	if err != nil {
		return nil, errors.Join(err, to.Close())
	}
	return to, nil
}

// dropSeed takes the seed from the stick, which the new capsule has now: two of them
// with one identity could not be told apart. It's all that is ever written there.
func (i *Installer) dropSeed() error {
	seeded, err := i.Boot.OnESP(disk.SeedFile)
	if err != nil || !seeded {
		return err
	}
	return i.Boot.WithESP(disk.Writable, func(dir string) error { return os.Remove(filepath.Join(dir, disk.SeedFile)) })
}
