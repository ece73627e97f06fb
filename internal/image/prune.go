package image

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	v1 "capsule/api/capsule/v1"
)

// Prune removes the names that are not used, full names as of Normalise, and
// everything on disk that no remaining image and no instance needs. Freed are
// bytes on disk; a dry run says what would be.
func (s *Store) Prune(ctx context.Context, used map[string]bool, dryRun bool) (*v1.PruneResponse, error) {
	response, err := s.prune(quiet(ctx), used, dryRun)
	if err != nil {
		return nil, fmt.Errorf("prune images: containerd: %w", err)
	}
	return response, nil
}

func (s *Store) prune(ctx context.Context, used map[string]bool, dryRun bool) (*v1.PruneResponse, error) {
	records, err := s.client.ImageService().List(ctx)
	if err != nil {
		return nil, err
	}
	var kept, dropped []images.Image
	for _, r := range records {
		if used[r.Name] {
			kept = append(kept, r)
		} else {
			dropped = append(dropped, r)
		}
	}
	response := &v1.PruneResponse{Removed: s.describeAll(ctx, dropped)}
	if dryRun {
		response.Freed, err = s.reclaimable(ctx, kept)
		return response, err
	}
	before, err := s.usage(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range dropped {
		if err := s.client.ImageService().Delete(ctx, r.Name); err != nil && !errdefs.IsNotFound(err) {
			return nil, err
		}
	}
	if err := s.collect(ctx); err != nil {
		return nil, err
	}
	after, err := s.usage(ctx)
	if err != nil {
		return nil, err
	}
	response.Freed = max(0, before-after)
	return response, nil
}

// collect runs containerd's garbage collection and waits for it: the end of a
// lease does.
func (s *Store) collect(ctx context.Context) error {
	manager := s.client.LeasesService()
	lease, err := manager.Create(ctx, leases.WithRandomID(), leases.WithExpiration(leaseLife), leases.WithLabel(leaseLabel, "work"))
	if err != nil {
		return err
	}
	return manager.Delete(ctx, lease, leases.SynchronousDelete)
}

// usage is what all blobs and unpacked layers take, in bytes on disk.
func (s *Store) usage(ctx context.Context) (int64, error) {
	var total int64
	err := s.client.ContentStore().Walk(ctx, func(info content.Info) error {
		total += info.Size
		return nil
	})
	if err != nil {
		return 0, err
	}
	layers := s.client.SnapshotService(snapshotter)
	err = layers.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind != snapshots.KindCommitted {
			return nil
		}
		use, err := layers.Usage(ctx, info.Name)
		if err == nil {
			total += use.Size
		} else if !errdefs.IsNotFound(err) {
			return err
		}
		return nil
	})
	return total, err
}

// reclaimable is what a prune would free that keeps some images.
func (s *Store) reclaimable(ctx context.Context, kept []images.Image) (int64, error) {
	blobs, tops := map[digest.Digest]bool{}, map[string]bool{}
	for _, r := range kept {
		m, config, err := s.read(ctx, r.Target)
		if err != nil {
			return 0, err
		}
		blobs[r.Target.Digest], blobs[m.Config.Digest] = true, true
		tops[config.chainID()] = true
	}
	var total int64
	err := s.client.ContentStore().Walk(ctx, func(info content.Info) error {
		if !blobs[info.Digest] {
			total += info.Size
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	layers, err := s.unneeded(ctx, tops)
	return total + layers, err
}

// unneeded is the size of the layers that neither the given ones nor any
// instance stand on.
func (s *Store) unneeded(ctx context.Context, tops map[string]bool) (int64, error) {
	service := s.client.SnapshotService(snapshotter)
	all, needed := map[string]snapshots.Info{}, map[string]bool{}
	err := service.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		all[info.Name] = info
		if info.Kind != snapshots.KindCommitted {
			tops[info.Name] = true
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	for name := range tops {
		for name != "" && !needed[name] {
			needed[name] = true
			name = all[name].Parent
		}
	}
	var total int64
	for name, info := range all {
		if needed[name] || info.Kind != snapshots.KindCommitted {
			continue
		}
		use, err := service.Usage(ctx, name)
		if err != nil && !errdefs.IsNotFound(err) {
			return 0, err
		}
		total += use.Size
	}
	return total, nil
}
