package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Pull fetches an image from its registry and unpacks it, whether or not one
// of that name is here: the name moves when all is done. Progress, in bytes of
// the layers, may be nil. Who pulls the same name meanwhile shares the work.
func (s *Store) Pull(ctx context.Context, ref string, progress func(done, total int64)) (Image, error) {
	name, err := Normalise(ref)
	if err != nil {
		return Image{}, err
	}
	image, err := s.pulls.do(ctx, name, progress, func(ctx context.Context, progress func(done, total int64)) (image Image, err error) {
		if err := s.pulling.Acquire(ctx, 1); err != nil {
			return Image{}, err
		}
		defer s.pulling.Release(1)
		err = s.work(ctx, func(ctx context.Context) error {
			image, err = s.pull(ctx, name, progress)
			return err
		})
		return image, err
	})
	if err != nil {
		return Image{}, fmt.Errorf("pull image %q: %w", ref, err)
	}
	return image, nil
}

// pull is one pull of a full name under a lease.
func (s *Store) pull(ctx context.Context, name string, progress func(done, total int64)) (Image, error) {
	src, err := s.source(name)
	if err != nil {
		return Image{}, err
	}
	top, err := src.resolve(ctx, name)
	if err != nil {
		return Image{}, err
	}
	target, err := s.pickRemote(ctx, src, top, 0)
	if err != nil {
		return Image{}, err
	}
	data, err := s.fetchSmall(ctx, src, target, manifestMax)
	if err != nil {
		return Image{}, err
	}
	manifest, err := parseManifest(data)
	if err != nil {
		return Image{}, err
	}
	if data, err = s.fetchSmall(ctx, src, manifest.Config, configMax); err != nil {
		return Image{}, err
	}
	config, err := parseConfig(data)
	if err != nil {
		return Image{}, err
	}
	if err := config.check(manifest); err != nil {
		return Image{}, err
	}
	if err := s.fetchLayers(ctx, src, manifest, config, progress); err != nil {
		return Image{}, err
	}
	if err := s.keep(ctx, target, manifest, config); err != nil {
		return Image{}, err
	}
	if err := s.publish(ctx, target, name); err != nil {
		return Image{}, err
	}
	return s.load(ctx, images.Image{Name: name, Target: target})
}

// source is where the blobs of one image come from.
type source struct {
	host     string
	access   RegistryAccess
	resolver remotes.Resolver
	fetcher  remotes.Fetcher
}

func (s *Store) source(name string) (*source, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	host := reference.Domain(named)
	all, err := ways(s.registries, host)
	if err != nil {
		return nil, err
	}
	src := &source{host: host, access: all[len(all)-1].access}
	src.resolver, err = resolver(all)
	return src, err
}

// resolve asks what a name stands for.
func (src *source) resolve(ctx context.Context, name string) (ocispec.Descriptor, error) {
	full, desc, err := src.resolver.Resolve(ctx, name)
	if err == nil {
		src.fetcher, err = src.resolver.Fetcher(ctx, full)
	}
	if err != nil {
		return desc, src.error(err)
	}
	return desc, nil
}

func (src *source) error(err error) error { return registryError(src.host, src.access, err) }

// pickRemote returns the manifest of our platform that a descriptor leads to.
func (s *Store) pickRemote(ctx context.Context, src *source, desc ocispec.Descriptor, depth int) (ocispec.Descriptor, error) {
	if images.IsManifestType(desc.MediaType) {
		return desc, nil
	}
	if !images.IsIndexType(desc.MediaType) || depth >= indexDepthMax {
		return desc, fmt.Errorf("registry %s has no image there, but %q: %w", src.host, desc.MediaType, errdefs.ErrInvalidArgument)
	}
	data, err := s.fetchSmall(ctx, src, desc, manifestMax)
	if err != nil {
		return desc, err
	}
	index, err := unmarshalIndex(data)
	if err != nil {
		return desc, err
	}
	fit, others := choose(index.Manifests)
	if len(fit) == 0 {
		return desc, foreign(others)
	}
	return s.pickRemote(ctx, src, fit[0], depth+1)
}

// choose splits the entries of an index in those that can run here, best
// first, and the platforms of the others. Attestations are neither.
func choose(entries []ocispec.Descriptor) (fit []ocispec.Descriptor, others []ocispec.Platform) {
	match := platform()
	for _, d := range entries {
		switch {
		case isAttestation(d):
		case d.Platform == nil || match.Match(*d.Platform):
			fit = append(fit, d)
		default:
			others = append(others, *d.Platform)
		}
	}
	slices.SortStableFunc(fit, func(a, b ocispec.Descriptor) int {
		switch {
		case a.Platform == nil || b.Platform == nil:
			return 0
		case match.Less(*a.Platform, *b.Platform):
			return -1
		case match.Less(*b.Platform, *a.Platform):
			return 1
		}
		return 0
	})
	return fit, others
}

// isAttestation tells what builders put beside images, such as provenance. Some
// builders name the type of an image's configuration as its artifact type.
func isAttestation(d ocispec.Descriptor) bool {
	artifact := d.ArtifactType != "" && d.ArtifactType != ocispec.MediaTypeImageConfig && d.ArtifactType != images.MediaTypeDockerSchema2Config
	return d.Annotations["vnd.docker.reference.type"] != "" || artifact ||
		d.Platform != nil && d.Platform.OS == "unknown"
}

// fetchSmall fetches a blob into the content store and returns it.
func (s *Store) fetchSmall(ctx context.Context, src *source, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	if err := checkDescriptor(desc, limit); err != nil {
		return nil, err
	}
	if err := s.fetch(ctx, src, desc, nil); err != nil {
		return nil, err
	}
	return s.blob(ctx, desc, limit)
}

// fetchLayers fetches the layers that are not unpacked yet, some at a time,
// and unpacks each when it and those below it are there.
func (s *Store) fetchLayers(ctx context.Context, src *source, m ocispec.Manifest, c configuration, progress func(done, total int64)) error {
	chain := c.chainIDs()
	first, err := s.unpacked(ctx, chain)
	if err != nil {
		return err
	}
	meter := &meter{tell: progress}
	for _, l := range m.Layers[first:] {
		meter.total += l.Size
	}
	if err := s.room("image", meter.total); err != nil {
		return err
	}
	meter.add(0)
	group, ctx := errgroup.WithContext(ctx)
	fetched := make([]chan struct{}, len(chain))
	for i := first; i < len(chain); i++ {
		fetched[i] = make(chan struct{})
	}
	group.Go(func() error {
		for i := first; i < len(chain); i++ {
			select {
			case <-fetched[i]:
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := s.unpackLayer(ctx, m.Layers[i], c.RootFS.DiffIDs[i], chain, i); err != nil {
				return err
			}
		}
		return nil
	})
	slots := make(chan struct{}, fetchesMax)
	for i := first; i < len(chain); i++ {
		group.Go(func() error {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return ctx.Err()
			}
			defer func() { <-slots }()
			if err := s.fetch(ctx, src, m.Layers[i], meter); err != nil {
				return err
			}
			close(fetched[i])
			return nil
		})
	}
	return group.Wait()
}

// fetch brings one blob into the content store, which checks its digest. What
// breaks on the way is tried again from where it broke.
func (s *Store) fetch(ctx context.Context, src *source, desc ocispec.Descriptor, m *meter) error {
	delay := s.retry
	for attempt := 1; ; attempt++ {
		err := s.fetchOnce(ctx, src, desc, m)
		if err == nil || attempt == fetchAttempts || !errdefs.IsUnavailable(err) || ctx.Err() != nil {
			if err != nil {
				s.settle(ctx, ingestOf(desc))
			}
			return err
		}
		if e := after(ctx, delay); e != nil {
			s.settle(ctx, ingestOf(desc))
			return e
		}
		delay *= 2
	}
}

// ingestOf names the write of a blob, so that the next attempt finds it.
func ingestOf(desc ocispec.Descriptor) string { return "capsule-fetch-" + desc.Digest.String() }

// settle ends a write that is given up: it commits what came, which goes with
// the lease. A write that is only closed on our side may still be open in
// containerd when the lease ends, and then leaves a file behind for good.
func (s *Store) settle(ctx context.Context, ingest string) {
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleLimit)
	defer cancel()
	store := s.client.ContentStore()
	if _, err := store.Status(end, ingest); err != nil {
		return // it never began
	}
	w, err := content.OpenWriter(end, store, content.WithRef(ingest))
	if err != nil {
		return
	}
	defer w.Close()
	_ = w.Commit(end, 0, "") // no more can be done
}

func (s *Store) fetchOnce(ctx context.Context, src *source, desc ocispec.Descriptor, m *meter) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(s.stall, func() { cancel(errStalled) })
	defer stall.Stop()
	body, err := src.fetcher.Fetch(ctx, desc)
	if err != nil {
		return src.error(cause(ctx, err))
	}
	defer body.Close()
	counted := &countingReader{ReadCloser: body, stall: stall, limit: s.stall, meter: m}
	ingest := ingestOf(desc)
	err = content.WriteBlob(ctx, s.client.ContentStore(), ingest, counted, desc)
	if counted.err != nil {
		if noRanges(counted.err) {
			// What came is of no use to the next attempt.
			s.settle(ctx, ingest)
		}
		return src.error(cause(ctx, counted.err))
	}
	if err != nil && errors.Is(context.Cause(ctx), errStalled) {
		return src.error(errStalled)
	}
	if err != nil {
		return fmt.Errorf("blob %s: %w", desc.Digest, cause(ctx, err))
	}
	return nil
}

// cause prefers why a context was cancelled.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil {
		return c
	}
	return err
}

// meter adds up the bytes of blobs fetched side by side.
type meter struct {
	mu          sync.Mutex
	done, total int64
	tell        func(done, total int64)
}

func (m *meter) add(n int64) {
	if m == nil || m.tell == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done += n
	m.tell(min(m.done, m.total), m.total)
}

// countingReader counts what comes from a registry, keeps its errors apart
// from those of the content store, and puts off the stall.
type countingReader struct {
	io.ReadCloser
	stall *time.Timer
	limit time.Duration
	meter *meter
	err   error
}

func (r *countingReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.stall.Reset(r.limit)
	r.meter.add(int64(n))
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

// Seek lets a fetch that broke go on where it broke.
func (r *countingReader) Seek(offset int64, whence int) (int64, error) {
	if seeker, ok := r.ReadCloser.(io.Seeker); ok {
		return seeker.Seek(offset, whence)
	}
	return 0, fmt.Errorf("seek: %w", errdefs.ErrNotImplemented)
}
