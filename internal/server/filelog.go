package server

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"capsule/internal/lastboot"
)

// lineMax bounds one line of a log; longer ones come in pieces.
const lineMax = 32 << 10

// rotatedMax is how many older files of a log are looked for, ".1" the newest.
const rotatedMax = 9

// fileLog reads NAME.log in a folder, and before it what was rotated away. What parse
// does not take is left out.
func fileLog(dir, name string, parse func(line []byte) (sysLine, bool)) source {
	return func(ctx context.Context, follow bool, give func(sysLine) error) error {
		t := &tail{path: filepath.Join(dir, name+".log"), parse: parse, give: give}
		defer t.close()
		var events <-chan fsnotify.Event
		var lost <-chan error
		if follow { // watched before it is read, so that nothing falls between
			w, err := fsnotify.NewWatcher()
			if err != nil {
				return err
			}
			defer w.Close()
			if err := w.Add(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			events, lost = w.Events, w.Errors
		}
		if err := t.old(); err != nil {
			return err
		}
		if err := t.read(); err != nil {
			return err
		}
		if err := give(sysLine{}); err != nil || !follow {
			return err
		}
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case _, ok := <-events:
				if !ok {
					return nil
				}
			case <-lost: //nolint:errcheck // more happened than was told
			}
			if err := t.read(); err != nil {
				return err
			}
		}
	}
}

// tail reads a growing file that may be replaced by a new one.
type tail struct {
	path  string
	parse func([]byte) (sysLine, bool)
	give  func(sysLine) error
	file  *os.File
	rest  []byte // an unfinished line
}

func (t *tail) close() {
	if t.file != nil {
		_ = t.file.Close()
	}
}

// old reads the files that were rotated away, the oldest first.
func (t *tail) old() error {
	for i := rotatedMax; i > 0; i-- {
		f, err := os.Open(t.path + "." + strconv.Itoa(i))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = t.lines(f)
		_ = f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// read gives what was written since.
func (t *tail) read() error {
	for {
		if t.file != nil {
			if err := t.lines(t.file); err != nil {
				return err
			}
			if !t.replaced() {
				return nil
			}
			// What was written between that look and the rotation.
			if err := t.lines(t.file); err != nil {
				return err
			}
			t.close()
			t.file = nil
		}
		f, err := os.Open(t.path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		t.file = f
	}
}

// replaced tells that another file has the name now, or that it was cut.
func (t *tail) replaced() bool {
	now, err := os.Stat(t.path)
	if err != nil {
		return false // between two names; the next event tells
	}
	ours, err := t.file.Stat()
	if err != nil || !os.SameFile(now, ours) {
		return true
	}
	at, err := t.file.Seek(0, io.SeekCurrent)
	return err != nil || at > now.Size()
}

func (t *tail) lines(r io.Reader) error {
	b := bufio.NewReaderSize(r, lineMax)
	for {
		part, err := b.ReadSlice('\n')
		t.rest = append(t.rest, part...)
		if len(t.rest) > 0 && (err == nil || len(t.rest) >= lineMax) {
			line := bytes.Clone(t.rest)
			t.rest = t.rest[:0]
			if l, ok := t.parse(line); ok {
				if err := t.give(l); err != nil {
					return err
				}
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && !errors.Is(err, bufio.ErrBufferFull):
			return err
		}
	}
}

// printed is a line as a service printed it.
func printed(service string) func([]byte) (sysLine, bool) {
	return func(line []byte) (sysLine, bool) {
		return sysLine{time: stamp(line), service: service, data: line}, true
	}
}

// kept is a line that tells its boot; an older form stands as it is.
func kept(service string) func([]byte) (sysLine, bool) {
	return func(line []byte) (sysLine, bool) {
		l, ok := lastboot.ParseLine(line)
		if !ok {
			return printed(service)(line)
		}
		return sysLine{time: l.Time, service: service, data: []byte(l.Text + "\n")}, true
	}
}

// stamp reads the time that slog and containerd begin a line with; zero when
// there is none.
func stamp(line []byte) time.Time {
	text, ok := strings.CutPrefix(string(line[:min(len(line), 64)]), "time=")
	if !ok {
		text = string(line[:min(len(line), 64)])
	}
	text, _, _ = strings.Cut(strings.TrimPrefix(text, `"`), " ")
	text = strings.TrimRight(text, "\"\n")
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}
	}
	return at
}
