package image

import (
	"time"

	"github.com/containerd/containerd/v2/core/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Limits on images. Those on size keep a broken or hostile image from filling
// the disk or the memory.
const (
	layersMax      = 127     // overlayfs and docker allow about as many
	manifestMax    = 4 << 20 // bytes of a manifest or an index, as registries have it
	configMax      = 8 << 20
	layerMax       = 64 << 30 // compressed bytes of one layer
	expandedMax    = 32 << 30 // bytes of all files of one layer, holes included
	entriesMax     = 1 << 19  // of one layer; mkfs.erofs keeps each in memory
	tarOverheadMax = 4 << 10  // bytes of a layer per entry beyond its data
	zstdWindowMax  = 128 << 20
	// spaceReserve stays free on the disk of the store.
	spaceReserve = 128 << 20
	// spreadFactor is how often the data of an entry is on disk while its
	// layer is made: in the scratch file of mkfs.erofs and in the layer.
	spreadFactor = 2

	archiveMax        = 128 << 30 // bytes of an uncompressed image archive
	archiveMembersMax = 10_000
	archiveImagesMax  = 64
	indexDepthMax     = 4
	indexEntriesMax   = 256
)

// Limits on time and on work side by side.
const (
	pullsMax       = 3 // images at once
	fetchesMax     = 3 // layers at once of one image
	unpacksMax     = 2 // layers at once of all images
	fetchAttempts  = 4
	stallLimit     = 60 * time.Second // without a byte from a registry
	cleanUpLimit   = 60 * time.Second
	settleLimit    = 60 * time.Second
	leaseLife      = 24 * time.Hour
	mkfsLimit      = 30 * time.Minute // for one layer
	retryDelay     = time.Second      // doubled each time
	answerLimit    = 30 * time.Second // for a registry's answer to start
	connectLimit   = 15 * time.Second
	handshakeLimit = 15 * time.Second
)

// snapshotter that every image is unpacked with.
const snapshotter = "erofs"

// configTypes are the types of configurations of images.
var configTypes = map[string]bool{
	ocispec.MediaTypeImageConfig:        true,
	images.MediaTypeDockerSchema2Config: true,
}
