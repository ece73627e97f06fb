package imagetest

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"net/http"
	"testing"
)

func TestSparseIsReadable(t *testing.T) {
	data := NewLayer().File("a", 0o644, "x").Sparse("big", 1<<20, "data").File("b", 0o644, "y").Tar()
	r := tar.NewReader(bytes.NewReader(data))
	sizes := map[string]int64{}
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, r)
		if err != nil || n != h.Size {
			t.Fatalf("%s: %d of %d bytes: %v", h.Name, n, h.Size, err)
		}
		sizes[h.Name] = n
	}
	if len(sizes) != 3 || sizes["big"] != 1<<20 {
		t.Fatalf("got %v", sizes)
	}
}

func TestSameBytesEachTime(t *testing.T) {
	image := func() Image {
		return Image{Layers: []*Layer{NewLayer().Xattr("user.b", "1").Xattr("user.a", "2").File("f", 0o644, "x")}}
	}
	if a, b := image().Build().Digest(), image().Build().Digest(); a != b {
		t.Fatalf("%s and %s", a, b)
	}
}

func TestRegistryServes(t *testing.T) {
	r := Registry(t, RegistryOptions{})
	r.Push(t, "a/b", "1", Image{Layers: []*Layer{NewLayer().File("f", 0o644, "x")}})
	resp, err := http.Get("http://" + r.Host + "/v2/a/b/manifests/1")
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v %v", resp, err)
	}
	resp.Body.Close()
	if n := r.Requests("GET /v2/a/b"); n != 1 {
		t.Fatalf("%d requests", n)
	}
}

func TestContainerdStarts(t *testing.T) {
	c := Containerd(t)
	if _, err := c.Version(t.Context()); err != nil {
		t.Fatal(err)
	}
}
