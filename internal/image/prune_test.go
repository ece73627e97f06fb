package image_test

import (
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"capsule/internal/image"
	"capsule/internal/imagetest"
)

func TestPrune(t *testing.T) {
	f := open(t)
	shared := imagetest.NewLayer().File("base", 0o644, strings.Repeat("base", 5000))
	for _, name := range []string{"keep:1", "drop:1"} {
		i := imagetest.Image{Layers: []*imagetest.Layer{shared, imagetest.NewLayer().File(name, 0o644, strings.Repeat(name, 5000))}}
		if _, err := f.push(t, imagetest.OCI(i, name), ""); err != nil {
			t.Fatal(err)
		}
	}
	// Compressed layers go by themselves, whenever: here at once.
	keep, err := image.Normalise("keep:1")
	if err != nil {
		t.Fatal(err)
	}
	drop, err := image.Normalise("drop:1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Prune(t.Context(), map[string]bool{keep: true, drop: true}, false); err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{keep: true}
	dry, err := f.Prune(t.Context(), used, true)
	if err != nil {
		t.Fatal(err)
	}
	if list, _ := f.List(t.Context()); len(list) != 2 {
		t.Fatalf("a dry run left %d images", len(list))
	}
	wet, err := f.Prune(t.Context(), used, false)
	if err != nil {
		t.Fatal(err)
	}
	if len(wet.Removed) != 1 || wet.Removed[0].Names[0] != "drop:1" || wet.Freed < 20_000 {
		t.Errorf("removed %v, freed %d", wet.Removed, wet.Freed)
	}
	if dry.Freed != wet.Freed || len(dry.Removed) != 1 {
		t.Errorf("dry run said %d, real one %d", dry.Freed, wet.Freed)
	}
	if _, err := f.Get(t.Context(), "drop:1"); !errdefs.IsNotFound(err) {
		t.Errorf("drop:1: %v", err)
	}
	if _, err := f.Get(t.Context(), "keep:1"); err != nil {
		t.Errorf("keep:1: %v", err)
	}
}

// TestPruneSparesInstances: what a container stands on stays, image or not.
func TestPruneSparesInstances(t *testing.T) {
	f := open(t)
	if _, err := f.push(t, imagetest.OCI(hello("one"), "app:1"), ""); err != nil {
		t.Fatal(err)
	}
	img, err := f.Get(t.Context(), "app:1")
	if err != nil {
		t.Fatal(err)
	}
	// Compressed layers go by themselves, whenever: here at once.
	if _, err := f.Prune(t.Context(), map[string]bool{img.Name: true}, false); err != nil {
		t.Fatal(err)
	}
	ctx := leases.WithLease(t.Context(), lease(t, f))
	if _, err := f.client.SnapshotService("erofs").Prepare(ctx, "instance", img.ChainID); err != nil {
		t.Fatal(err)
	}
	dry, err := f.Prune(t.Context(), nil, true)
	if err != nil {
		t.Fatal(err)
	}
	wet, err := f.Prune(t.Context(), nil, false)
	if err != nil {
		t.Fatal(err)
	}
	if dry.Freed != wet.Freed {
		t.Errorf("dry run said %d, real one %d", dry.Freed, wet.Freed)
	}
	if _, err := f.client.SnapshotService("erofs").Stat(t.Context(), img.ChainID); err != nil {
		t.Errorf("layers of an instance: %v", err)
	}
}

func lease(t *testing.T, f *fixture) string {
	t.Helper()
	l, err := f.client.LeasesService().Create(t.Context(), leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	return l.ID
}

func TestList(t *testing.T) {
	f := open(t)
	if list, err := f.List(t.Context()); err != nil || len(list) != 0 {
		t.Fatalf("%v %v", list, err)
	}
	if _, err := f.push(t, imagetest.OldDockerSave(hello("one"), "b:1", "a:2", "lan.example:5000/x"), ""); err != nil {
		t.Fatal(err)
	}
	list, err := f.List(t.Context())
	if err != nil || len(list) != 1 {
		t.Fatalf("%v %v", list, err)
	}
	if diff := cmp.Diff([]string{"a:2", "b:1", "lan.example:5000/x:latest"}, list[0].Names); diff != "" {
		t.Error(diff)
	}
	if list[0].Size == 0 || list[0].CreatedAt.GetSeconds() != imagetest.Time.Unix() {
		t.Errorf("%v", list[0])
	}
}

// TestRecovery: what a daemon left half done is gone with the next one's first
// work.
func TestRecovery(t *testing.T) {
	f := open(t)
	l, err := f.client.LeasesService().Create(t.Context(), leases.WithRandomID(), leases.WithLabel("capsule.image", "work"))
	if err != nil {
		t.Fatal(err)
	}
	ctx := leases.WithLease(t.Context(), l.ID)
	if _, err := f.client.SnapshotService("erofs").Prepare(ctx, "unpack-half", ""); err != nil {
		t.Fatal(err)
	}
	if n := f.leftovers(t); n != 1 {
		t.Fatalf("%d leftovers", n)
	}
	next := image.Open(f.client, nil)
	if _, err := next.Push(t.Context(), strings.NewReader("nothing"), "", nil); err == nil {
		t.Fatal("accepted")
	}
	if n := f.leftovers(t); n != 0 {
		t.Errorf("%d left", n)
	}
}
