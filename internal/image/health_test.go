package image

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/imagetest"
)

// LIFE-04: a HEALTHCHECK means the same in both forms of images.
func TestHealth(t *testing.T) {
	check := func(words ...string) *v1.Health {
		return &v1.Health{
			Exec: words, Interval: durationpb.New(30 * time.Second), Timeout: durationpb.New(30 * time.Second),
			StartPeriod: durationpb.New(0), StartInterval: durationpb.New(5 * time.Second), Retries: 3,
		}
	}
	own := check("x")
	own.Interval, own.Timeout, own.StartPeriod = durationpb.New(time.Minute), durationpb.New(time.Second), durationpb.New(10*time.Second)
	own.StartInterval, own.Retries = durationpb.New(2*time.Second), 7
	bounded := check("x")
	bounded.Interval, bounded.Timeout, bounded.Retries = durationpb.New(time.Second), durationpb.New(5*time.Minute), 100
	for _, test := range []struct {
		name    string
		health  any
		shell   []string
		want    *v1.Health
		warning string
	}{
		{"none", nil, nil, nil, ""},
		{"words", map[string]any{"Test": []string{"CMD", "x", "CMD"}, "Interval": 0}, nil, check("x", "CMD"), ""},
		{"shell", map[string]any{"Test": []string{"CMD-SHELL", "x y || exit 1"}}, nil, check("/bin/sh", "-c", "x y || exit 1"), ""},
		{"own shell", map[string]any{"Test": []string{"CMD-SHELL", "x"}}, []string{"/bin/bash", "-ec"}, check("/bin/bash", "-ec", "x"), ""},
		{"times", map[string]any{"Test": []string{"CMD", "x"}, "Interval": 60e9, "Timeout": 1e9, "StartPeriod": 10e9, "StartInterval": 2e9, "Retries": 7}, nil, own, ""},
		{"out of bounds", map[string]any{"Test": []string{"CMD", "x"}, "Interval": 1, "Timeout": int64(3600e9), "StartPeriod": -1, "Retries": 1000}, nil, bounded, ""},
		{"negative", map[string]any{"Test": []string{"CMD", "x"}, "Interval": -1, "Timeout": -1, "StartInterval": -1, "Retries": -1}, nil, check("x"), ""},
		{"disabled", map[string]any{"Test": []string{"NONE"}}, nil, nil, ""},
		{"inherited", map[string]any{"Interval": 5}, nil, nil, ""},
		{"no program", map[string]any{"Test": []string{"CMD"}}, nil, nil, "HEALTHCHECK of the image names no program and is not made"},
		{"no line", map[string]any{"Test": []string{"CMD-SHELL", ""}}, nil, nil, "HEALTHCHECK of the image names no program and is not made"},
		{"unknown", map[string]any{"Test": []string{"curl", "x"}}, nil, nil, `HEALTHCHECK of the image has the unknown form "curl" and is not made`},
	} {
		for _, docker := range []bool{false, true} {
			i := imagetest.Image{Docker: docker, Extra: map[string]any{"Healthcheck": test.health}, Config: ocispec.ImageConfig{}}
			if test.shell != nil {
				i.Extra["Shell"] = test.shell
			}
			c, err := parseConfig(i.ConfigJSON())
			if err != nil {
				t.Fatal(err)
			}
			got, warning := c.health()
			if diff := cmp.Diff(test.want, got, protocmp.Transform()); diff != "" || warning != test.warning {
				t.Errorf("%s, docker %v: %q, %s", test.name, docker, warning, diff)
			}
			if all := c.warnings(); (len(all) == 1) != (warning != "") {
				t.Errorf("%s, docker %v: warnings %q", test.name, docker, all)
			}
		}
	}
}
