package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/klauspost/compress/zstd"

	"capsule/internal/disk"
)

const peersSizeMethod = `The system as it lies on its disk before its first start, without the example's image: the bytes that the
sparse file of the disk image takes, file systems and kernel included. Packed is that disk through zstd. The
peers have what they can't do without and sshd, documentation included; nothing that is only recommended.`

// sizes of a disk image.
type sizes struct {
	taken, packed float64 // MiB
	system        string
	packages      string
}

func (b *bench) peersSize(ctx context.Context) error {
	ours, aside, err := b.capsuleSizes()
	if err != nil {
		return err
	}
	theirs, err := each(ctx, b.peerSizes)
	if err != nil {
		return err
	}
	var c comparison
	c.say("system", ours.system, [...]string{theirs[0].system, theirs[1].system})
	c.say("Debian packages", ours.packages, [...]string{theirs[0].packages, theirs[1].packages})
	c.add("**disk that it takes**, MiB", "%.0f", ours.taken, column(theirs, func(s sizes) float64 { return s.taken }))
	c.add("the same, packed, MiB", "%.0f", ours.packed, column(theirs, func(s sizes) float64 { return s.packed }))
	c.add("disk that is set aside for the system, MiB", "%.0f", aside, [...]float64{none, none})
	return b.tell("peers-size", &c)
}

func (b *bench) peerSizes(ctx context.Context, p peer) (s sizes, err error) {
	d, err := b.debian(ctx, p.debianRecipe)
	if err != nil {
		return s, err
	}
	list, err := os.ReadFile(d.Packages)
	if err != nil {
		return s, err
	}
	versions, count := packageVersions(string(list))
	engine := map[string]string{"Docker": "docker.io", "Podman": "podman"}[p.title]
	s.system, s.packages = fmt.Sprintf("%s %s, Linux %s", p.title, versions[engine], versions["linux-image-amd64"]), fmt.Sprint(count)
	s.taken, s.packed, err = diskSizes(d.Disk)
	return s, err
}

// packageVersions reads a list of name, version and size.
func packageVersions(list string) (versions map[string]string, count int) {
	versions = map[string]string{}
	for line := range strings.Lines(list) {
		if fields := strings.Fields(line); len(fields) >= 2 {
			versions[fields[0]] = fields[1]
			count++
		}
	}
	return versions, count
}

// capsuleSizes gives also what its partitions keep for two systems, in MiB.
func (b *bench) capsuleSizes() (s sizes, aside float64, err error) {
	image := filepath.Join(b.repository, "build/capsule.img")
	if s.taken, s.packed, err = diskSizes(image); err != nil {
		return s, 0, err
	}
	text, err := os.ReadFile(filepath.Join(b.repository, "build/cache/packages.json"))
	if err != nil {
		return s, 0, err
	}
	var packages []json.RawMessage
	if err := json.Unmarshal(text, &packages); err != nil {
		return s, 0, fmt.Errorf("packages.json: %w", err)
	}
	s.system, s.packages = b.version, fmt.Sprintf("parts of %d", len(packages))
	aside, err = setAside(image)
	return s, aside, err
}

// setAside is what all partitions but PERM have, in MiB.
func setAside(image string) (float64, error) {
	f, err := os.Open(image)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	const sector = 512
	table, err := disk.ReadTable(f, sector, uint64(info.Size()/sector))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", image, err)
	}
	var size uint64
	for _, p := range table.Partitions {
		if p.Name != "PERM" {
			size += table.Bytes(p)
		}
	}
	return float64(size) / mib, nil
}

// diskSizes tells what a sparse file takes, and takes packed, in MiB.
func diskSizes(path string) (taken, packed float64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, fmt.Errorf("%s: no blocks are told", path)
	}
	var size counter
	w, err := zstd.NewWriter(&size, zstd.WithEncoderLevel(zstd.SpeedBetterCompression))
	if err != nil {
		return 0, 0, err
	}
	_, err = io.Copy(w, f)
	err = errors.Join(err, w.Close())
	return float64(st.Blocks*512) / mib, float64(size) / mib, err
}

// counter counts what is written to it.
type counter int64

func (c *counter) Write(b []byte) (int, error) { *c += counter(len(b)); return len(b), nil }
