package imagetest

import (
	"encoding/json"
	"fmt"
	"runtime"

	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is an image of one platform.
type Image struct {
	Layers []*Layer
	Config ocispec.ImageConfig
	// Extra keys of the "config" object of the image's configuration, such as
	// "Healthcheck", that the OCI type doesn't know.
	Extra map[string]any
	// Docker writes docker's media types instead of OCI's.
	Docker bool
	// Architecture is this machine's when empty.
	Architecture string
}

// Blob is one addressed piece of an image.
type Blob struct {
	ocispec.Descriptor
	Data []byte
}

// Built is an image turned into bytes.
type Built struct {
	Manifest Blob
	Config   Blob
	Layers   []Blob
}

// Blobs are all its pieces, layers first.
func (b Built) Blobs() []Blob {
	return append(append([]Blob(nil), b.Layers...), b.Config, b.Manifest)
}

// Digest of the manifest.
func (b Built) Digest() string { return b.Manifest.Digest.String() }

// NewBlob addresses bytes.
func NewBlob(mediaType string, data []byte) Blob {
	return Blob{
		Descriptor: ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))},
		Data:       data,
	}
}

// Build turns an image into bytes, the same ones each time.
func (i Image) Build() Built {
	var built Built
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: i.manifestType()}
	for _, l := range i.Layers {
		blob := NewBlob(l.mediaType(i.Docker), l.Blob())
		built.Layers = append(built.Layers, blob)
		manifest.Layers = append(manifest.Layers, blob.Descriptor)
	}
	if manifest.Layers == nil {
		manifest.Layers = []ocispec.Descriptor{}
	}
	built.Config = NewBlob(i.configType(), i.ConfigJSON())
	manifest.Config = built.Config.Descriptor
	built.Manifest = NewBlob(i.manifestType(), mustJSON(manifest))
	built.Manifest.Platform = &ocispec.Platform{OS: "linux", Architecture: i.architecture()}
	return built
}

// ConfigJSON is the image's configuration as it is distributed.
func (i Image) ConfigJSON() []byte {
	config := map[string]any{}
	if err := json.Unmarshal(mustJSON(i.Config), &config); err != nil {
		panic(fmt.Sprintf("imagetest: config: %v", err))
	}
	for key, value := range i.Extra {
		config[key] = value
	}
	ids := []digest.Digest{}
	for _, l := range i.Layers {
		ids = append(ids, l.DiffID())
	}
	return mustJSON(map[string]any{
		"architecture": i.architecture(),
		"os":           "linux",
		"created":      Time.UTC(),
		"config":       config,
		"rootfs":       map[string]any{"type": "layers", "diff_ids": ids},
	})
}

func (i Image) architecture() string {
	if i.Architecture == "" {
		return runtime.GOARCH
	}
	return i.Architecture
}

func (i Image) manifestType() string {
	if i.Docker {
		return "application/vnd.docker.distribution.manifest.v2+json"
	}
	return ocispec.MediaTypeImageManifest
}

func (i Image) configType() string {
	if i.Docker {
		return "application/vnd.docker.container.image.v1+json"
	}
	return ocispec.MediaTypeImageConfig
}

// Index is an index over manifests.
func Index(manifests ...ocispec.Descriptor) Blob {
	return NewBlob(ocispec.MediaTypeImageIndex, mustJSON(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: manifests,
	}))
}

// Attestation describes a manifest of BuildKit's provenance for another one;
// its blob does not exist.
func Attestation(of Blob) ocispec.Descriptor {
	desc := NewBlob(ocispec.MediaTypeImageManifest, []byte("attestation of "+of.Digest)).Descriptor
	desc.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	desc.Annotations = map[string]string{
		"vnd.docker.reference.type":   "attestation-manifest",
		"vnd.docker.reference.digest": of.Digest.String(),
	}
	return desc
}

func mustJSON(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("imagetest: %v", err))
	}
	return data
}
