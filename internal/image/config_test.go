package image

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"capsule/internal/imagetest"
)

func TestWarnings(t *testing.T) {
	i := imagetest.Image{Config: ocispec.ImageConfig{Volumes: map[string]struct{}{"/b": {}, "/a": {}}}}
	c, err := parseConfig(i.ConfigJSON())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"data in /a, a VOLUME of the image, is not kept when the workload is made again",
		"data in /b, a VOLUME of the image, is not kept when the workload is made again",
	}
	if diff := cmp.Diff(want, c.warnings()); diff != "" {
		t.Error(diff)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{
		``, `[]`, `{}`,
		`{"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json"}}`,
		`{"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:x","size":1}}`,
	} {
		if m, err := parseManifest([]byte(text)); err == nil {
			t.Errorf("manifest %q gives %v", text, m)
		}
	}
	for _, text := range []string{``, `[]`, `{"config":{"Healthcheck":5}}`, `{"rootfs":5}`} {
		if c, err := parseConfig([]byte(text)); err == nil {
			t.Errorf("config %q gives %v", text, c)
		}
	}
	good := imagetest.Image{Layers: []*imagetest.Layer{imagetest.NewLayer()}}.Build()
	m, err := parseManifest(good.Manifest.Data)
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range []func(c *configuration){
		func(c *configuration) { c.RootFS.Type = "squash" },
		func(c *configuration) { c.RootFS.DiffIDs[0] = "sha256:x" },
		func(c *configuration) { c.RootFS.DiffIDs = nil },
		func(c *configuration) { c.OS = "windows" },
	} {
		c, err := parseConfig(good.Config.Data)
		if err != nil || c.check(m) != nil {
			t.Fatal("good one refused")
		}
		change(&c)
		if c.check(m) == nil {
			t.Errorf("accepted %+v", c)
		}
	}
}
