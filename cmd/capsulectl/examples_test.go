package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"capsule/api/manifest"
)

// Every example can be applied as it is, and by its comments.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../../examples/*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	a := &app{ui: &ui{out: io.Discard, err: io.Discard}}
	for _, file := range files {
		if _, err := a.readManifests([]string{file}); err != nil {
			t.Error(err)
		}
	}
}

// One word moves the volume of the example from a container to a microVM.
func TestSharedExampleFlips(t *testing.T) {
	text, err := os.ReadFile("../../examples/shared-volume.yaml")
	if err != nil {
		t.Fatal(err)
	}
	flipped := strings.Replace(string(text), "kind: Container\nname: album", "kind: MicroVM\nname: album", 1)
	objects, err := manifest.Decode("shared-volume.yaml", strings.NewReader(flipped))
	if err != nil {
		t.Fatal(err)
	}
	if kind := objects[1].GetMeta().GetKind(); kind != "MicroVM" {
		t.Errorf("album is a %s", kind)
	}
}
