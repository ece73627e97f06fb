package image

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

// Normalise turns a reference as an operator writes it into the full name that
// the image is stored under: "web:1" is "docker.io/library/web:1", and a
// missing tag is "latest".
func Normalise(ref string) (string, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return "", fmt.Errorf("image reference %q: %w: %w", ref, err, errdefs.ErrInvalidArgument)
	}
	return named.String(), nil
}

// familiar is the short form of a full name, as an operator writes it.
func familiar(name string) string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.FamiliarString(named)
}
