package image_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"

	"capsule/internal/image"
	"capsule/internal/imagetest"
)

// An image is shown whole, as containers have it, and nothing of it stays.
func TestView(t *testing.T) {
	f := open(t)
	i := imagetest.Image{Layers: []*imagetest.Layer{
		imagetest.NewLayer().Dir("d", 0o755).File("d/old", 0o644, "old"),
		imagetest.NewLayer().File("d/new", 0o600, "new").Whiteout("d/old"),
	}}
	img, err := f.Pull(t.Context(), f.registry(t).Push(t, "view", "1", i), nil)
	if err != nil {
		t.Fatal(err)
	}
	f.mounted(t, img) // where it can't, this test can't either
	var seen string
	enough := errors.New("enough")
	err = f.View(t.Context(), img, func(root string) error {
		seen = root
		text, err := os.ReadFile(filepath.Join(root, "d/new"))
		if string(text) != "new" {
			t.Errorf("%q, %v", text, err)
		}
		if _, err := os.Lstat(filepath.Join(root, "d/old")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("what a layer removed is seen: %v", err)
		}
		return enough
	})
	if err != enough { //nolint:errorlint // without a word around it
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(seen, "d")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the view is left: %v", err)
	}
	left, err := f.client.LeasesService().List(t.Context())
	if err != nil || len(left) > 0 {
		t.Errorf("leases are left: %v, %v", left, err)
	}
}

// TestViewBesideCollection: a garbage collection that runs while a view ends
// takes its mounts for nobody's. That is no failure of the view.
func TestViewBesideCollection(t *testing.T) {
	f := open(t)
	i := imagetest.Image{}
	for n := range 100 {
		i.Layers = append(i.Layers, imagetest.NewLayer().File(fmt.Sprint("l/", n), 0o644, "x"))
	}
	img, err := f.Pull(t.Context(), f.registry(t).Push(t, "view", "1", i), nil)
	if err != nil {
		t.Fatal(err)
	}
	f.mounted(t, img) // where it can't, this test can't either
	ctx, cancel := context.WithCancel(t.Context())
	var collecting sync.WaitGroup
	collecting.Go(func() {
		for ctx.Err() == nil {
			if err := f.client.LeasesService().Delete(ctx, leases.Lease{ID: lease(t, f)}, leases.SynchronousDelete); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	})
	defer collecting.Wait()
	defer cancel()
	for range 30 {
		err := f.View(ctx, img, func(root string) error {
			_, err := os.Stat(filepath.Join(root, "l/99"))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestViewOfKilled: a view of a fixed key can be left behind by a daemon that
// was killed in it.
func TestViewOfKilled(t *testing.T) {
	f := open(t)
	img, err := f.Pull(t.Context(), f.registry(t).Push(t, "view", "1", hello("there")), nil)
	if err != nil {
		t.Fatal(err)
	}
	f.mounted(t, img) // where it can't, this test can't either
	ctx := leases.WithLease(t.Context(), lease(t, f))
	const snapshotter, key = "erofs", "left"
	mounts, err := f.client.SnapshotService(snapshotter).View(ctx, key, img.ChainID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.client.MountManager().Activate(ctx, key, mounts, mount.WithTemporary); err != nil {
		t.Fatal(err)
	}
	looked := false
	err = image.View(ctx, f.client, snapshotter, key, img.ChainID, func(string) error {
		looked = true
		return nil
	})
	if err != nil || !looked {
		t.Errorf("looked %t, %v", looked, err)
	}
	if _, err := f.client.MountManager().Info(ctx, key); !errdefs.IsNotFound(err) {
		t.Errorf("its mounts are left: %v", err)
	}
}
