package image

import (
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestIsAttestation(t *testing.T) {
	for _, c := range []struct {
		d    ocispec.Descriptor
		want bool
	}{
		{ocispec.Descriptor{}, false},
		{ocispec.Descriptor{ArtifactType: ocispec.MediaTypeImageConfig}, false},
		{ocispec.Descriptor{ArtifactType: "application/vnd.docker.container.image.v1+json"}, false},
		{ocispec.Descriptor{ArtifactType: "application/vnd.in-toto+json"}, true},
		{ocispec.Descriptor{Platform: &ocispec.Platform{OS: "unknown"}}, true},
		{ocispec.Descriptor{Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"}}, true},
	} {
		if got := isAttestation(c.d); got != c.want {
			t.Errorf("%+v: got %v", c.d, got)
		}
	}
}
