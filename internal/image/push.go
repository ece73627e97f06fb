package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/google/uuid"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	v1 "capsule/api/capsule/v1"
)

// progressEvery is how often the progress of a push is told.
const progressEvery = 200 * time.Millisecond

// Push reads a docker-save or OCI archive, plain or compressed as a whole, and
// stores its images for our platform, unpacked. With a name, the archive's one
// image gets it instead of those it brings. All or nothing: until every digest
// is checked and every layer unpacked no name moves, and after a failure
// nothing of the archive is left on disk.
func (s *Store) Push(ctx context.Context, r io.Reader, name string, progress func(*v1.Progress)) (*v1.PushResult, error) {
	if progress == nil {
		progress = func(*v1.Progress) {}
	}
	var result *v1.PushResult
	err := s.work(ctx, func(ctx context.Context) (err error) {
		result, err = s.push(ctx, r, name, progress)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("push image%s: %w", quoted(name), err)
	}
	return result, nil
}

func quoted(name string) string {
	if name == "" {
		return ""
	}
	return fmt.Sprintf(" %q", name)
}

func (s *Store) push(ctx context.Context, r io.Reader, name string, progress func(*v1.Progress)) (*v1.PushResult, error) {
	if name != "" {
		if err := checkName(name); err != nil {
			return nil, err
		}
	}
	a, err := s.receive(ctx, r, progress)
	if err != nil {
		return nil, err
	}
	progress(&v1.Progress{Step: "check"})
	found, warnings, err := s.find(ctx, a)
	if err != nil {
		return nil, err
	}
	if err := rename(found, name); err != nil {
		return nil, err
	}
	if err := s.unpackAll(ctx, found, progress); err != nil {
		return nil, err
	}
	result := &v1.PushResult{Warnings: warnings}
	for _, f := range found {
		if err := s.publish(ctx, f.target, f.names...); err != nil {
			return nil, err
		}
		record, err := s.client.ImageService().Get(ctx, f.names[0])
		if err != nil {
			return nil, fmt.Errorf("containerd: %w", err)
		}
		image := s.describe(ctx, record)
		for _, n := range f.names {
			image.Names = append(image.Names, familiar(n))
		}
		result.Images = append(result.Images, image)
		for _, w := range f.config.warnings() {
			result.Warnings = append(result.Warnings, image.Names[0]+": "+w)
		}
	}
	return result, nil
}

// checkName refuses names that can't move.
func checkName(name string) error {
	full, err := Normalise(name)
	if err != nil {
		return err
	}
	if strings.Contains(full, "@") {
		return fmt.Errorf("image name %q has a digest; give a tag: %w", name, errdefs.ErrInvalidArgument)
	}
	return nil
}

// receive puts the members of an archive into the content store.
func (s *Store) receive(ctx context.Context, r io.Reader, progress func(*v1.Progress)) (*archive, error) {
	counted := &receivedReader{r: r, tell: progress}
	plain, err := decompress(counted)
	if err != nil {
		return nil, fmt.Errorf("archive: %w", badStream(err))
	}
	defer plain.Close()
	limited := io.LimitReader(plain, archiveMax+archiveMembersMax*tarOverheadMax)
	a, err := readArchive(limited, func(name string, r io.Reader, size int64, want digest.Digest) (digest.Digest, error) {
		return s.ingest(ctx, name, r, size, want)
	})
	if err != nil {
		return nil, err
	}
	// The sender may still be sending padding, which must not block it.
	if _, err := io.Copy(io.Discard, limited); err != nil {
		return nil, a.broken(err)
	}
	return a, nil
}

// receivedReader tells how much of an archive came.
type receivedReader struct {
	r    io.Reader
	tell func(*v1.Progress)
	done int64
	next time.Time
}

func (c *receivedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.done += int64(n)
	if now := time.Now(); now.After(c.next) || err == io.EOF {
		c.next = now.Add(progressEvery)
		c.tell(&v1.Progress{Step: "receive", Done: c.done})
	}
	return n, err
}

// ingest stores one member as a blob under the lease of ctx.
func (s *Store) ingest(ctx context.Context, name string, r io.Reader, length int64, want digest.Digest) (digest.Digest, error) {
	if err := s.room(name, length); err != nil {
		return "", err
	}
	w, err := s.client.ContentStore().Writer(ctx,
		content.WithRef("capsule-push-"+uuid.NewString()),
		content.WithDescriptor(ocispec.Descriptor{Size: length}))
	if err != nil {
		return "", fmt.Errorf("containerd: %w", err)
	}
	defer w.Close()
	n, copyErr := io.CopyN(w, r, length)
	got := w.Digest()
	// Commit what came even if it is of no use: it goes with the lease. A write
	// that is only closed here may still be open in containerd by then.
	if n > 0 || copyErr == nil {
		if err := w.Commit(ctx, n, got); err != nil && !errdefs.IsAlreadyExists(err) {
			return "", errors.Join(copyErr, fmt.Errorf("containerd: store %s: %w", name, err))
		}
	}
	switch {
	case copyErr != nil:
		return "", fmt.Errorf("store %s: %w", name, copyErr)
	case want != "" && want.Algorithm() != got.Algorithm():
		return "", fmt.Errorf("blob %s: only sha256 is supported in archives: %w", want, errdefs.ErrInvalidArgument)
	case want != "" && got != want:
		return "", fmt.Errorf("blob %s of the archive is damaged: its content is %s: %w", want, got, errdefs.ErrInvalidArgument)
	}
	return got, nil
}

// found is an image of an archive that can run here.
type found struct {
	names    []string // full
	target   ocispec.Descriptor
	manifest ocispec.Manifest
	config   configuration
}

// find returns the images of an archive, and what it leaves out.
func (s *Store) find(ctx context.Context, a *archive) ([]*found, []string, error) {
	f := finder{store: s, archive: a}
	var err error
	if a.index != nil {
		err = f.layout(ctx)
	} else {
		err = f.saved(ctx)
	}
	if err != nil {
		return nil, nil, err
	}
	if len(f.found) == 0 {
		if len(f.others) > 0 {
			return nil, nil, foreign(f.others)
		}
		return nil, nil, fmt.Errorf("archive holds no image: %w", errdefs.ErrInvalidArgument)
	}
	return f.found, f.warnings, nil
}

// finder walks an archive.
type finder struct {
	store    *Store
	archive  *archive
	found    []*found
	others   []ocispec.Platform
	warnings []string
}

// layout finds the images of an OCI layout.
func (f *finder) layout(ctx context.Context) error {
	for _, d := range f.archive.index.Manifests {
		if len(f.found) > archiveImagesMax {
			return fmt.Errorf("archive holds more than %d images: %w", archiveImagesMax, errdefs.ErrInvalidArgument)
		}
		if isAttestation(d) {
			f.leaveOut(d)
			continue
		}
		if err := f.descend(ctx, d, annotatedName(d), 0); err != nil {
			return err
		}
	}
	// Where the index has no names, docker's list may have some.
	for _, image := range f.found {
		if len(image.names) > 0 {
			continue
		}
		for _, saved := range f.archive.saved {
			if m, err := f.archive.at(saved.Config); err == nil && m.digest == image.manifest.Config.Digest {
				if err := image.add(saved.RepoTags...); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// annotatedName is the name that an entry of index.json has; a bare tag is none.
func annotatedName(d ocispec.Descriptor) string {
	if name := d.Annotations[images.AnnotationImageName]; name != "" {
		return name
	}
	if name := d.Annotations[ocispec.AnnotationRefName]; strings.ContainsAny(name, ":/") {
		return name
	}
	return ""
}

// descend finds the image for our platform at or below a descriptor.
func (f *finder) descend(ctx context.Context, d ocispec.Descriptor, name string, depth int) error {
	if depth > indexDepthMax {
		return fmt.Errorf("archive: indexes are nested more than %d deep: %w", indexDepthMax, errdefs.ErrInvalidArgument)
	}
	if images.IsIndexType(d.MediaType) {
		data, err := f.read(ctx, d)
		if err != nil {
			return err
		}
		index, err := unmarshalIndex(data)
		if err != nil {
			return err
		}
		fit, others := choose(index.Manifests)
		f.others = append(f.others, others...)
		for _, entry := range index.Manifests {
			if len(fit) == 0 || entry.Digest != fit[0].Digest {
				f.leaveOut(entry)
			}
		}
		if len(fit) == 0 {
			return nil
		}
		return f.descend(ctx, fit[0], name, depth+1)
	}
	if !images.IsManifestType(d.MediaType) {
		return fmt.Errorf("archive: %s is no image, but %q: %w", d.Digest, d.MediaType, errdefs.ErrInvalidArgument)
	}
	if d.Platform != nil && !platform().Match(*d.Platform) {
		f.others = append(f.others, *d.Platform)
		f.leaveOut(d)
		return nil
	}
	return f.manifest(ctx, d, name)
}

// leaveOut notes what is not stored.
func (f *finder) leaveOut(d ocispec.Descriptor) {
	what := "a manifest"
	switch {
	case isAttestation(d):
		what = "an attestation"
	case d.Platform != nil:
		what = platforms.Format(*d.Platform)
	}
	if warning := "left out: " + what; !slices.Contains(f.warnings, warning) {
		f.warnings = append(f.warnings, warning)
	}
}

// read returns a small blob that the archive brought.
func (f *finder) read(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if err := checkDescriptor(d, configMax); err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	if err := f.has(d); err != nil {
		return nil, err
	}
	return f.store.blob(ctx, d, configMax)
}

// has refuses a descriptor whose blob the archive didn't bring.
func (f *finder) has(d ocispec.Descriptor) error {
	length, ok := f.archive.blobs[d.Digest]
	if !ok {
		return fmt.Errorf("archive lacks blob %s: %w", d.Digest, errdefs.ErrInvalidArgument)
	}
	if length != d.Size {
		return fmt.Errorf("blob %s of the archive has %d bytes, its manifest says %d: %w", d.Digest, length, d.Size, errdefs.ErrInvalidArgument)
	}
	return nil
}

// manifest takes in an image that the archive has a manifest of.
func (f *finder) manifest(ctx context.Context, d ocispec.Descriptor, name string) error {
	data, err := f.read(ctx, d)
	if err != nil {
		return err
	}
	m, err := parseManifest(data)
	if err != nil {
		return err
	}
	for _, l := range m.Layers {
		if err := f.has(l); err != nil {
			return err
		}
	}
	target := ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
	return f.take(ctx, target, m, name)
}

// take checks the configuration of an image and adds it to those found.
func (f *finder) take(ctx context.Context, target ocispec.Descriptor, m ocispec.Manifest, names ...string) error {
	data, err := f.read(ctx, m.Config)
	if err != nil {
		return err
	}
	config, err := parseConfig(data)
	if err != nil {
		return err
	}
	if p := config.platform(); !platform().Match(p) {
		f.others = append(f.others, p)
		f.leaveOut(ocispec.Descriptor{Platform: &p})
		return nil
	}
	if err := config.check(m); err != nil {
		return err
	}
	for _, other := range f.found {
		if other.target.Digest == target.Digest {
			return other.add(names...)
		}
	}
	image := &found{target: target, manifest: m, config: config}
	f.found = append(f.found, image)
	return image.add(names...)
}

// add gives an image further names.
func (f *found) add(names ...string) error {
	for _, name := range names {
		if name == "" {
			continue
		}
		if err := checkName(name); err != nil {
			return fmt.Errorf("archive: %w", err)
		}
		full, err := Normalise(name)
		if err != nil {
			return err
		}
		if !slices.Contains(f.names, full) {
			f.names = append(f.names, full)
		}
	}
	return nil
}

// saved finds the images of docker save's old layout, which has no manifests:
// we write them.
func (f *finder) saved(ctx context.Context) error {
	for _, saved := range f.archive.saved {
		config, err := f.archive.at(saved.Config)
		if err != nil {
			return err
		}
		m := ocispec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2},
			MediaType: ocispec.MediaTypeImageManifest,
			Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: config.digest, Size: config.size},
		}
		for _, name := range saved.Layers {
			layer, err := f.archive.at(name)
			if err != nil {
				return err
			}
			m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: layer.digest, Size: layer.size})
		}
		data, err := json.Marshal(m)
		if err != nil {
			return err
		}
		id, err := f.store.ingest(ctx, "manifest", strings.NewReader(string(data)), int64(len(data)), "")
		if err != nil {
			return err
		}
		target := ocispec.Descriptor{MediaType: m.MediaType, Digest: id, Size: int64(len(data))}
		if err := f.take(ctx, target, m, saved.RepoTags...); err != nil {
			return err
		}
	}
	return nil
}

// rename gives the one image of an archive the name that the operator wants,
// and asks for one where there is none.
func rename(all []*found, name string) error {
	if name != "" && len(all) > 1 {
		return fmt.Errorf("archive holds %d images, so they can't all be %q: %w", len(all), name, errdefs.ErrInvalidArgument)
	}
	owner := map[string]digest.Digest{}
	for _, f := range all {
		if name != "" {
			f.names = nil
			if err := f.add(name); err != nil {
				return err
			}
		}
		if len(f.names) == 0 {
			return fmt.Errorf("archive has no name for image %s: give one, as in \"capsulectl image push FILE --name app:1\": %w", f.target.Digest, errdefs.ErrInvalidArgument)
		}
		for _, n := range f.names {
			if other, taken := owner[n]; taken {
				return fmt.Errorf("archive has two images of the name %q, %s and %s: %w", familiar(n), other, f.target.Digest, errdefs.ErrInvalidArgument)
			}
			owner[n] = f.target.Digest
		}
	}
	return nil
}

// unpackAll unpacks all images, and keeps what they need. Its progress is in
// bytes of the layers as they came, as that of every step.
func (s *Store) unpackAll(ctx context.Context, all []*found, progress func(*v1.Progress)) error {
	var total, done int64
	for _, f := range all {
		for _, layer := range f.manifest.Layers {
			total += layer.Size
		}
	}
	for _, f := range all {
		chain := f.config.chainIDs()
		for i, layer := range f.manifest.Layers {
			progress(&v1.Progress{Step: "unpack", Done: done, Total: total})
			if err := s.unpackLayer(ctx, layer, f.config.RootFS.DiffIDs[i], chain, i); err != nil {
				return err
			}
			done += layer.Size
		}
		if err := s.keep(ctx, f.target, f.manifest, f.config); err != nil {
			return err
		}
	}
	progress(&v1.Progress{Step: "unpack", Done: done, Total: total})
	return nil
}
