package image

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
)

// View mounts an image read-only while look runs. It gives look's error as it
// is.
func (s *Store) View(ctx context.Context, img Image, look func(root string) error) error {
	var found error // work adds no words to it
	err := s.work(ctx, func(ctx context.Context) error {
		return View(ctx, s.client, snapshotter, "view."+rand.Text(), img.ChainID, func(root string) error {
			found = look(root)
			return found
		})
	})
	if found != nil {
		return found
	}
	return err
}

// View mounts the layers up to chainID read-only while look runs. The key names
// the snapshot that does it; a lease in ctx keeps that from the garbage
// collector. It gives look's error as it is.
func View(ctx context.Context, client *containerd.Client, snapshotter, key, chainID string, look func(root string) error) (err error) {
	snapshots := client.SnapshotService(snapshotter)
	mounts, err := snapshots.View(ctx, key, chainID)
	if errdefs.IsAlreadyExists(err) { // left by one who was killed here
		mounts, err = snapshots.Mounts(ctx, key)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, snapshots.Remove(context.WithoutCancel(ctx), key)) }()
	manager := client.MountManager()
	active, err := manager.Activate(ctx, key, mounts, mount.WithTemporary)
	if errdefs.IsAlreadyExists(err) { // left by the same
		deactivate(ctx, manager, key)
		active, err = manager.Activate(ctx, key, mounts, mount.WithTemporary)
	}
	switch {
	case err == nil:
		mounts = active.System
		defer deactivate(context.WithoutCancel(ctx), manager, key)
	case !errdefs.IsNotImplemented(err): // not implemented: plain mounts
		return err
	}
	var found error // without the words about the mount that WithTempMount adds
	err = mount.WithTempMount(ctx, mounts, func(root string) error {
		found = look(root)
		return found
	})
	if found != nil {
		return found
	}
	return err
}

// deactivate ends the mounts of a view. That it could not is no failure of who
// looked: a garbage collection at the same time takes the mounts as nobody's,
// and then they are gone before us; what stays is the next one's to take.
func deactivate(ctx context.Context, manager mount.Manager, key string) {
	if err := manager.Deactivate(ctx, key); err != nil && !errdefs.IsNotFound(err) {
		slog.Debug("end the mounts of a view", "key", key, "error", err)
	}
}
