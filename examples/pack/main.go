// Command pack makes an OCI archive of one static program, byte for byte the
// same for the same program:
//
//	CGO_ENABLED=0 go build -o bin/web ./examples/web
//	go run ./examples/pack -name web:1 -o build/web.tar bin/web
package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// user that the program runs as: anyone but root.
const user = "65534:65534"

func main() {
	name := flag.String("name", "", "name of the image, such as web:1")
	out := flag.String("o", "", "archive to write")
	flag.Parse()
	if *name == "" || *out == "" || flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: pack -name NAME -o FILE PROGRAM")
		os.Exit(2)
	}
	if err := pack(*name, flag.Arg(0), *out); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func pack(name, program, out string) error {
	img, err := image(program)
	if err != nil {
		return fmt.Errorf("pack %q: %w", program, err)
	}
	dir, err := os.MkdirTemp("", "pack-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// The descriptor is written by hand: AppendImage marks it as an artifact,
	// which is not to be run.
	descriptor, err := partial.Descriptor(img)
	if err != nil {
		return err
	}
	p := platform()
	descriptor.ArtifactType, descriptor.Platform = "", &p
	descriptor.Annotations = map[string]string{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	if err := path.WriteImage(img); err != nil {
		return err
	}
	if err := path.AppendDescriptor(*descriptor); err != nil {
		return err
	}
	return archive(dir, out)
}

func platform() v1.Platform { return v1.Platform{OS: "linux", Architecture: runtime.GOARCH} }

// image has one layer with the program in its root.
func image(program string) (v1.Image, error) {
	data, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	base := "/" + filepath.Base(program)
	layer, err := programLayer(base, data)
	if err != nil {
		return nil, err
	}
	oci := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.Append(oci, mutate.Addendum{Layer: layer, MediaType: types.OCILayer})
	if err != nil {
		return nil, err
	}
	return mutate.ConfigFile(img, withConfig(img, base))
}

func withConfig(img v1.Image, entrypoint string) *v1.ConfigFile {
	config, err := img.ConfigFile()
	if err != nil { // empty.Image has one
		panic(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = platform().OS, platform().Architecture
	config.Config = v1.Config{Entrypoint: []string{entrypoint}, User: user}
	return config
}

func programLayer(name string, data []byte) (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name[1:], Mode: 0o755, Size: int64(len(data))}
	if err := w.WriteHeader(header); err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
}

// archive writes a folder as a tar file, or nothing.
func archive(dir, out string) error {
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(out), ".pack-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := errors.Join(writeFolder(dir, f), f.Chmod(0o644), f.Close()); err != nil {
		return fmt.Errorf("write %q: %w", out, err)
	}
	return os.Rename(f.Name(), out)
}

func writeFolder(dir string, out io.Writer) error {
	w := tar.NewWriter(out)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		header := &tar.Header{Typeflag: tar.TypeReg, Name: filepath.ToSlash(name), Mode: 0o644, Size: int64(len(data))}
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	})
	return errors.Join(err, w.Close())
}
