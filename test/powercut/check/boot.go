package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"capsule/internal/blocklog"
	"capsule/internal/disk"
	"capsule/internal/durable"
	"capsule/internal/ext4"
	"capsule/internal/lvm"
	"capsule/internal/run"
	"capsule/internal/store"
	"capsule/internal/volume"
	"capsule/test/powercut/plan"
)

// As on a capsule (internal/pid1, cmd/capsuled).
const (
	permDir   = "/perm"
	storePath = permDir + "/state.db"
	grownFile = permDir + "/.grown-to"
	fsckMax   = 10 * time.Minute
)

// A boot is one start of a machine whose power was cut.
type boot struct {
	plan   plan.Plan
	cut    blocklog.Cut
	disk   *cutDisk
	log    *blocklog.Log
	proven map[string]proof // of slots, by name; kept from cut to cut

	booted  disk.Boot // what it starts from, at the updates
	systems []system  // that the loader can start, in its order

	stage   string
	facts   int // that were checked
	mounted bool
	store   *store.Store
	volumes *volume.Manager
	crowded bool              // the pool is too full for more
	stop    func()            // ends the volumes' loop
	clones  map[string]string // of snapshots, to look into
}

// A stage is one part of a start.
type stage struct {
	name string
	do   func(context.Context) error
}

// run starts as process 1 and the daemon do, then looks at what was promised.
func (b *boot) run(ctx context.Context) error {
	stages := slices.Concat(b.find(), []stage{
		{"partition table", func(context.Context) error { return b.disk.openPERM() }},
		{"open PERM", b.openGroup},
		{"check /perm", b.checkPerm},
		{"mount /perm", b.mountPerm},
		{"open store", b.openStore},
	}, b.use())
	for _, s := range stages {
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// find is how the loader comes to a kernel.
func (b *boot) find() []stage {
	if b.plan.Updates(b.cut) {
		return []stage{{"systems", b.checkSystems}, {"start", b.start}}
	}
	return []stage{{"boot entry", b.checkESP}}
}

// use is what works once the state is open. Updates don't touch volumes: they are
// looked at only if there is time.
func (b *boot) use() []stage {
	volumes := []stage{
		{"activate volumes", b.activate},
		{"use the whole disk", b.growStorage},
		{"recover volumes", b.recoverVolumes},
		{"facts", b.checkFacts},
		{"settle volumes", b.settleVolumes},
		{"logical volumes", b.checkLogical},
	}
	switch {
	case !b.plan.Updates(b.cut):
		return volumes
	case !b.plan.Deep:
		volumes = []stage{{"facts", b.checkFacts}}
	}
	return append(volumes, stage{"next update", b.nextUpdate})
}

// openGroup makes the group on a disk that was never finished.
func (b *boot) openGroup(ctx context.Context) error {
	if err := lvm.Setup(b.disk.perm); err != nil {
		return err
	}
	content, err := lvm.Inspect(b.disk.perm)
	if err != nil {
		return err
	}
	switch content {
	case lvm.New:
		b.stage = "new"
		return lvm.Create(ctx, b.disk.perm)
	case lvm.Used:
		b.stage = "used"
		if _, err := lvm.MendMetadata(b.disk.perm); err != nil {
			return err
		}
		return lvm.ActivatePerm(ctx)
	}
	return fmt.Errorf("content %d of a disk that the image's mark was on", content)
}

// checkPerm repairs as a start does; then nothing may be left to repair.
func (b *boot) checkPerm(ctx context.Context) error {
	if err := ext4.Check(ctx, lvm.PermDevice); err != nil || !b.plan.Deep {
		return err
	}
	out, err := run.Output(ctx, fsckMax, "e2fsck", "-f", "-n", lvm.PermDevice)
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func (b *boot) mountPerm(context.Context) error {
	if err := unix.Mount(lvm.PermDevice, permDir, "ext4", unix.MS_NOATIME|unix.MS_NODEV, "errors=remount-ro,discard"); err != nil {
		return err
	}
	b.mounted = true
	return nil
}

func (b *boot) openStore(context.Context) (err error) {
	b.store, err = store.Open(storePath)
	return err
}

// activate opens all volumes that can be opened, as process 1 does while the
// daemon starts: every other time it is later than the daemon's own look.
func (b *boot) activate(ctx context.Context) error {
	if b.cut.N%2 == 1 {
		return nil
	}
	_, err := lvm.Activate(ctx)
	return err
}

// growStorage goes on with a growth that was cut.
func (b *boot) growStorage(ctx context.Context) error {
	size, err := sizeOf(b.disk.perm)
	if err != nil {
		return err
	}
	text := strconv.FormatInt(size, 10)
	if b.stage != "new" {
		if was, err := os.ReadFile(grownFile); err == nil && strings.TrimSpace(string(was)) == text {
			return nil
		}
		if err := lvm.Grow(ctx, b.disk.perm, permDir); err != nil {
			return err
		}
	}
	return durable.WriteFile(grownFile, []byte(text+"\n"), 0o644)
}

// end leaves the disk alone.
func (b *boot) end() error {
	var errs []error
	if b.stop != nil {
		b.stop()
	}
	errs = append(errs, unmountVolumes())
	if b.store != nil {
		errs = append(errs, b.store.Close())
	}
	if b.mounted {
		errs = append(errs, unix.Unmount(permDir, 0))
	}
	return errors.Join(errs...)
}
