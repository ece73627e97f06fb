package image_test

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/imagetest"
)

// foreignArch is a processor that no machine of ours has.
const foreignArch = "riscv64"

// push pushes an archive, as a stream.
func (f *fixture) push(t *testing.T, archive []byte, name string) (*v1.PushResult, error) {
	t.Helper()
	return f.Push(t.Context(), bytes.NewReader(archive), name, nil)
}

func multiArch(withForeign bool) []byte {
	native, other := hello("one").Build(), hello("two")
	other.Architecture = foreignArch
	foreign := other.Build()
	index := imagetest.Index(foreign.Manifest.Descriptor, native.Manifest.Descriptor, imagetest.Attestation(native.Manifest))
	blobs := append(native.Blobs(), index)
	if withForeign {
		blobs = append(blobs, foreign.Blobs()...)
	}
	return imagetest.OCILayout(imagetest.Named(index.Descriptor, "app:1"), blobs...)
}

func mislabelled() imagetest.Image {
	i := hello("one")
	i.Layers[1].MediaType = ocispec.MediaTypeImageLayerGzip
	return i
}

func docker() imagetest.Image {
	i := hello("one")
	i.Docker = true
	i.Layers[1].Compression = imagetest.Gzip
	return i
}

func TestPush(t *testing.T) {
	plain, zipped, zstd := imagetest.OldDockerSave, imagetest.Gzip, imagetest.Zstd
	tests := []struct {
		name     string
		archive  []byte
		as       string
		names    []string
		warnings []string
	}{
		{"old layout, named by the user", plain(hello("one")), "app:1", []string{"app:1"}, nil},
		{"old layout with a tag, gzip", imagetest.Compress(plain(hello("one"), "app:1"), zipped), "", []string{"app:1"}, nil},
		{"old layout with a tag, zstd", imagetest.Compress(plain(hello("one"), "app:1"), zstd), "", []string{"app:1"}, nil},
		{"old layout, two tags", plain(hello("one"), "app:1", "lan:5000/app:2"), "", []string{"app:1", "lan:5000/app:2"}, nil},
		{"new docker layout", imagetest.DockerSave(docker(), "app:1", "app:2"), "", []string{"app:1", "app:2"}, nil},
		{"new docker layout, renamed", imagetest.DockerSave(docker(), "app:1", "app:2"), "other", []string{"other:latest"}, nil},
		{"OCI", imagetest.OCI(hello("one"), "app:1"), "", []string{"app:1"}, nil},
		{"OCI, gzip", imagetest.Compress(imagetest.OCI(hello("one"), "app:1"), zipped), "", []string{"app:1"}, nil},
		{"OCI with a bare tag", imagetest.OCI(hello("one"), "latest"), "app:1", []string{"app:1"}, nil},
		{"zstd layer said to be gzip", imagetest.OCI(mislabelled(), "app:1"), "", []string{"app:1"}, nil},
		{"other platforms absent", multiArch(false), "", []string{"app:1"}, []string{"left out: linux/" + foreignArch, "left out: an attestation"}},
		{"other platforms present", multiArch(true), "", []string{"app:1"}, []string{"left out: linux/" + foreignArch, "left out: an attestation"}},
	}
	f := open(t)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			result, err := f.push(t, test.archive, test.as)
			if err != nil {
				t.Fatal(err)
			}
			if len(result.Images) != 1 {
				t.Fatalf("%d images", len(result.Images))
			}
			if diff := cmp.Diff(test.names, result.Images[0].Names); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(test.warnings, result.Warnings); diff != "" {
				t.Error(diff)
			}
			for _, name := range test.names {
				img, err := f.Get(t.Context(), name)
				if err != nil {
					t.Fatal(err)
				}
				if data, err := fs.ReadFile(f.layer(t, img, 1), "top"); err != nil || string(data) != "one" {
					t.Errorf("top of %s: %q %v", name, data, err)
				}
			}
			if _, err := f.Prune(t.Context(), nil, false); err != nil {
				t.Fatal(err)
			}
			if n := f.leftovers(t); n != 0 {
				t.Errorf("%d blobs and layers left after a prune", n)
			}
		})
	}
}

func TestPushRefuses(t *testing.T) {
	only := hello("one")
	only.Architecture = foreignArch
	empty := imagetest.Image{}
	built := hello("one").Build()
	cut := imagetest.OCI(hello(strings.Repeat("long", 10_000)), "app:1")
	flipped := imagetest.OCI(hello("one"), "app:1")
	at := bytes.Index(flipped, built.Layers[1].Data)
	flipped[at+len(built.Layers[1].Data)/2] ^= 1
	wrongDiff := hello("one").Build()
	lie := bytes.ReplaceAll(wrongDiff.Config.Data, []byte(hello("one").Layers[1].DiffID()), []byte(hello("two").Layers[1].DiffID()))
	config := imagetest.NewBlob(ocispec.MediaTypeImageConfig, lie)
	manifest := imagetest.NewBlob(ocispec.MediaTypeImageManifest, bytes.ReplaceAll(wrongDiff.Manifest.Data, []byte(wrongDiff.Config.Digest), []byte(config.Digest)))
	bomb := imagetest.Image{Layers: []*imagetest.Layer{imagetest.NewLayer().Sparse("lastlog", 64<<30, strings.Repeat("x", 4096))}}
	tests := []struct {
		name    string
		archive []byte
		as      string
		want    []string // in the error
	}{
		{"no name", imagetest.OldDockerSave(hello("one")), "", []string{"no name", "--name"}},
		{"only another platform", imagetest.OCI(only, "app:1"), "", []string{"linux/" + foreignArch, "this capsule is linux/"}},
		{"only another platform, old layout", imagetest.OldDockerSave(only, "app:1"), "", []string{"linux/" + foreignArch}},
		{"cut", cut[:len(cut)*6/10], "", []string{"ends early"}},
		{"damaged", flipped, "", []string{string(built.Layers[1].Digest), "damaged"}},
		{"absent layer", imagetest.OCILayout(imagetest.Named(built.Manifest.Descriptor, "app:1"), built.Manifest, built.Config, built.Layers[0]), "", []string{"lacks", string(built.Layers[1].Digest)}},
		{"other content than said", imagetest.OCILayout(imagetest.Named(manifest.Descriptor, "app:1"), manifest, config, built.Layers[0], built.Layers[1]), "", []string{string(built.Layers[1].Digest), "the image says"}},
		{"expands too far", imagetest.OCI(bomb, "app:1"), "", []string{"lastlog", "64 GiB"}},
		{"no layers", imagetest.OCI(empty, "app:1"), "", []string{"no layers"}},
		{"no archive", []byte("hello, this is a text and nothing else"), "", []string{"ends early"}},
		{"empty", nil, "", []string{"empty"}},
		{"other tar", imagetest.Archive(imagetest.ArchiveFile{Name: "a", Data: []byte("b")}), "", []string{"index.json"}},
		{"xz", []byte("\xfd7zXZ\x00abcdefgh"), "", []string{"xz"}},
		{"bad name", imagetest.OCI(hello("one"), "app:1"), "a b", []string{"a b"}},
		{"absent index", imagetest.OCILayout(imagetest.Named(imagetest.Index(built.Manifest.Descriptor).Descriptor, "x:1"), built.Blobs()...), "", []string{"lacks"}},
	}
	f := open(t)
	old, err := f.push(t, imagetest.OCI(hello("zero"), "app:1"), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Prune(t.Context(), map[string]bool{"docker.io/library/app:1": true}, false); err != nil {
		t.Fatal(err)
	}
	before := f.leftovers(t)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := f.push(t, test.archive, test.as)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
			if !errdefs.IsInvalidArgument(err) && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("error %q has the wrong class", err)
			}
			img, err := f.Get(t.Context(), "app:1")
			if err != nil || img.Digest != old.Images[0].Digest {
				t.Errorf("app:1 is %q now: %v", img.Digest, err)
			}
			if n := f.leftovers(t); n != before {
				t.Errorf("%d blobs and layers, %d before", n, before)
			}
		})
	}
	if _, err := f.push(t, imagetest.OCI(hello("one"), "app:1"), ""); err != nil {
		t.Fatalf("a good one after all: %v", err)
	}
}

// TestLayersMerge puts together what images do to files of the layers below.
func TestLayersMerge(t *testing.T) {
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	bottom := imagetest.NewLayer().
		Dir("d", 0o755).File("d/old", 0o644, "old").
		Dir("t", 0o755).File("t/keep", 0o644, "keep").
		Symlink("ln", "/t").
		Dir("tmp", 0o1777).
		Owner(1000, 1000).Dir("mnt", 0o750).File("mnt/f", 0o640, "hi").
		Owner(0, 0).File("gone", 0o644, "gone").File("srv", 0o755, "program")
	top := imagetest.NewLayer().
		File("d/new", 0o644, "new").Opaque("d").
		Dir("ln", 0o755).Opaque("ln").File("ln/n", 0o644, "n").
		Whiteout("absent").Whiteout("gone").
		File("tmp/x", 0o644, "x").
		Owner(1000, 1000).File("mnt/g", 0o640, "g").
		Owner(0, 0).Xattr("security.capability", capability).File("srv", 0o755, "program").
		Sparse("sparse", 1<<20, "data").
		Link("hard", "srv")
	f := open(t)
	if _, err := f.push(t, imagetest.OCI(imagetest.Image{Layers: []*imagetest.Layer{bottom, top}}, "app:1"), ""); err != nil {
		t.Fatal(err)
	}
	img, err := f.Get(t.Context(), "app:1")
	if err != nil {
		t.Fatal(err)
	}
	root := f.mounted(t, img)
	if info, err := os.Stat(filepath.Join(root, "tmp")); err != nil || info.Mode() != fs.ModeDir|fs.ModeSticky|0o777 {
		t.Errorf("a folder left out by the layer: %v %v", info.Mode(), err)
	}
	var paths []string
	_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			t.Error(err)
			return nil
		}
		if path != root {
			paths = append(paths, strings.TrimPrefix(path, root+"/"))
		}
		return nil
	})
	want := []string{"d", "d/new", "hard", "ln", "ln/n", "mnt", "mnt/f", "mnt/g", "sparse", "srv", "t", "t/keep", "tmp", "tmp/x"}
	if diff := cmp.Diff(want, paths); diff != "" {
		t.Error(diff)
	}
	if data, err := os.ReadFile(filepath.Join(root, "sparse")); err != nil || len(data) != 1<<20 || string(data[:5]) != "data\x00" {
		t.Errorf("sparse: %d bytes, %v", len(data), err)
	}
	checkOwner(t, filepath.Join(root, "mnt"), 0o750, 1000)
	checkOwner(t, filepath.Join(root, "mnt/f"), 0o640, 1000)
	checkXattr(t, filepath.Join(root, "srv"), "security.capability", capability)
	checkXattr(t, filepath.Join(root, "hard"), "security.capability", capability)
}

func TestManyLayers(t *testing.T) {
	i := imagetest.Image{}
	for n := range 127 {
		i.Layers = append(i.Layers, imagetest.NewLayer().File("l/"+string(rune('a'+n%26))+strings.Repeat("x", n/26), 0o644, "x"))
	}
	f := open(t)
	if _, err := f.push(t, imagetest.DockerSave(i, "many:1"), ""); err != nil {
		t.Fatal(err)
	}
	img, err := f.Get(t.Context(), "many:1")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(f.layerFiles(t, img.ChainID)); n != 127 {
		t.Errorf("%d layers", n)
	}
	i.Layers = append(i.Layers, imagetest.NewLayer().File("z", 0o644, "z"))
	if _, err := f.push(t, imagetest.OCI(i, "many:2"), ""); !errdefs.IsInvalidArgument(err) {
		t.Errorf("128 layers: %v", err)
	}
}

// TestPushSeveral: an archive can hold more than one image, but then each needs
// a name of its own.
func TestPushSeveral(t *testing.T) {
	one, two := hello("one").Build(), hello("two").Build()
	layout := func(a, b string) []byte {
		index, err := json.Marshal(ocispec.Index{Manifests: []ocispec.Descriptor{
			imagetest.Named(one.Manifest.Descriptor, a), imagetest.Named(two.Manifest.Descriptor, b),
			imagetest.Attestation(one.Manifest),
		}})
		if err != nil {
			t.Fatal(err)
		}
		files := []imagetest.ArchiveFile{{Name: "index.json", Data: index}}
		for _, blob := range append(one.Blobs(), two.Blobs()...) {
			files = append(files, imagetest.ArchiveFile{Name: "blobs/sha256/" + blob.Digest.Encoded(), Data: blob.Data})
		}
		return imagetest.Archive(files...)
	}
	f := open(t)
	result, err := f.push(t, layout("a:1", "b:1"), "")
	if err != nil || len(result.Images) != 2 {
		t.Fatalf("%v %v", result, err)
	}
	for _, bad := range []struct {
		archive []byte
		name    string
		want    string
	}{
		{layout("a:1", "b:1"), "c:1", "holds 2 images"},
		{layout("a:1", "a:1"), "", "two images of the name"},
		{layout("a:1", ""), "", "no name"},
		{layout("a:1", "a b:x"), "", "a b:x"},
	} {
		if _, err := f.push(t, bad.archive, bad.name); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%q: %v", bad.want, err)
		}
	}
	list, err := f.List(t.Context())
	if err != nil || len(list) != 2 {
		t.Errorf("%v %v", list, err)
	}
}
