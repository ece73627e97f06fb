package image

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"capsule/internal/imagetest"
)

// hashing is a sink that keeps nothing.
func hashing(_ string, r io.Reader, size int64, want digest.Digest) (digest.Digest, error) {
	d := digest.Canonical.Digester()
	if n, err := io.Copy(d.Hash(), r); err != nil || n != size {
		return "", errors.Join(err, errdefs.ErrInvalidArgument)
	}
	if want != "" && d.Digest() != want {
		return "", errdefs.ErrInvalidArgument
	}
	return d.Digest(), nil
}

// archiveSeeds are good archives of every form.
func archiveSeeds() [][]byte {
	image := imagetest.Image{Layers: []*imagetest.Layer{imagetest.NewLayer().File("a", 0o644, "x")}}
	return [][]byte{
		imagetest.OCI(image, "app:1"),
		imagetest.OldDockerSave(image, "app:1"),
		imagetest.DockerSave(image),
		imagetest.Compress(imagetest.OCI(image, ""), imagetest.Gzip),
		imagetest.Compress(imagetest.OCI(image, ""), imagetest.Zstd),
	}
}

// checkArchive reads any bytes: no panic, no endless work, and an error is one
// that an operator can mend.
func checkArchive(t *testing.T, data []byte) {
	plain, err := decompress(bytes.NewReader(data))
	if err != nil {
		return
	}
	defer plain.Close()
	a, err := readArchive(io.LimitReader(plain, 16<<20), hashing)
	if err != nil {
		if !errdefs.IsInvalidArgument(err) && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("class of %v", err)
		}
		return
	}
	for name := range a.links {
		_, _ = a.at(name)
	}
	if a.index != nil {
		choose(a.index.Manifests)
	}
}

// layerSeeds are good layers.
func layerSeeds() [][]byte {
	return [][]byte{
		imagetest.NewLayer().Dir("d", 0o755).Xattr("user.a", "b").File("d/f", 0o644, "x").Whiteout("w").Opaque("d").Symlink("s", "t").Tar(),
		imagetest.NewLayer().Sparse("s", 1<<16, "data").Tar(),
	}
}

// checkLayer does so for a layer.
func checkLayer(t *testing.T, data []byte) {
	w := layerWriter{diffID: digest.FromBytes(data), free: func() (int64, error) { return spaceReserve + 64<<20, nil }}
	err := w.feed(bytes.NewReader(data), io.Discard)
	if err != nil && !errdefs.IsInvalidArgument(err) && !errdefs.IsResourceExhausted(err) {
		t.Errorf("class of %v", err)
	}
}

func FuzzReadArchive(f *testing.F) {
	for _, seed := range archiveSeeds() {
		f.Add(seed)
	}
	f.Fuzz(checkArchive)
}

func FuzzLayer(f *testing.F) {
	for _, seed := range layerSeeds() {
		f.Add(seed)
	}
	f.Fuzz(checkLayer)
}

// TestMutations is a small fuzzer that every test run has time for; the tree
// of containerd makes go's own slow.
func TestMutations(t *testing.T) {
	const mutants = "\x00\xff0179xgSLK/.=\n" // what means something to tar and JSON
	random := rand.New(rand.NewPCG(1, 2))
	for _, kind := range []struct {
		seeds [][]byte
		check func(*testing.T, []byte)
	}{{archiveSeeds(), checkArchive}, {layerSeeds(), checkLayer}} {
		for i := range 2000 {
			data := bytes.Clone(kind.seeds[i%len(kind.seeds)])
			for range 1 + random.IntN(4) {
				data[random.IntN(len(data))] = mutants[random.IntN(len(mutants))]
			}
			if random.IntN(4) == 0 {
				data = data[:random.IntN(len(data))]
			}
			kind.check(t, data)
		}
	}
}

func TestLinksInArchive(t *testing.T) {
	a := &archive{members: map[string]member{"x/layer.tar": {size: 5}}, links: map[string]string{
		"y/layer.tar": "x/layer.tar", "loop": "pool", "pool": "loop", "dead": "gone",
	}}
	if m, err := a.at("./y/layer.tar"); err != nil || m.size != 5 {
		t.Errorf("%v %v", m, err)
	}
	for _, name := range []string{"loop", "dead", "gone"} {
		if _, err := a.at(name); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
