package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"capsule/internal/durable"
)

// book is a file that is appended to, and those that were full: NAME.log, the
// newest, then NAME.1.log to the oldest.
type book struct {
	dir, name string
	most      int64 // bytes of a file

	file *os.File
	size int64
	torn bool // the file ends in the middle of a line
	lost int  // calls without a record since the last one
	// failed is the last write, which was logged.
	failed bool
}

// Names of the books.
const (
	changesBook  = "changes"
	refusalsBook = "refusals"
)

func openBook(dir, name string, most int64) (*book, error) {
	b := &book{dir: dir, name: name, most: most}
	return b, b.begin()
}

// path of the nth file, newest first.
func (b *book) path(n int) string {
	if n == 0 {
		return filepath.Join(b.dir, b.name+".log")
	}
	return filepath.Join(b.dir, fmt.Sprintf("%s.%d.log", b.name, n))
}

// begin opens the newest file, which may be one that a power cut left in the
// middle of a line: what comes next starts on a line of its own.
func (b *book) begin() error {
	f, err := os.OpenFile(b.path(0), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	b.file, b.size = f, info.Size()
	if err := durable.Sync(b.dir); err != nil {
		return errors.Join(err, f.Close())
	}
	if b.torn = false; b.size == 0 {
		return nil
	}
	last := make([]byte, 1)
	if _, err := f.ReadAt(last, b.size-1); err != nil {
		return errors.Join(err, f.Close())
	}
	b.torn = last[0] != '\n'
	return nil
}

// append writes one line whole, or nothing.
func (b *book) append(r Record) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if b.size > 0 && b.size+int64(len(line)) > b.most {
		if err := b.turn(); err != nil {
			return err
		}
	}
	return b.write(line)
}

func (b *book) write(data []byte) error {
	if b.file == nil { // the last turn could not begin a file
		if err := b.begin(); err != nil {
			return err
		}
	}
	if b.torn {
		data = append([]byte("\n"), data...)
	}
	n, err := b.file.Write(data)
	if err != nil && n > 0 {
		if cut := b.file.Truncate(b.size); cut == nil {
			return err
		}
		b.torn = true
	} else if err == nil {
		b.torn = false
	}
	b.size += int64(n)
	return err
}

// turn begins a new file. A cut in the middle leaves a gap in the numbers, which
// readers pass over and the next turn closes.
func (b *book) turn() error {
	err := errors.Join(b.sync(), b.close())
	for n := Files - 2; n >= 0; n-- {
		if e := os.Rename(b.path(n), b.path(n+1)); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return errors.Join(err, b.begin())
}

func (b *book) sync() error {
	if b.file == nil {
		return nil
	}
	return b.file.Sync()
}

func (b *book) close() error {
	if b.file == nil {
		return nil
	}
	err := b.file.Close()
	b.file = nil
	return err
}

// open gives what is written now, oldest first.
func (b *book) open() (*reader, error) {
	r := &reader{}
	for n := Files - 1; n >= 0; n-- {
		f, err := os.Open(b.path(n))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			r.close()
			return nil, err
		}
		r.files = append(r.files, f)
		if n == 0 {
			r.newest, r.end = f, b.size
		}
	}
	return r, nil
}
