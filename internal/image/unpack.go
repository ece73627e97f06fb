package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/google/uuid"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// unpacked counts the lowest layers of a chain that are unpacked already, and
// keeps them under the lease of ctx.
func (s *Store) unpacked(ctx context.Context, chain []digest.Digest) (int, error) {
	lease, _ := leases.FromContext(ctx)
	for n := len(chain); n > 0; n-- {
		id := chain[n-1].String()
		// First keep it, then look: the other way round it could go between.
		resource := leases.Resource{ID: id, Type: "snapshots/" + snapshotter}
		if err := s.client.LeasesService().AddResource(ctx, leases.Lease{ID: lease}, resource); err != nil {
			return 0, fmt.Errorf("containerd: keep layer: %w", err)
		}
		_, err := s.client.SnapshotService(snapshotter).Stat(ctx, id)
		if err == nil {
			return n, nil
		}
		if !errdefs.IsNotFound(err) {
			return 0, fmt.Errorf("containerd: layer: %w", err)
		}
	}
	return 0, nil
}

// unpackLayer makes layer i of a chain from its blob, unless it is there.
func (s *Store) unpackLayer(ctx context.Context, blob ocispec.Descriptor, diffID digest.Digest, chain []digest.Digest, i int) error {
	name, parent := chain[i].String(), ""
	if i > 0 {
		parent = chain[i-1].String()
	}
	unlock, err := s.layers.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	if n, err := s.unpacked(ctx, chain[:i+1]); err != nil || n == i+1 {
		return err
	}
	if err := s.unpacking.Acquire(ctx, 1); err != nil {
		return err
	}
	defer s.unpacking.Release(1)

	snapshots := s.client.SnapshotService(snapshotter)
	key := "unpack-" + uuid.NewString()
	mounts, err := snapshots.Prepare(ctx, key, parent)
	if err != nil {
		return fmt.Errorf("containerd: layer %s: %w", blob.Digest, err)
	}
	err = s.writeLayer(ctx, blob, diffID, mounts)
	if err == nil {
		err = snapshots.Commit(ctx, name, key)
		if errdefs.IsAlreadyExists(err) {
			err = nil
		} else if err == nil {
			return nil
		}
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpLimit)
	defer cancel()
	if e := snapshots.Remove(end, key); e != nil && !errdefs.IsNotFound(e) {
		err = errors.Join(err, fmt.Errorf("containerd: layer %s: %w", blob.Digest, e))
	}
	return err
}

// writeLayer fills the snapshot that mounts describe.
func (s *Store) writeLayer(ctx context.Context, blob ocispec.Descriptor, diffID digest.Digest, mounts []mount.Mount) error {
	dir, below, err := layerFiles(mounts)
	if err != nil {
		return err
	}
	at, err := s.client.ContentStore().ReaderAt(ctx, blob)
	if err != nil {
		return fmt.Errorf("containerd: layer %s: %w", blob.Digest, err)
	}
	defer at.Close()
	w := layerWriter{
		blob: blob.Digest, diffID: diffID, dir: dir, lower: below,
		free: func() (int64, error) { return freeBytes(dir) },
	}
	return w.write(ctx, content.NewReader(at))
}

// layerFiles finds in the mounts of a snapshot that is being made its folder
// and the files of the layers below it, topmost first.
func layerFiles(mounts []mount.Mount) (dir string, below []string, err error) {
	for _, m := range mounts {
		switch {
		case m.Type == "erofs":
			below = append(below, m.Source)
		case strings.HasPrefix(m.Type, "mkfs/"), m.Type == "bind":
			dir = filepath.Dir(m.Source)
		default:
			for _, option := range m.Options {
				if upper, ok := strings.CutPrefix(option, "upperdir="); ok && filepath.IsAbs(upper) {
					dir = filepath.Dir(upper)
				}
			}
		}
	}
	if dir == "" {
		return "", nil, fmt.Errorf("containerd: no folder of a new layer in %v: %w", mounts, errdefs.ErrInternal)
	}
	if _, err := os.Stat(filepath.Join(dir, ".erofslayer")); err != nil {
		return "", nil, fmt.Errorf("containerd: %s is no layer of its erofs snapshotter: %w", dir, err)
	}
	return dir, below, nil
}

// keep ties the parts of an image together for containerd's garbage
// collection: manifest, configuration, topmost snapshot. Compressed layers are
// not kept: once unpacked they would only take space.
func (s *Store) keep(ctx context.Context, target ocispec.Descriptor, m ocispec.Manifest, c configuration) error {
	for _, label := range []struct {
		blob       digest.Digest
		key, value string
	}{
		{target.Digest, "containerd.io/gc.ref.content.config", m.Config.Digest.String()},
		{m.Config.Digest, "containerd.io/gc.ref.snapshot." + snapshotter, c.chainID()},
	} {
		info := content.Info{Digest: label.blob, Labels: map[string]string{label.key: label.value}}
		if _, err := s.client.ContentStore().Update(ctx, info, "labels."+label.key); err != nil {
			return fmt.Errorf("containerd: keep %s: %w", label.blob, err)
		}
	}
	return nil
}
