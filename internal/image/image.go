// Package image owns the image cache: pulling, side-loading, listing and
// pruning images in containerd's store. It never runs anything.
package image

import (
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	v1 "capsule/api/capsule/v1"
)

// Image is an image of this machine's platform whose layers are all unpacked.
type Image struct {
	Name   string // reference that it was asked for by, normalised
	Digest string // of the platform's manifest
	// ChainID names the snapshot of its topmost layer.
	ChainID string
	Config  ocispec.ImageConfig
	// Health is the image's HEALTHCHECK, nil without one.
	Health *v1.Health
	// Warnings tell what of the image is not honoured (volumes, …).
	Warnings []string
}
