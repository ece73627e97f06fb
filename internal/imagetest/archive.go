package imagetest

import (
	"archive/tar"
	"bytes"
	"fmt"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ArchiveFile is one member of an image archive.
type ArchiveFile struct {
	Name string
	Data []byte
}

// Archive writes members as a tar, in order.
func Archive(files ...ArchiveFile) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := tar.Header{Typeflag: tar.TypeReg, Name: f.Name, Mode: 0o644, Size: int64(len(f.Data)), ModTime: Time}
		if err := w.WriteHeader(&h); err != nil {
			panic(fmt.Sprintf("imagetest: archive: %v", err))
		}
		if _, err := w.Write(f.Data); err != nil {
			panic(fmt.Sprintf("imagetest: archive: %v", err))
		}
	}
	if err := w.Close(); err != nil {
		panic(fmt.Sprintf("imagetest: archive: %v", err))
	}
	return buf.Bytes()
}

// OCI is an OCI layout as a tar whose index names the image; name may be "".
func OCI(image Image, name string) []byte {
	built := image.Build()
	return OCILayout(Named(built.Manifest.Descriptor, name), built.Blobs()...)
}

// Named gives a descriptor of an index the annotations that say its name.
func Named(desc ocispec.Descriptor, name string) ocispec.Descriptor {
	if name != "" {
		desc.Annotations = map[string]string{
			"io.containerd.image.name": name,
			ocispec.AnnotationRefName:  name,
		}
	}
	return desc
}

// OCILayout is an OCI layout as a tar: one top descriptor and some blobs, which
// need not be all that it needs.
func OCILayout(top ocispec.Descriptor, blobs ...Blob) []byte {
	files := []ArchiveFile{{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)}}
	for _, b := range blobs {
		files = append(files, ArchiveFile{"blobs/" + b.Digest.Algorithm().String() + "/" + b.Digest.Encoded(), b.Data})
	}
	files = append(files, ArchiveFile{"index.json", mustJSON(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		Manifests: []ocispec.Descriptor{top},
	})})
	return Archive(files...)
}

// dockerManifest is the manifest.json of docker save.
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// DockerSave is what docker save of version 25 and later writes, which is an
// OCI layout too.
func DockerSave(image Image, tags ...string) []byte {
	built := image.Build()
	path := func(b Blob) string { return "blobs/sha256/" + b.Digest.Encoded() }
	m := dockerManifest{Config: path(built.Config), RepoTags: tags}
	var files []ArchiveFile
	for _, b := range built.Blobs() {
		files = append(files, ArchiveFile{path(b), b.Data})
	}
	for _, l := range built.Layers {
		m.Layers = append(m.Layers, path(l))
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, tag := range tags {
		index.Manifests = append(index.Manifests, Named(built.Manifest.Descriptor, tag))
	}
	if len(tags) == 0 {
		index.Manifests = append(index.Manifests, built.Manifest.Descriptor)
	}
	files = append(files,
		ArchiveFile{"index.json", mustJSON(index)},
		ArchiveFile{"manifest.json", mustJSON([]dockerManifest{m})},
		ArchiveFile{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)})
	return Archive(files...)
}

// OldDockerSave is what docker save wrote up to version 24, without the file
// "repositories": "<config>.json" and "<id>/layer.tar", layers uncompressed.
func OldDockerSave(image Image, tags ...string) []byte {
	config := NewBlob("", image.ConfigJSON())
	m := dockerManifest{Config: config.Digest.Encoded() + ".json", RepoTags: tags}
	files := []ArchiveFile{{m.Config, config.Data}}
	for i, l := range image.Layers {
		id := NewBlob("", fmt.Appendf(nil, "%d %s", i, l.DiffID())).Digest.Encoded()
		files = append(files,
			ArchiveFile{id + "/VERSION", []byte("1.0")},
			ArchiveFile{id + "/layer.tar", l.Tar()})
		m.Layers = append(m.Layers, id+"/layer.tar")
	}
	files = append(files, ArchiveFile{"manifest.json", mustJSON([]dockerManifest{m})})
	return Archive(files...)
}
