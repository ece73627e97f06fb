// Package support gathers what somebody needs to understand a problem into one
// archive: tar, gzip. Each file of it is bounded in size and time; one that can't be
// had is told of in the archive and never stops the others. Secrets are removed: the
// values that the capsule knows wherever they stand, and what looks like one. It
// decides nothing and changes nothing.
package support

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Bounds of an archive.
const (
	bytesDefault = 1 << 20          // of a file
	timeDefault  = 10 * time.Second // until a file is there
	timeMax      = 2 * time.Minute  // for all of them
)

// Entry is one file of an archive: exactly one of Text and Messages is set.
type Entry struct {
	// Name of the file, "kernel.log".
	Name string
	// Text writes it, and Messages gives it as one message a line, as JSON.
	Text     func(ctx context.Context, w io.Writer) error
	Messages func(ctx context.Context, give func(proto.Message) error) error
	// Newest keeps the end of what is too long, and not its begin.
	Newest bool
	// Bytes and Time bound it; zeros are 1 MiB and 10 s.
	Bytes int
	Time  time.Duration
}

// Options of an archive.
type Options struct {
	// Folder that all files are in, and the time they have.
	Folder string
	Time   time.Time
	// Readme is the first file.
	Readme string
	// Secrets are values to be removed wherever they stand.
	Secrets []string
	// Step is told each file before it is gathered; may be nil.
	Step func(name string)
}

// Write gathers all entries into one archive. The error is that of w, or of ctx.
func Write(ctx context.Context, w io.Writer, o Options, entries []Entry) error {
	zip := gzip.NewWriter(w)
	a := &archive{tar: tar.NewWriter(zip), options: o, redact: NewRedactor(o.Secrets)}
	if err := a.add("README.txt", []byte(o.Readme)); err != nil {
		return err
	}
	all, cancel := context.WithTimeout(ctx, timeMax)
	defer cancel()
	for _, e := range entries {
		if o.Step != nil {
			o.Step(e.Name)
		}
		if err := a.entry(all, e); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	if err := a.tar.Close(); err != nil {
		return err
	}
	return zip.Close()
}

type archive struct {
	tar     *tar.Writer
	options Options
	redact  *Redactor
}

// add writes one file.
func (a *archive) add(name string, content []byte) error {
	head := &tar.Header{Name: path.Join(a.options.Folder, name), Mode: 0o600, Size: int64(len(content)), ModTime: a.options.Time, Typeflag: tar.TypeReg}
	if err := a.tar.WriteHeader(head); err != nil {
		return err
	}
	_, err := a.tar.Write(content)
	return err
}

// entry gathers one file, and writes what there is of it, and beside it why it is not
// whole.
func (a *archive) entry(ctx context.Context, e Entry) error {
	content, err := a.gather(ctx, e)
	if err != nil {
		if err := a.add(e.Name+".error", []byte(a.redact.Text(err.Error())+"\n")); err != nil {
			return err
		}
		if len(content) == 0 {
			return nil
		}
	}
	return a.add(e.Name, content)
}

// gather waits no longer than it may, whatever the entry does.
func (a *archive) gather(ctx context.Context, e Entry) ([]byte, error) {
	limit := e.Time
	if limit == 0 {
		limit = timeDefault
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out := &bounded{most: e.Bytes, newest: e.Newest}
	if out.most == 0 {
		out.most = bytesDefault
	}
	done := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
		}()
		done <- a.fill(ctx, e, out)
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	switch {
	case errors.Is(err, errFull):
		err = nil // the file says so
	case errors.Is(err, context.DeadlineExceeded):
		err = fmt.Errorf("%s: not there within %v: %w", e.Name, limit, err)
	}
	content, whole := out.end()
	if err != nil { // it may have ended anywhere
		content = content[:bytes.LastIndexByte(content, '\n')+1]
	}
	if e.Text != nil { // messages were cleaned one by one
		content = []byte(a.redact.Text(string(content)))
	}
	if !whole {
		note := fmt.Sprintf("(cut at %d bytes)\n", out.most)
		if e.Newest {
			return append([]byte(note), content...), err
		}
		content = append(content, note...)
	}
	return content, err
}

func (a *archive) fill(ctx context.Context, e Entry, out io.Writer) error {
	if e.Text != nil {
		return e.Text(ctx, out)
	}
	return e.Messages(ctx, func(m proto.Message) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		m = proto.Clone(m)
		a.redact.Message(m)
		line, err := protojson.Marshal(m)
		if err != nil {
			return err
		}
		_, err = out.Write(append(line, '\n'))
		return err
	})
}

// errFull ends an entry that has more than is kept.
var errFull = errors.New("the file is as long as it may be")

// bounded keeps the first or the newest whole lines of what is written.
type bounded struct {
	most   int
	newest bool

	mu    sync.Mutex
	data  []byte
	cut   bool
	ended bool
}

func (b *bounded) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.ended:
		return 0, errFull
	case b.newest:
		b.data = append(b.data, p...)
		if len(b.data) > 2*b.most { // moved seldom
			b.keepNewest()
		}
	case len(b.data)+len(p) > b.most:
		b.data, b.cut = append(b.data, p[:b.most-len(b.data)]...), true
		b.ended = true
		return 0, errFull
	default:
		b.data = append(b.data, p...)
	}
	return len(p), nil
}

func (b *bounded) keepNewest() {
	if len(b.data) > b.most {
		b.data, b.cut = append([]byte(nil), b.data[len(b.data)-b.most:]...), true
	}
}

// end gives what was kept. A line that was cut is dropped: half of a secret is not
// found.
func (b *bounded) end() (content []byte, whole bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	if b.newest {
		b.keepNewest()
	}
	if !b.cut {
		return b.data, true
	}
	if b.newest {
		_, rest, _ := bytes.Cut(b.data, []byte("\n"))
		return rest, false
	}
	return b.data[:bytes.LastIndexByte(b.data, '\n')+1], false
}

// Title heads a part of a file.
func Title(w io.Writer, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	fmt.Fprintf(w, "# %s\n", strings.ReplaceAll(text, "\n", " "))
}
