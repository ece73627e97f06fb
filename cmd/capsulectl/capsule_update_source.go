package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/bundle"
)

// bundleSource is a bundle that any part can be read of.
type bundleSource struct {
	name   string // as the operator gave it, without a password
	header *bundle.Header
	size   int64 // bytes
	// gap is how many bytes are rather read and dropped than passed over.
	gap   int64
	open  func(ctx context.Context, offset, length int64) (io.ReadCloser, error)
	close func()
}

func openBundle(ctx context.Context, from string, meter *meter) (*bundleSource, error) {
	if strings.HasPrefix(from, "http://") || strings.HasPrefix(from, "https://") {
		return openURL(ctx, from, meter)
	}
	if from == "-" {
		return nil, &failure{exitUsage, errors.New("a bundle can't come through a pipe: parts of it are read as the capsule asks for them"), "name a file or a URL"}
	}
	return openBundleFile(from)
}

func openBundleFile(path string) (*bundleSource, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, readError(path, err)
	}
	s, err := fileSource(path, f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s.close = func() { f.Close() } //nolint:errcheck // only read
	return s, nil
}

// fileSource reads a bundle of a file, whose name is only told.
func fileSource(name string, f *os.File) (*bundleSource, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, readError(name, err)
	}
	if !info.Mode().IsRegular() {
		return nil, &failure{exitFailed, fmt.Errorf("%q is no file", name), "name a bundle, such as \"make bundle\" builds"}
	}
	header, err := bundle.ReadHeader(io.NewSectionReader(f, 0, info.Size()))
	if err != nil {
		return nil, notBundle(name, err)
	}
	return &bundleSource{
		name: name, header: header, size: info.Size(),
		open: func(_ context.Context, offset, length int64) (io.ReadCloser, error) {
			return io.NopCloser(io.NewSectionReader(f, offset, length)), nil
		},
	}, nil
}

func notBundle(name string, err error) error { return fmt.Errorf("%q: %w", name, err) }

// has refuses ranges that the bundle doesn't have.
func (s *bundleSource) has(ranges []*capsulev1.UpdateRange) error {
	for _, r := range ranges {
		if r.GetOffset() < 0 || r.GetLength() <= 0 || r.GetLength() > s.size || r.GetOffset() > s.size-r.GetLength() {
			return fmt.Errorf("the capsule asks for %d bytes at %d, and the bundle has %d", r.GetLength(), r.GetOffset(), s.size)
		}
	}
	return nil
}

// read gives the ranges in pieces of at most updateBytes. A piece is only good
// until its taker returns.
func (s *bundleSource) read(ctx context.Context, ranges []*capsulev1.UpdateRange, take func(offset int64, data []byte) error) error {
	for len(ranges) > 0 {
		n := s.near(ranges)
		if err := s.readNear(ctx, ranges[:n], take); err != nil {
			return err
		}
		ranges = ranges[n:]
	}
	return nil
}

// near is how many of the ranges are worth one reading: they go on in order with
// small gaps.
func (s *bundleSource) near(ranges []*capsulev1.UpdateRange) int {
	for i, r := range ranges[1:] {
		end := ranges[i].GetOffset() + ranges[i].GetLength()
		if r.GetOffset() < end || r.GetOffset()-end > s.gap {
			return i + 1
		}
	}
	return len(ranges)
}

func (s *bundleSource) readNear(ctx context.Context, ranges []*capsulev1.UpdateRange, take func(offset int64, data []byte) error) error {
	first, last := ranges[0], ranges[len(ranges)-1]
	at := first.GetOffset()
	in, err := s.open(ctx, at, last.GetOffset()+last.GetLength()-at)
	if err != nil {
		return err
	}
	defer in.Close()
	buffer := make([]byte, updateBytes)
	for _, r := range ranges {
		if _, err := io.CopyN(io.Discard, in, r.GetOffset()-at); err != nil {
			return readError(s.name, err)
		}
		end := r.GetOffset() + r.GetLength()
		for at = r.GetOffset(); at < end; {
			data := buffer[:min(end-at, updateBytes)]
			if _, err := io.ReadFull(in, data); err != nil {
				return readError(s.name, err)
			}
			if err := take(at, data); err != nil {
				return err
			}
			at += int64(len(data))
		}
	}
	return nil
}
