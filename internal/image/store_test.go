package image_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/erofs/go-erofs"

	"capsule/internal/image"
	"capsule/internal/imagetest"
)

// fixture is a store in a real containerd.
type fixture struct {
	*image.Store
	client *containerd.Client
	root   string
	book   book
}

// book is a Registries in memory.
type book map[string]image.RegistryAccess

func (b book) Lookup(host string) (image.RegistryAccess, error) { return b[host], nil }

func open(t *testing.T) *fixture {
	t.Helper()
	client, root := imagetest.ContainerdAt(t, t.TempDir())
	b := book{}
	return &fixture{Store: image.Open(client, b), client: client, root: root, book: b}
}

// registry starts a plain registry that the store may speak to.
func (f *fixture) registry(t *testing.T) *imagetest.RegistryServer {
	t.Helper()
	r := imagetest.Registry(t, imagetest.RegistryOptions{})
	f.book[r.Host] = image.RegistryAccess{PlainHTTP: true}
	return r
}

// layerFiles are the files of an image's layers, topmost first.
func (f *fixture) layerFiles(t *testing.T, chainID string) []string {
	t.Helper()
	service := f.client.SnapshotService("erofs")
	key := "view-" + chainID
	mounts, err := service.View(t.Context(), key, chainID)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = service.Remove(context.WithoutCancel(t.Context()), key) }()
	var files []string
	for _, m := range mounts {
		if m.Type == "erofs" {
			files = append(files, m.Source)
		}
	}
	return files
}

// layer opens the i-th layer of an image, bottom first.
func (f *fixture) layer(t *testing.T, img image.Image, i int) fs.FS {
	t.Helper()
	files := f.layerFiles(t, img.ChainID)
	file, err := os.Open(files[len(files)-1-i])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	layer, err := erofs.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// mounted shows an image's merged layers at a folder, as a container has them.
func (f *fixture) mounted(t *testing.T, img image.Image) string {
	t.Helper()
	dir := t.TempDir()
	files := f.layerFiles(t, img.ChainID)
	var lowers []string
	for i, file := range files {
		lower := filepath.Join(dir, fmt.Sprint("layer", i))
		if err := os.Mkdir(lower, 0o755); err != nil {
			t.Fatal(err)
		}
		m := mount.Mount{Type: "erofs", Source: file, Options: []string{"ro", "loop"}}
		if err := m.Mount(lower); err != nil {
			t.Skipf("SKIPPED: no erofs mounts on this machine: %v", err)
		}
		t.Cleanup(func() { _ = mount.UnmountAll(lower, 0) })
		lowers = append(lowers, lower)
	}
	if len(lowers) == 1 {
		return lowers[0]
	}
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	m := mount.Mount{Type: "overlay", Source: "overlay", Options: []string{"ro", "lowerdir=" + strings.Join(lowers, ":")}}
	if err := m.Mount(root); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mount.UnmountAll(root, 0) })
	return root
}

// leftovers are the names of blobs and layers that the store has.
func (f *fixture) leftovers(t *testing.T) int {
	t.Helper()
	n := 0
	err := f.client.SnapshotService("erofs").Walk(t.Context(), func(context.Context, snapshots.Info) error {
		n++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(filepath.Join(f.root, "io.containerd.content.v1.content"), func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			n++
		}
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return n
}

func hello(text string) imagetest.Image {
	i := imagetest.Image{Layers: []*imagetest.Layer{
		imagetest.NewLayer().Dir("etc", 0o755).File("etc/hello", 0o644, text),
		imagetest.NewLayer().File("top", 0o755, text),
	}}
	i.Layers[1].Compression = imagetest.Zstd
	i.Config.Entrypoint = []string{"/top"}
	return i
}

func TestPull(t *testing.T) {
	f := open(t)
	r := f.registry(t)
	ref := r.Push(t, "web", "1", hello("one"))
	if _, err := f.Get(t.Context(), ref); !errdefs.IsNotFound(err) {
		t.Fatalf("before the pull: %v", err)
	}
	var last, total int64
	img, err := f.Pull(t.Context(), ref, func(d, n int64) { last, total = d, n })
	if err != nil {
		t.Fatal(err)
	}
	if last == 0 || last != total {
		t.Errorf("progress ended at %d of %d", last, total)
	}
	if want := hello("one").Build().Digest(); img.Digest != want || img.Name != ref || img.Config.Entrypoint[0] != "/top" {
		t.Errorf("got %+v, want digest %s", img, want)
	}
	data, err := fs.ReadFile(f.layer(t, img, 1), "top")
	if err != nil || string(data) != "one" {
		t.Errorf("top: %q %v", data, err)
	}
	again, err := f.Get(t.Context(), ref)
	if err != nil || again.ChainID != img.ChainID {
		t.Errorf("get: %+v %v", again, err)
	}
	before := r.Requests("/blobs/")
	if _, err := f.Pull(t.Context(), ref, nil); err != nil {
		t.Fatal(err)
	}
	if n := r.Requests("/blobs/"); n != before {
		t.Errorf("a second pull fetched %d blobs", n-before)
	}
}
