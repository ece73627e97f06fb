package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"capsule/internal/bundle"
	"capsule/internal/run"
)

// variantMax bounds the making of a bundle, compiling and packing included.
const variantMax = 20 * time.Minute

// system is a bundle of what was built, or of a change of it.
type system struct {
	*bundle.Header
	path string
}

func (s *system) mib() float64 { return float64(s.Size) / mib }

// open gives the whole file, and its root as it lies in it.
func (s *system) open() (f *os.File, root *io.SectionReader, err error) {
	if f, err = os.Open(s.path); err != nil {
		return nil, nil, err
	}
	return f, io.NewSectionReader(f, s.RootAt, s.Manifest.Root.Size), nil
}

// variants is where bundles are made; what they have in common is made once.
const variants = "build/bench"

// variant makes a bundle of the finished build with flags of the image builder. It
// is kept, and made again when something changed.
func (b *bench) variant(ctx context.Context, name string, flags ...string) (*system, error) {
	dir := filepath.Join(b.repository, variants)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	s := &system{path: filepath.Join(dir, name+".bundle")}
	args := append([]string{"-C", b.repository, "run", "./image", "-variant", s.path}, flags...)
	if _, err := run.Output(ctx, variantMax, "go", args...); err != nil {
		return nil, fmt.Errorf("bundle %q: %w", name, err)
	}
	f, err := os.Open(s.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s.Header, err = bundle.ReadHeader(f)
	return s, err
}

// built is the bundle of the finished build as it is.
func (b *bench) built(ctx context.Context) (*system, error) { return b.variant(ctx, "built") }

// after are the flags of a version that comes after the built one.
func after(built *system, name string) []string {
	return []string{"-version", built.Manifest.Version + "+" + name, "-built", fmt.Sprint(built.Manifest.BuiltUnix + 1)}
}

// changed makes a bundle of the next version whose capsuled has one more source file.
func (b *bench) changed(ctx context.Context, built *system, name, file, source string) (*system, error) {
	flags := after(built, name)
	overlay, err := os.MkdirTemp(b.dir, name)
	if err != nil {
		return nil, err
	}
	added := filepath.Join(b.dir, name+".go")
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(b.repository, file): added}})
	if err != nil {
		return nil, err
	}
	for path, content := range map[string][]byte{added: []byte(source), added + ".json": replace} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return nil, err
		}
	}
	// As the image's builder links it.
	link := "-s -w -buildid= -X capsule/internal/version.Version=" + flags[1] + " -X capsule/internal/version.BuildUnix=" + flags[3]
	if _, err := run.Output(ctx, variantMax, "env", "GOFLAGS=", "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOAMD64=v1",
		"go", "-C", b.repository, "build", "-trimpath", "-buildvcs=false", "-tags", "netgo osusergo grpcnotrace", "-ldflags", link,
		"-overlay", added+".json", "-o", filepath.Join(overlay, "usr/bin/capsuled"), "./cmd/capsuled"); err != nil {
		return nil, fmt.Errorf("capsuled with %s: %w", file, err)
	}
	return b.variant(ctx, name, append(flags, "-overlay", overlay)...)
}

// otherPackage makes a bundle of the next version in which the files of one Debian
// package are those of another version of it, and says which.
func (b *bench) otherPackage(ctx context.Context, built *system, name string) (s *system, what string, err error) {
	overlay, err := os.MkdirTemp(b.dir, name)
	if err != nil {
		return nil, "", err
	}
	what, deb, err := b.otherDeb(ctx, name)
	if err != nil {
		return nil, "", err
	}
	tree := filepath.Join(b.dir, name+".tree")
	if _, err := run.Output(ctx, variantMax, "dpkg-deb", "-x", deb, tree); err != nil {
		return nil, "", err
	}
	root := filepath.Join(b.repository, "build/work/root")
	err = filepath.WalkDir(tree, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		file := strings.TrimPrefix(path, tree+"/")
		info, err := os.Lstat(filepath.Join(root, file))
		if err != nil || !info.Mode().IsRegular() {
			return nil //nolint:nilerr // a file that the image leaves out
		}
		target := filepath.Join(overlay, file)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		if err := os.Rename(path, target); err != nil {
			return err
		}
		return os.Chmod(target, info.Mode().Perm())
	})
	if err != nil {
		return nil, "", err
	}
	s, err = b.variant(ctx, name, append(after(built, name), "-overlay", overlay)...)
	return s, what, err
}

// otherDeb downloads a version of a package that the image does not have, from the
// mirrors that the image was built from.
func (b *bench) otherDeb(ctx context.Context, name string) (what, path string, err error) {
	config := "APT_CONFIG=" + filepath.Join(b.repository, "build/cache/apt/apt.conf")
	out, err := run.Output(ctx, fetchMax, "env", config, "apt-cache", "madison", name)
	if err != nil {
		return "", "", err
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Split(line, "|")
		if len(fields) < 3 {
			continue
		}
		version := strings.TrimSpace(fields[1])
		file := name + "_" + strings.ReplaceAll(version, ":", "%3a") + "_amd64.deb"
		if _, err := os.Stat(filepath.Join(b.repository, "build/cache/debs", file)); err == nil {
			continue // the image's own
		}
		_, err := run.Output(ctx, fetchMax, "env", "-C", b.dir, config, "apt-get", "download", "-q", name+"="+version)
		return name + " " + version, filepath.Join(b.dir, file), err
	}
	return "", "", fmt.Errorf("the mirror has no other version of package %q", name)
}
