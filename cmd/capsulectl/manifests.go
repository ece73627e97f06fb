package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

// readManifests decodes files, folders (their *.yaml and *.yml, not those of
// folders below) and "-". All errors of all files are reported at once.
func (a *app) readManifests(names []string) ([]*capsulev1.Object, error) {
	var all []*capsulev1.Object
	var errs []error
	for _, name := range names {
		files, err := manifestFiles(name)
		errs = append(errs, err)
		for _, file := range files {
			objs, err := a.readManifest(file)
			all, errs = append(all, objs...), append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, errors.New("no object in the manifests")
	}
	if err := manifest.Unique(all); err != nil {
		return nil, err
	}
	return all, nil
}

func manifestFiles(name string) ([]string, error) {
	if name == "-" {
		return []string{name}, nil
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, readError(name, err)
	}
	if !info.IsDir() {
		return []string{name}, nil
	}
	var files []string
	for _, pattern := range []string{"*.yaml", "*.yml"} {
		found, err := filepath.Glob(filepath.Join(escapeGlob(name), pattern))
		if err != nil {
			return nil, readError(name, err)
		}
		files = append(files, found...)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("folder %q holds no *.yaml or *.yml", name)
	}
	slices.Sort(files)
	return files, nil
}

// escapeGlob makes a folder's name mean itself in a pattern.
func escapeGlob(name string) string {
	if os.PathSeparator == '\\' {
		return name // there is no escape on Windows
	}
	var out []rune
	for _, r := range name {
		if r == '*' || r == '?' || r == '[' || r == '\\' {
			out = append(out, '\\')
		}
		out = append(out, r)
	}
	return string(out)
}

func (a *app) readManifest(file string) ([]*capsulev1.Object, error) {
	if file == "-" {
		return manifest.Decode("stdin", a.ui.in)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, readError(file, err)
	}
	defer f.Close()
	return manifest.Decode(file, io.Reader(f))
}

func readError(name string, err error) error { return fileError("read", name, err) }

// fileError is what can't be done with a file, which the system's error names
// in other words.
func fileError(verb, name string, err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	return fmt.Errorf("%s %q: %w", verb, name, err)
}
