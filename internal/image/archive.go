package image

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// archive is what the members of an image archive say about themselves. Their
// content goes to a sink as they come, so that an archive of any size takes
// little memory.
type archive struct {
	index    *ocispec.Index    // of index.json, an OCI layout
	saved    []savedImage      // of manifest.json, docker save
	members  map[string]member // by path
	links    map[string]string // path to path
	blobs    map[digest.Digest]int64
	count    int
	received int64
}

// member is a file of the archive that is in the sink.
type member struct {
	digest digest.Digest
	size   int64
}

// savedImage is an entry of manifest.json.
type savedImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// sink stores a member of known size and returns its digest. With a wanted
// digest other content must be refused.
type sink func(name string, r io.Reader, size int64, want digest.Digest) (digest.Digest, error)

// readArchive reads an uncompressed archive of either kind to its end.
func readArchive(r io.Reader, store sink) (*archive, error) {
	a := &archive{
		members: map[string]member{},
		links:   map[string]string{},
		blobs:   map[digest.Digest]int64{},
	}
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, a.broken(err)
		}
		if err := a.member(h, in, store); err != nil {
			return nil, err
		}
	}
	if a.index == nil && a.saved == nil {
		if a.count == 0 {
			return nil, fmt.Errorf("archive is empty: %w", errdefs.ErrInvalidArgument)
		}
		return nil, fmt.Errorf("archive has neither index.json nor manifest.json: it is no image archive, or ends early: %w", errdefs.ErrInvalidArgument)
	}
	return a, nil
}

// broken says what a read error of the tar means.
func (a *archive) broken(err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("archive ends early: %w", errdefs.ErrInvalidArgument)
	case errors.Is(err, tar.ErrHeader) && a.count == 0:
		return fmt.Errorf("not a tar archive of an image: %w", errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("archive: %w", badStream(err))
}

// member takes one member in.
func (a *archive) member(h *tar.Header, r io.Reader, store sink) error {
	a.count++
	if a.count > archiveMembersMax {
		return fmt.Errorf("archive has more than %d members: %w", archiveMembersMax, errdefs.ErrInvalidArgument)
	}
	name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
	switch h.Typeflag {
	case tar.TypeReg:
	case tar.TypeSymlink:
		a.links[name] = strings.TrimPrefix(path.Clean("/"+path.Join(path.Dir(name), h.Linkname)), "/")
		return nil
	case tar.TypeLink:
		a.links[name] = strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")
		return nil
	default:
		return nil
	}
	if h.Size > archiveMax-a.received {
		return fmt.Errorf("archive has more than %s: %w", size(archiveMax), errdefs.ErrInvalidArgument)
	}
	a.received += h.Size
	switch name {
	case "index.json":
		data, err := a.small(h, r)
		if err != nil {
			return err
		}
		index, err := unmarshalIndex(data)
		a.index = &index
		return err
	case "manifest.json":
		data, err := a.small(h, r)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(data, &a.saved); err != nil {
			return fmt.Errorf("archive: manifest.json: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		if len(a.saved) == 0 || len(a.saved) > archiveImagesMax {
			return fmt.Errorf("archive: manifest.json lists %d images, 1 to %d are allowed: %w", len(a.saved), archiveImagesMax, errdefs.ErrInvalidArgument)
		}
		return nil
	case "oci-layout", "repositories":
		return nil
	}
	return a.blob(name, h.Size, r, store)
}

// blob sends a member to the sink; one below blobs/ names its own digest.
func (a *archive) blob(name string, length int64, r io.Reader, store sink) error {
	want, ok := wanted(name)
	if !ok {
		return nil // no blob, whatever it is
	}
	guarded := &sourceReader{r: r}
	got, err := store(name, guarded, length, want)
	if guarded.err != nil {
		return a.broken(guarded.err)
	}
	if err != nil {
		return err
	}
	a.members[name] = member{got, length}
	a.blobs[got] = length
	return nil
}

// wanted is the digest that a path below blobs/ promises; other paths promise
// nothing. It is not ok where the path should, but holds no digest.
func wanted(name string) (d digest.Digest, ok bool) {
	rest, ok := strings.CutPrefix(name, "blobs/")
	if !ok {
		return "", true
	}
	algorithm, encoded, _ := strings.Cut(rest, "/")
	d = digest.NewDigestFromEncoded(digest.Algorithm(algorithm), encoded)
	return d, d.Validate() == nil
}

// small reads a member that must fit in memory.
func (a *archive) small(h *tar.Header, r io.Reader) ([]byte, error) {
	if h.Size > manifestMax {
		return nil, fmt.Errorf("archive: %s has %d bytes, the limit is %d: %w", h.Name, h.Size, manifestMax, errdefs.ErrInvalidArgument)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, a.broken(err)
	}
	return data, nil
}

// at returns the member at a path, through links.
func (a *archive) at(name string) (member, error) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	for range len(a.links) + 1 {
		if m, ok := a.members[name]; ok {
			return m, nil
		}
		target, ok := a.links[name]
		if !ok {
			break
		}
		name = target
	}
	return member{}, fmt.Errorf("archive has no %s: %w", name, errdefs.ErrInvalidArgument)
}

// sourceReader keeps errors of the archive apart from those of the sink.
type sourceReader struct {
	r   io.Reader
	err error
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}
