package main

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// finishedBuild looks like one to a variant.
func finishedBuild(t *testing.T) *builder {
	t.Helper()
	const kernel = "6.0"
	b := testBuilder(t, nil)
	b.work = filepath.Join(b.out, "work")
	if _, err := b.developmentKey(); err != nil {
		t.Fatal(err)
	}
	image := make([]byte, 4096)
	binary.LittleEndian.PutUint32(image[1024:], 0xE0F5E1E2)
	binary.LittleEndian.PutUint64(image[1024+24:], 700)
	modules := "work/root/usr/lib/modules/" + kernel + "/"
	for path, text := range map[string]string{
		"work/root/usr/lib/os-release":               osRelease("v1"),
		"work/root/usr/bin/capsuled":                 "capsuled of v1",
		"work/root/usr/bin/runc":                     "runc",
		modules + "kernel/drivers/net/virtio_net.ko": "driver",
		modules + "kernel/fs/ext4/ext4.ko":           "ext4",
		modules + "modules.dep":                      "kernel/drivers/net/virtio_net.ko: kernel/net/x.ko\nkernel/fs/ext4/ext4.ko:\n",
		modules + "modules.alias":                    "alias virtio:d1 virtio_net\nalias fs-ext4 ext4\n",
		"work/root.erofs":                            string(image),
		"work/root.erofs.facts":                      "4096 abc\n",
		"work/bin/capsuled":                          "capsuled of v1",
	} {
		writeFile(t, filepath.Join(b.out, path), text)
	}
	writeFile(t, filepath.Join(b.cache, lockName), `[{"name":"linux-image-`+kernel+`"}]`)
	for _, step := range []string{"root tree", "root image", "initrd", "microcode"} {
		writeFile(t, b.stamp(step), "key of "+step)
	}
	return b
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// treeOf gives all files below dir with their contents.
func treeOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := layTree(dir, t.TempDir(), func(from, _ string) error {
		content, err := os.ReadFile(from)
		files[strings.TrimPrefix(from, dir+"/")] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestVariantTakesVersionAndTimeFromTheBuild(t *testing.T) {
	for _, c := range []struct{ given, want variant }{
		{variant{}, variant{version: "v1", built: 700}},
		{variant{version: "v2", built: -100}, variant{version: "v2", built: 600}},
		{variant{version: "v2", built: 5}, variant{version: "v2", built: 5}},
	} {
		b := finishedBuild(t)
		b.version = "of the source tree by now"
		if err := c.given.inspect(b); err != nil {
			t.Fatal(err)
		}
		if c.given.version != c.want.version || c.given.built != c.want.built || b.kernel != "6.0" {
			t.Errorf("version %s of %d for kernel %s, want %+v", c.given.version, c.given.built, b.kernel, c.want)
		}
	}
}

func TestVariantNeedsAFinishedBuild(t *testing.T) {
	for _, lost := range []string{
		"cache/packages.json", "cache/steps/root tree", "out/development.key", "out/work/root.erofs", "out/work/root/usr/lib/os-release",
	} {
		b := finishedBuild(t)
		where, path, _ := strings.Cut(lost, "/")
		if err := os.Remove(filepath.Join(map[string]string{"cache": b.cache, "out": b.out}[where], path)); err != nil {
			t.Fatal(err)
		}
		v := &variant{file: filepath.Join(t.TempDir(), "v.bundle")}
		if err := b.buildVariant(v); err == nil || !strings.Contains(err.Error(), "make image") {
			t.Errorf("without %s: %v", lost, err)
		}
	}
}

func TestTreeOfVariant(t *testing.T) {
	b := finishedBuild(t)
	overlay := writeTree(t, map[string]string{"usr/bin/capsuled": "stand-in", "etc/new": "new"})
	program := filepath.Join(t.TempDir(), "capsuled")
	writeFile(t, program, "capsuled of v2")
	before := treeOf(t, filepath.Join(b.out, "work"))
	v := &variant{
		version: "v2", overlay: overlay,
		remove: words{"usr/lib/modules/*/kernel/drivers/net/virtio_net.ko*"},
		move:   words{"usr/bin/capsuled=usr/bin/capsuled.real"},
	}
	if err := v.inspect(b); err != nil {
		t.Fatal(err)
	}
	own := *b
	own.version = v.version
	tree := filepath.Join(t.TempDir(), "tree")
	if err := v.tree(&own, tree, program); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"etc/new":               "new",
		"usr/bin/capsuled":      "stand-in",
		"usr/bin/capsuled.real": "capsuled of v2",
		"usr/bin/runc":          "runc",
		"usr/lib/os-release":    osRelease("v2"),
		"usr/lib/modules/6.0/kernel/fs/ext4/ext4.ko": "ext4",
		"usr/lib/modules/6.0/modules.dep":            "kernel/fs/ext4/ext4.ko:\n",
		"usr/lib/modules/6.0/modules.alias":          "alias fs-ext4 ext4\n",
	}
	if diff := cmp.Diff(want, treeOf(t, tree)); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, treeOf(t, filepath.Join(b.out, "work"))); diff != "" {
		t.Errorf("the build was changed (-before +after):\n%s", diff)
	}
	v.remove = words{"usr/bin/none*"}
	if err := v.tree(&own, tree, program); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("a glob that matches nothing: %v", err)
	}
}

func TestVariantWithTheRootOfTheBuild(t *testing.T) {
	b := finishedBuild(t)
	v := &variant{append: "quiet", hash: "0"}
	if err := v.inspect(b); err != nil {
		t.Fatal(err)
	}
	root, err := v.root(b)
	if err != nil || root.Path != filepath.Join(b.work, "root.erofs") || root.Hash != "abc" {
		t.Errorf("root %+v, %v", root, err)
	}
}

func TestVariantsWithOneRoot(t *testing.T) {
	b := finishedBuild(t)
	overlay := writeTree(t, map[string]string{"x": "x"})
	sum := func(v variant) string {
		t.Helper()
		if err := v.inspect(b); err != nil {
			t.Fatal(err)
		}
		own := *b
		own.version, own.buildUnix = v.version, v.built
		sum, err := v.rootKey(&own).sum()
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	first := sum(variant{version: "v2", append: "a"})
	if sum(variant{version: "v2", append: "b", hash: "0"}) != first {
		t.Error("another command line makes another root")
	}
	for name, v := range map[string]variant{
		"version": {version: "v3"}, "time": {version: "v2", built: 1}, "overlay": {version: "v2", overlay: overlay},
		"removed": {version: "v2", remove: words{"x"}}, "moved": {version: "v2", move: words{"x"}},
	} {
		if sum(v) == first {
			t.Errorf("%s: the same root", name)
		}
	}
	writeFile(t, b.stamp("root tree"), "another key")
	if sum(variant{version: "v2"}) == first {
		t.Error("a new build keeps the roots made of the old one")
	}
}
