package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// exampleImage is the name of the example's image.
const exampleImage = "web:1"

// withDockerManifest gives an OCI archive also the list by which Docker 26 finds an
// image's parts; those are the same bytes
// (https://github.com/moby/docker-image-spec/blob/main/spec.md, "manifest.json").
func withDockerManifest(archive []byte, name string) ([]byte, error) {
	files := map[string][]byte{}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		content, err := io.ReadAll(r)
		if err != nil {
			return nil, err
		}
		files[header.Name] = content
		if err := addFile(w, header, content); err != nil {
			return nil, err
		}
	}
	list, err := dockerManifest(files, name)
	if err != nil {
		return nil, err
	}
	header := &tar.Header{Typeflag: tar.TypeReg, Name: "manifest.json", Mode: 0o644, Size: int64(len(list))}
	err = errors.Join(addFile(w, header, list), w.Close())
	return out.Bytes(), err
}

func addFile(w *tar.Writer, header *tar.Header, content []byte) error {
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

// dockerManifest lists the parts of an archive's one image.
func dockerManifest(files map[string][]byte, name string) ([]byte, error) {
	type part struct{ Digest string }
	var index struct{ Manifests []part }
	if err := json.Unmarshal(files["index.json"], &index); err != nil || len(index.Manifests) != 1 {
		return nil, fmt.Errorf("index.json of %d images, want 1: %w", len(index.Manifests), err)
	}
	blob := func(p part) string { return "blobs/" + strings.Replace(p.Digest, ":", "/", 1) }
	var image struct {
		Config part
		Layers []part
	}
	if err := json.Unmarshal(files[blob(index.Manifests[0])], &image); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	var layers []string
	for _, l := range image.Layers {
		layers = append(layers, blob(l))
	}
	return json.Marshal([]map[string]any{{"Config": blob(image.Config), "RepoTags": []string{name}, "Layers": layers}})
}
