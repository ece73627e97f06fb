package image

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/semaphore"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "capsule/api/capsule/v1"
)

// Store is the image cache of the machine, in containerd's namespace of the
// client. A record of an image points at the manifest of our platform; the
// layers are kept unpacked only.
type Store struct {
	client     *containerd.Client
	registries Registries
	pulls      flights
	pulling    *semaphore.Weighted
	unpacking  *semaphore.Weighted
	layers     keyedLock // of one chain ID
	recovered  sync.Mutex
	clean      bool
	blobDir    string // of containerd's content store, once known
	stall      time.Duration
	retry      time.Duration
}

// Open returns the store in a containerd. Registries may be nil.
func Open(client *containerd.Client, registries Registries) *Store {
	return &Store{
		client:     client,
		registries: registries,
		pulling:    semaphore.NewWeighted(pullsMax),
		unpacking:  semaphore.NewWeighted(unpacksMax),
		stall:      stallLimit,
		retry:      retryDelay,
	}
}

// leaseLabel marks leases of this package: those of a daemon that died are
// released by the next one.
const leaseLabel = "capsule.image"

// work runs fn with a lease that keeps what it makes until it returns. After
// a failure nothing of it is left on disk.
func (s *Store) work(ctx context.Context, fn func(ctx context.Context) error) error {
	ctx = quiet(ctx)
	if err := s.recover(ctx); err != nil {
		return err
	}
	manager := s.client.LeasesService()
	lease, err := manager.Create(ctx, leases.WithRandomID(), leases.WithExpiration(leaseLife),
		leases.WithLabel(leaseLabel, "work"))
	if err != nil {
		return fmt.Errorf("containerd: %w", err)
	}
	err = fn(leases.WithLease(ctx, lease.ID))
	var options []leases.DeleteOpt
	if err != nil {
		options = append(options, leases.SynchronousDelete)
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpLimit)
	defer cancel()
	if e := manager.Delete(end, lease, options...); e != nil && !errdefs.IsNotFound(e) && err == nil {
		return fmt.Errorf("containerd: release what is not needed: %w", e)
	}
	return err
}

// recover releases, once, what a daemon before this one left half done.
func (s *Store) recover(ctx context.Context) error {
	s.recovered.Lock()
	defer s.recovered.Unlock()
	if s.clean {
		return nil
	}
	manager := s.client.LeasesService()
	old, err := manager.List(ctx, fmt.Sprintf("labels.%q==work", leaseLabel))
	if err != nil {
		return fmt.Errorf("containerd: %w", err)
	}
	for i, lease := range old {
		var options []leases.DeleteOpt
		if i == len(old)-1 {
			options = append(options, leases.SynchronousDelete)
		}
		if err := manager.Delete(ctx, lease, options...); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("containerd: %w", err)
		}
	}
	if s.blobDir, err = s.contentDir(ctx); err != nil {
		return err
	}
	s.clean = true
	return nil
}

// contentDir asks containerd where it keeps blobs.
func (s *Store) contentDir(ctx context.Context) (string, error) {
	answer, err := s.client.IntrospectionService().Plugins(ctx, "type==io.containerd.content.v1")
	if err != nil {
		return "", fmt.Errorf("containerd: %w", err)
	}
	for _, p := range answer.GetPlugins() {
		if dir := p.GetExports()["root"]; dir != "" {
			return dir, nil
		}
	}
	return "", fmt.Errorf("containerd says not where it keeps blobs: %w", errdefs.ErrInternal)
}

// room refuses blobs that don't fit on the disk.
func (s *Store) room(what string, length int64) error {
	free, err := freeBytes(s.blobDir)
	if err != nil {
		return err
	}
	if length > free-spaceReserve {
		return fmt.Errorf("%s has %s, the image store has %s free: %w", what, size(length), size(max(0, free-spaceReserve)), errdefs.ErrResourceExhausted)
	}
	return nil
}

// quiet drops what containerd's libraries log: what matters is in our errors.
func quiet(ctx context.Context) context.Context {
	logger := logrus.New()
	logger.SetLevel(logrus.PanicLevel)
	return log.WithLogger(ctx, logrus.NewEntry(logger))
}

// Get returns an image that is here, unpacked. It asks no registry.
func (s *Store) Get(ctx context.Context, ref string) (Image, error) {
	name, err := Normalise(ref)
	if err != nil {
		return Image{}, err
	}
	record, err := s.client.ImageService().Get(ctx, name)
	if errdefs.IsNotFound(err) {
		return Image{}, fmt.Errorf("image %q is not here: %w", ref, errdefs.ErrNotFound)
	}
	if err != nil {
		return Image{}, fmt.Errorf("image %q: containerd: %w", ref, err)
	}
	image, err := s.load(ctx, record)
	if err != nil {
		return Image{}, fmt.Errorf("image %q: %w", ref, err)
	}
	return image, nil
}

// load reads the image that a record points at.
func (s *Store) load(ctx context.Context, record images.Image) (Image, error) {
	manifest, config, err := s.read(ctx, record.Target)
	if err != nil {
		return Image{}, err
	}
	if err := config.check(manifest); err != nil {
		return Image{}, err
	}
	chain := config.chainID()
	if _, err := s.client.SnapshotService(snapshotter).Stat(ctx, chain); err != nil {
		return Image{}, fmt.Errorf("its layers: %w", err)
	}
	health, _ := config.health()
	return Image{
		Health:   health,
		Name:     record.Name,
		Digest:   record.Target.Digest.String(),
		ChainID:  chain,
		Config:   config.Config,
		Warnings: config.warnings(),
	}, nil
}

// read returns a manifest of our platform and its configuration.
func (s *Store) read(ctx context.Context, target ocispec.Descriptor) (ocispec.Manifest, configuration, error) {
	data, err := s.blob(ctx, target, manifestMax)
	if err != nil {
		return ocispec.Manifest{}, configuration{}, err
	}
	manifest, err := parseManifest(data)
	if err != nil {
		return manifest, configuration{}, err
	}
	if data, err = s.blob(ctx, manifest.Config, configMax); err != nil {
		return manifest, configuration{}, err
	}
	config, err := parseConfig(data)
	return manifest, config, err
}

// blob reads a small blob that is here.
func (s *Store) blob(ctx context.Context, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	info, err := s.client.ContentStore().Info(ctx, desc.Digest)
	if err != nil {
		return nil, err
	}
	if info.Size > limit {
		return nil, fmt.Errorf("%s has %d bytes, the limit is %d: %w", desc.Digest, info.Size, limit, errdefs.ErrInvalidArgument)
	}
	desc.Size = info.Size
	return content.ReadBlob(ctx, s.client.ContentStore(), desc)
}

// chainID names the snapshot of the topmost layer.
func (c configuration) chainID() string {
	return identity.ChainID(c.RootFS.DiffIDs).String()
}

// chainIDs name the snapshots of all layers, bottom first.
func (c configuration) chainIDs() []digest.Digest {
	return identity.ChainIDs(slices.Clone(c.RootFS.DiffIDs))
}

// publish makes names stand for an unpacked image.
func (s *Store) publish(ctx context.Context, target ocispec.Descriptor, names ...string) error {
	service := s.client.ImageService()
	for _, name := range names {
		record := images.Image{Name: name, Target: target}
		_, err := service.Create(ctx, record)
		if errdefs.IsAlreadyExists(err) {
			_, err = service.Update(ctx, record, "target")
		}
		if err != nil {
			return fmt.Errorf("containerd: image %q: %w", familiar(name), err)
		}
	}
	return nil
}

// List returns all images, each once with all its names.
func (s *Store) List(ctx context.Context) ([]*v1.Image, error) {
	records, err := s.client.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: containerd: %w", err)
	}
	return s.describeAll(ctx, records), nil
}

// describeAll gives each image once, with all names that records have for it.
func (s *Store) describeAll(ctx context.Context, records []images.Image) []*v1.Image {
	byDigest := map[digest.Digest]*v1.Image{}
	list := []*v1.Image{}
	for _, record := range records {
		image := byDigest[record.Target.Digest]
		if image == nil {
			image = s.describe(ctx, record)
			byDigest[record.Target.Digest] = image
			list = append(list, image)
		}
		image.Names = append(image.Names, familiar(record.Name))
	}
	for _, image := range list {
		slices.Sort(image.Names)
	}
	slices.SortFunc(list, func(a, b *v1.Image) int { return strings.Compare(a.Names[0], b.Names[0]) })
	return list
}

// describe is an entry of the list; what of it can't be read is left out.
func (s *Store) describe(ctx context.Context, record images.Image) *v1.Image {
	image := &v1.Image{
		Digest:    record.Target.Digest.String(),
		CreatedAt: timestamppb.New(record.CreatedAt),
	}
	manifest, config, err := s.read(ctx, record.Target)
	if err != nil {
		return image
	}
	image.Size = record.Target.Size + manifest.Config.Size
	for _, l := range manifest.Layers {
		image.Size += l.Size
	}
	if config.Created != nil && !config.Created.IsZero() {
		image.CreatedAt = timestamppb.New(*config.Created)
	}
	return image
}

// after waits, or until ctx ends.
func after(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// unmarshalIndex reads an index of either form.
func unmarshalIndex(data []byte) (ocispec.Index, error) {
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return index, fmt.Errorf("image index: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if len(index.Manifests) > indexEntriesMax {
		return index, fmt.Errorf("image index lists %d manifests, the limit is %d: %w", len(index.Manifests), indexEntriesMax, errdefs.ErrInvalidArgument)
	}
	return index, nil
}
