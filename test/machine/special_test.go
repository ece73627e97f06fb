//go:build machine

package machine

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/testscript"

	"capsule/internal/imagetest"
)

// foreignArch is a processor that no capsule has.
const foreignArch = "riscv64"

// fileCapability is cap_net_bind_service, permitted and effective, as in a
// security.capability attribute of version 2 (linux/capability.h).
const fileCapability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// archives are image archives that people have and that others stumble over,
// by a name for scripts. Each gets the name of its image.
var archives = map[string]func(t testing.TB, name string) []byte{
	"old-unnamed": func(t testing.TB, _ string) []byte { return imagetest.OldDockerSave(ready(t)) },
	"old-gzip": func(t testing.TB, name string) []byte {
		return imagetest.Compress(imagetest.OldDockerSave(ready(t), name), imagetest.Gzip)
	},
	"old-zstd": func(t testing.TB, name string) []byte {
		return imagetest.Compress(imagetest.OldDockerSave(ready(t), name), imagetest.Zstd)
	},
	"index":   index,
	"foreign": foreign,
	"zstd":    func(t testing.TB, name string) []byte { return imagetest.OCI(zstdTop(t, ""), name) },
	"mislabeled": func(t testing.TB, name string) []byte {
		return imagetest.OCI(zstdTop(t, ocispec.MediaTypeImageLayerGzip), name)
	},
	"large":      large,
	"cut":        func(t testing.TB, name string) []byte { a := imagetest.OCI(ready(t), name); return a[:len(a)*6/10] },
	"flipped":    flipped,
	"whiteouts":  whiteouts,
	"layers":     manyLayers,
	"capability": capability,
	"sparse": func(t testing.TB, name string) []byte {
		huge := imagetest.NewLayer().Sparse("var/log/lastlog", 64<<30, strings.Repeat("x", 4096))
		return imagetest.OCI(ready(t, huge), name)
	},
	"volume": volumeImage,
	"ghost":  configured(func(c *ocispec.ImageConfig) { c.User = "ghost" }),
	"nogrp":  configured(func(c *ocispec.ImageConfig) { c.User = "app:nogrp" }),
	"bare": func(t testing.TB, name string) []byte {
		i := bare(t)
		i.Config = ocispec.ImageConfig{User: "1234", Entrypoint: []string{"/payload"}, Cmd: []string{"id"}}
		return imagetest.OCI(i, name)
	},
	"commandless": func(t testing.TB, name string) []byte { return imagetest.OCI(bare(t), name) },
	"empty-entrypoint": func(t testing.TB, name string) []byte {
		i := bare(t)
		i.Config = ocispec.ImageConfig{Entrypoint: []string{""}, Cmd: []string{"/payload", "print", "counts as unset"}}
		return imagetest.OCI(i, name)
	},
	"env": configured(func(c *ocispec.ImageConfig) {
		c.Env = []string{"A=12=3", "B==", "C=l1\nl2", "PATH=/first", "D=", `E="q"`, "PATH=/bin"}
		c.Cmd = []string{"cat", "/proc/1/environ"}
	}),
	"signal-name":   stopped("SIGRTMIN+3"),
	"signal-short":  stopped("RTMIN+3"),
	"signal-number": stopped("37"),
	"signal-wrong":  stopped("SIGFOO"),
	"health-oci":    health(false, "CMD", "/payload", "false"),
	"health-docker": health(true, "CMD", "/payload", "false"),
	"shell-oci":     health(false, "CMD-SHELL", "x y"),
	"shell-docker":  health(true, "CMD-SHELL", "x y"),
	"none-oci":      health(false, "NONE"),
	"none-docker":   health(true, "NONE"),
}

// archive FILE NAME KIND: writes one of the archives.
func archive(ts *testscript.TestScript, _ bool, args []string) {
	need(ts, args, 3, "archive FILE NAME KIND")
	build := archives[args[2]]
	if build == nil {
		ts.Fatalf("no archive %q in %q", args[2], slices.Sorted(maps.Keys(archives)))
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), build(ts.Value(testKey).(testing.TB), args[1]), 0o644))
}

// ready is an image that says so and waits.
func ready(t testing.TB, layers ...*imagetest.Layer) imagetest.Image {
	return imagetest.PayloadImage(t, []string{"print", "ready", "then", "sleep", "10h"}, layers...)
}

// bare is one static program, without users and without a command.
func bare(t testing.TB) imagetest.Image {
	program := imagetest.NewLayer().File("payload", 0o755, string(imagetest.Payload(t)))
	return imagetest.Image{Layers: []*imagetest.Layer{program}}
}

func configured(change func(*ocispec.ImageConfig)) func(testing.TB, string) []byte {
	return func(t testing.TB, name string) []byte {
		i := ready(t)
		change(&i.Config)
		return imagetest.OCI(i, name)
	}
}

func stopped(signal string) func(testing.TB, string) []byte {
	return configured(func(c *ocispec.ImageConfig) { c.StopSignal, c.Cmd = signal, []string{"trap", "37"} })
}

// health is an image with a HEALTHCHECK, whose shell says what line it is given.
func health(docker bool, check ...string) func(testing.TB, string) []byte {
	return func(t testing.TB, name string) []byte {
		i := ready(t)
		i.Docker = docker
		i.Extra = map[string]any{
			"Healthcheck": map[string]any{"Test": check, "Interval": 1e9, "Timeout": 0, "Retries": 2},
			"Shell":       []string{"/payload", "print"},
		}
		return imagetest.OCI(i, name)
	}
}

// index lists three manifests of which only ours is there.
func index(t testing.TB, name string) []byte {
	native, other := ready(t).Build(), ready(t)
	other.Architecture = foreignArch
	top := imagetest.Index(other.Build().Manifest.Descriptor, native.Manifest.Descriptor, imagetest.Attestation(native.Manifest))
	return imagetest.OCILayout(imagetest.Named(top.Descriptor, name), append(native.Blobs(), top)...)
}

// large takes a while to send and to unpack: 24 MiB that don't compress.
func large(t testing.TB, name string) []byte {
	noise := make([]byte, 24<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise) // never fails
	layer := imagetest.NewLayer().File("noise", 0o644, string(noise))
	layer.Compression = imagetest.Plain
	return imagetest.OCI(ready(t, layer), name)
}

func foreign(t testing.TB, name string) []byte {
	i := ready(t)
	i.Architecture = foreignArch
	return imagetest.OCI(i, name)
}

// zstdTop has a layer of zstd over one of gzip, said to be of the media type.
func zstdTop(t testing.TB, mediaType string) imagetest.Image {
	top := imagetest.NewLayer().File("etc/motd", 0o644, "zstd layer\n")
	top.Compression, top.MediaType = imagetest.Zstd, mediaType
	return ready(t, top)
}

// flipped has one wrong bit in its last layer.
func flipped(t testing.TB, name string) []byte {
	built := ready(t, imagetest.NewLayer().File("a", 0o644, "a"), imagetest.NewLayer().File("b", 0o644, "b"))
	last := built.Build().Layers[2].Data
	archive := imagetest.OCI(built, name)
	archive[bytes.Index(archive, last)+len(last)/2] ^= 1
	return archive
}

func whiteouts(t testing.TB, name string) []byte {
	lower := imagetest.NewLayer().Dir("d", 0o755).File("d/old", 0o644, "old").
		Dir("t", 0o755).File("t/keep", 0o644, "keep").Symlink("ln", "/t")
	upper := imagetest.NewLayer().File("d/new", 0o644, "new").Opaque("d").
		Dir("ln", 0o755).Opaque("ln").File("ln/n", 0o644, "n").Whiteout("absent")
	return imagetest.OCI(ready(t, lower, upper), name)
}

// manyLayers has 126 layers over the first, each with one file.
func manyLayers(t testing.TB, name string) []byte {
	var layers []*imagetest.Layer
	for i := range 126 {
		layers = append(layers, imagetest.NewLayer().File(fmt.Sprintf("l/%03d", i), 0o644, fmt.Sprintln(i)))
	}
	return imagetest.DockerSave(ready(t, layers...), name)
}

func capability(t testing.TB, name string) []byte {
	program := imagetest.NewLayer().Xattr("security.capability", fileCapability).File("srv", 0o755, string(imagetest.Payload(t)))
	i := ready(t, program)
	i.Config = ocispec.ImageConfig{User: "1000", Entrypoint: []string{"/srv"}, Cmd: []string{"id", "then", "bind", ":80"}}
	return imagetest.OCI(i, name)
}

func volumeImage(t testing.TB, name string) []byte {
	i := ready(t, imagetest.NewLayer().Owner(1000, 1000).Dir("mnt", 0o750).File("mnt/f", 0o640, "hi\n"))
	i.Config.User, i.Config.Volumes = "app", map[string]struct{}{"/mnt": {}}
	return imagetest.OCI(i, name)
}
