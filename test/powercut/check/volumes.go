package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/image"
	"capsule/internal/lvm"
	"capsule/internal/run"
	"capsule/internal/store"
	"capsule/internal/volume"
	"capsule/test/powercut/plan"
)

// crowdedPart of the pool in use is too much for more volumes: 90 %, as in
// internal/volume.
const crowdedPart = 10.0 / 9

// newVolume is made after every cut: nothing may stand in its way.
const newVolume = "powercut-new"

// recoverVolumes does as the daemon when it starts.
func (b *boot) recoverVolumes(ctx context.Context) error {
	b.volumes = volume.New(volume.Options{Store: b.store, Content: content{}})
	if err := b.volumes.Recover(ctx); err != nil {
		return err
	}
	look, err := lvm.Activate(ctx)
	if err == nil && look {
		err = b.whyInactive(ctx)
	}
	if err != nil {
		return err
	}
	pool, err := lvm.ReadPool()
	if err != nil {
		return err
	}
	b.crowded = float64(pool.DataUsed)*crowdedPart >= float64(pool.DataSize)
	if pool.Mode != lvm.ModeWrite && !(b.crowded && pool.Mode == lvm.ModeFull) || pool.NeedsCheck {
		return fmt.Errorf("the pool is %q, needs check: %v", pool.Mode, pool.NeedsCheck)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	running.Go(func() { _ = b.volumes.Run(ctx) }) // ends without one
	b.stop = func() { cancel(); running.Wait() }
	return nil
}

// whyInactive asks lvm once more, for its words.
func (b *boot) whyInactive(ctx context.Context) error {
	_, err := run.Output(ctx, fsckMax, "lvm", "vgchange", "-y", "-ay", lvm.Group)
	return fmt.Errorf("some volumes can't be activated after all that was half made is gone: %w", err)
}

// settleVolumes declares one more volume and waits until all are as declared.
func (b *boot) settleVolumes(ctx context.Context) error {
	obj := &v1.Object{Meta: &v1.Meta{Kind: "Volume", Name: newVolume}, Kind: &v1.Object_Volume{
		Volume: &v1.Volume{Spec: &v1.VolumeSpec{Size: 32 << 20}},
	}}
	if _, err := b.store.Apply(ctx, []*v1.Object{obj}, false, nil); err != nil {
		return err
	}
	changes, err := b.store.Watch(ctx, "Volume", "")
	if err != nil {
		return err
	}
	waiting := map[string]string{}
	synced := false
	for c := range changes {
		synced = synced || c.Synced
		if c.Object != nil {
			name := c.Object.GetMeta().GetName()
			if delete(waiting, name); !c.Deleted && !b.settled(c.Object) {
				s := c.Object.GetVolume().GetStatus()
				waiting[name] = fmt.Sprintf("%v %q", s.GetPhase(), s.GetMessage())
			}
		}
		if synced && len(waiting) == 0 {
			return nil
		}
	}
	return fmt.Errorf("volumes that are not as declared: %v: %w", waiting, ctx.Err())
}

// settled volumes are whole. One that is being deleted may wait for a workload:
// there are none here. The new one may wait for room in the pool.
func (b *boot) settled(o *v1.Object) bool {
	s := o.GetVolume().GetStatus()
	if b.crowded && o.GetMeta().GetName() == newVolume {
		return strings.Contains(s.GetMessage(), "pool")
	}
	if o.GetMeta().GetDeletedAt() != nil {
		return strings.Contains(s.GetMessage(), "waits for workload")
	}
	return s.GetGeneration() == o.GetMeta().GetGeneration() &&
		(s.GetPhase() == v1.VolumePhase_VOLUME_PHASE_READY || s.GetPhase() == v1.VolumePhase_VOLUME_PHASE_IN_USE)
}

// checkLogical compares the records with what lvm has: nothing is missing, and
// nothing is left that nobody knows of.
func (b *boot) checkLogical(ctx context.Context) error {
	thin, err := lvm.List(ctx)
	if err != nil {
		return err
	}
	known, err := recorded(b.store)
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range thin {
		if known[t.Name] == "" {
			errs = append(errs, fmt.Errorf("logical volume %q is known to no record", t.Name))
		}
		delete(known, t.Name)
	}
	for lv, key := range known {
		if !strings.HasPrefix(key, "intent/") {
			errs = append(errs, fmt.Errorf("logical volume %q of %q is missing", lv, key))
		}
	}
	return errors.Join(errs...)
}

// recorded are the logical volumes that the store names, with the key.
func recorded(s *store.Store) (map[string]string, error) {
	known := map[string]string{}
	err := s.Bucket("volumes").Each(func(key string, value []byte) error {
		var r struct {
			LV string `json:"lv"`
		}
		if err := json.Unmarshal(value, &r); err != nil {
			return fmt.Errorf("record %q: %w", key, err)
		}
		if r.LV != "" {
			known[r.LV] = key
		}
		return nil
	})
	return known, err
}

// root mounts a volume and gives the folder that workloads see.
func (b *boot) root(ctx context.Context, name string) (string, error) {
	c := volume.Claimant{Workload: "check"}
	if name == plan.Photos {
		c.Workload = plan.App
	}
	mounted, err := b.volumes.Mount(ctx, c, []*v1.Mount{{Volume: name, Path: plan.MountPath}}, image.Image{})
	if err != nil {
		return "", err
	}
	return mounted[0].Source, nil
}

// rootOf is root of a snapshot, of which a clone is made.
func (b *boot) rootOf(ctx context.Context, name, snapshot string) (string, error) {
	if snapshot == "" {
		return b.root(ctx, name)
	}
	of := name + "@" + snapshot
	if b.crowded {
		return b.rootAside(ctx, name, snapshot)
	}
	if b.clones[of] == "" {
		clone := fmt.Sprint("look", len(b.clones))
		if _, err := b.volumes.Clone(ctx, name, snapshot, clone); err != nil {
			return "", err
		}
		b.clones[of] = clone
	}
	return b.root(ctx, b.clones[of])
}

// rootAside mounts the logical volume of a snapshot as it is.
func (b *boot) rootAside(ctx context.Context, name, snapshot string) (string, error) {
	known, err := recorded(b.store)
	if err != nil {
		return "", err
	}
	for lv, key := range known {
		if key != "snapshot/"+name+"/"+snapshot {
			continue
		}
		dir := filepath.Join(volume.Dir, lv)
		if _, err := os.Stat(filepath.Join(dir, "data")); err == nil {
			return filepath.Join(dir, "data"), nil
		}
		if err := errors.Join(lvm.SetActive(ctx, lv, true), os.MkdirAll(dir, 0o700)); err != nil {
			return "", err
		}
		return filepath.Join(dir, "data"), unix.Mount(lvm.Device(lv), dir, "ext4", unix.MS_RDONLY, "noload")
	}
	return "", fmt.Errorf("snapshot %q of volume %q has no record", snapshot, name)
}

// content is that of the image that the recording pushed.
type content struct{}

func (content) View(_ context.Context, _ image.Image, look func(root string) error) (err error) {
	root, err := os.MkdirTemp("", "image-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(root)) }()
	dir := filepath.Join(root, plan.MountPath)
	file := filepath.Join(dir, plan.SeedFile)
	if err := errors.Join(os.Mkdir(dir, plan.FolderMode), os.WriteFile(file, []byte(plan.SeedText), plan.SeedMode),
		os.Chown(dir, plan.SeedOwner, plan.SeedOwner), os.Chown(file, plan.SeedOwner, plan.SeedOwner)); err != nil {
		return err
	}
	return look(root)
}

// unmountVolumes leaves no mount of a volume.
func unmountVolumes() error {
	dirs, err := filepath.Glob(volume.Dir + "/*")
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		for err = error(nil); err == nil; {
			err = unix.Unmount(dir, 0)
		}
		if !errors.Is(err, unix.EINVAL) { // which is: no mount any more
			errs = append(errs, fmt.Errorf("unmount %s: %w", dir, err))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(volume.Dir))...)
}
