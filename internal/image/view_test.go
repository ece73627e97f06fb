package image_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"capsule/internal/imagetest"
)

// An image is shown whole, as containers have it, and nothing of it stays.
func TestView(t *testing.T) {
	f := open(t)
	i := imagetest.Image{Layers: []*imagetest.Layer{
		imagetest.NewLayer().Dir("d", 0o755).File("d/old", 0o644, "old"),
		imagetest.NewLayer().File("d/new", 0o600, "new").Whiteout("d/old"),
	}}
	img, err := f.Pull(t.Context(), f.registry(t).Push(t, "view", "1", i), nil)
	if err != nil {
		t.Fatal(err)
	}
	f.mounted(t, img) // where it can't, this test can't either
	var seen string
	enough := errors.New("enough")
	err = f.View(t.Context(), img, func(root string) error {
		seen = root
		text, err := os.ReadFile(filepath.Join(root, "d/new"))
		if string(text) != "new" {
			t.Errorf("%q, %v", text, err)
		}
		if _, err := os.Lstat(filepath.Join(root, "d/old")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("what a layer removed is seen: %v", err)
		}
		return enough
	})
	if err != enough { //nolint:errorlint // without a word around it
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(seen, "d")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the view is left: %v", err)
	}
	left, err := f.client.LeasesService().List(t.Context())
	if err != nil || len(left) > 0 {
		t.Errorf("leases are left: %v, %v", left, err)
	}
}
