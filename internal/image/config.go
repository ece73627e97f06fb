package image

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// configuration is an image's configuration with the keys of docker's form
// that the OCI type doesn't know.
type configuration struct {
	ocispec.Image
	healthcheck *healthcheck
	shell       []string // of lines in the image's own commands
}

// parseConfig reads a configuration of either form; they differ in nothing
// that we need.
func parseConfig(data []byte) (configuration, error) {
	var c configuration
	if err := json.Unmarshal(data, &c.Image); err != nil {
		return c, fmt.Errorf("image configuration: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	var docker struct {
		Config struct {
			Healthcheck *healthcheck
			Shell       []string
		} `json:"config"`
	}
	if err := json.Unmarshal(data, &docker); err != nil {
		return c, fmt.Errorf("image configuration: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	c.healthcheck, c.shell = docker.Config.Healthcheck, docker.Config.Shell
	return c, nil
}

// warnings tell what of the image is not honoured.
func (c configuration) warnings() []string {
	var warnings []string
	if _, warning := c.health(); warning != "" {
		warnings = append(warnings, warning)
	}
	volumes := make([]string, 0, len(c.Config.Volumes))
	for path := range c.Config.Volumes {
		volumes = append(volumes, path)
	}
	slices.Sort(volumes)
	for _, path := range volumes {
		warnings = append(warnings, fmt.Sprintf("data in %s, a VOLUME of the image, is not kept when the workload is made again", path))
	}
	return warnings
}

// check refuses what can never run here.
func (c configuration) check(m ocispec.Manifest) error {
	if !platform().Match(c.platform()) {
		return foreign([]ocispec.Platform{c.platform()})
	}
	if c.RootFS.Type != "" && c.RootFS.Type != "layers" {
		return fmt.Errorf("image has a root file system of unknown type %q: %w", c.RootFS.Type, errdefs.ErrInvalidArgument)
	}
	for _, id := range c.RootFS.DiffIDs {
		if err := id.Validate(); err != nil {
			return fmt.Errorf("image configuration: diff ID %q: %w: %w", id, err, errdefs.ErrInvalidArgument)
		}
	}
	switch layers, ids := len(m.Layers), len(c.RootFS.DiffIDs); {
	case layers != ids:
		return fmt.Errorf("image has %d layers, but its configuration lists %d: %w", layers, ids, errdefs.ErrInvalidArgument)
	case layers == 0:
		return fmt.Errorf("image has no layers, so nothing to run: %w", errdefs.ErrInvalidArgument)
	case layers > layersMax:
		return fmt.Errorf("image has %d layers, more than %d: %w", layers, layersMax, errdefs.ErrInvalidArgument)
	}
	return nil
}

// platform of the configuration; what an old builder left out is ours.
func (c configuration) platform() ocispec.Platform {
	p := c.Platform
	if p.OS == "" {
		p.OS = "linux"
	}
	if p.Architecture == "" {
		p.Architecture = here().Architecture
	}
	return p
}

// here is the platform that images must have.
func here() ocispec.Platform {
	p := platforms.DefaultSpec()
	p.OS, p.OSVersion, p.OSFeatures = "linux", "", nil
	return platforms.Normalize(p)
}

// platform matches what runs here, a lower variant of the processor included.
func platform() platforms.MatchComparer { return platforms.Only(here()) }

// foreign is the refusal of an image that has only other platforms.
func foreign(has []ocispec.Platform) error {
	var names []string
	for _, p := range has {
		if name := platforms.Format(p); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return fmt.Errorf("image has %s, this capsule is %s: %w",
		strings.Join(names, ", "), platforms.Format(here()), errdefs.ErrFailedPrecondition)
}

// parseManifest reads and checks a manifest of either form.
func parseManifest(data []byte) (ocispec.Manifest, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return m, fmt.Errorf("image manifest: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if !configTypes[m.Config.MediaType] {
		return m, fmt.Errorf("not a container image: its configuration has type %q: %w", m.Config.MediaType, errdefs.ErrInvalidArgument)
	}
	if err := checkDescriptor(m.Config, configMax); err != nil {
		return m, fmt.Errorf("image configuration: %w", err)
	}
	for i, l := range m.Layers {
		if err := checkDescriptor(l, layerMax); err != nil {
			return m, fmt.Errorf("layer %d: %w", i+1, err)
		}
		if !strings.Contains(l.MediaType, "tar") || strings.Contains(l.MediaType, "encrypted") {
			return m, fmt.Errorf("layer %s has type %q, which is not supported: %w", l.Digest, l.MediaType, errdefs.ErrInvalidArgument)
		}
	}
	return m, nil
}

// checkDescriptor refuses a malformed digest and a size beyond the limit.
func checkDescriptor(d ocispec.Descriptor, limit int64) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w: %w", d.Digest, err, errdefs.ErrInvalidArgument)
	}
	if d.Digest.Algorithm() != digest.SHA256 && d.Digest.Algorithm() != digest.SHA512 {
		return fmt.Errorf("digest %q is of an unknown kind: %w", d.Digest, errdefs.ErrInvalidArgument)
	}
	if d.Size < 0 || d.Size > limit {
		return fmt.Errorf("%s has %d bytes, the limit is %d: %w", d.Digest, d.Size, limit, errdefs.ErrInvalidArgument)
	}
	return nil
}
