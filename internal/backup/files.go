package backup

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	v1 "capsule/api/capsule/v1"
)

// Files writes the files of a backup, of which only those that are allowed may be
// there, below a folder that is there. It reads up to the backup's end, and gives the
// sum that is in it. What it wrote is on the disk; names of folders are not.
func Files(r *Reader, dir string, allowed []string) (sum []byte, err error) {
	u, err := NewUnpacker()
	if err != nil {
		return nil, err
	}
	w := &fileWriter{dir: dir}
	defer w.drop()
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			return sum, nil
		}
		if err != nil {
			return nil, err
		}
		switch part := rec.GetRecord().(type) {
		case *v1.BackupRecord_File:
			if !slices.Contains(allowed, part.File.GetPath()) {
				return nil, damaged("file %s is none of a capsule's state", quoted(part.File.GetPath()))
			}
			err = w.begin(part.File)
		case *v1.BackupRecord_Data:
			err = w.write(u, part.Data)
		case *v1.BackupRecord_End:
			sum = part.End.GetSha256()
		}
		if err != nil {
			return nil, err
		}
	}
}

// fileWriter writes one file after the other.
type fileWriter struct {
	dir  string
	file *os.File // nil between two
	left uint64
}

func (w *fileWriter) begin(f *v1.BackupFile) (err error) {
	path := filepath.Join(w.dir, filepath.FromSlash(f.GetPath()))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if w.file, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return fmt.Errorf("write the state: %w", err)
	}
	w.left = f.GetSize()
	return w.done()
}

func (w *fileWriter) write(u *Unpacker, data []byte) error {
	plain, err := u.Unpack(data, int(min(w.left, ChunkBytes))) //nolint:gosec // small
	if err != nil {
		return err
	}
	if _, err := w.file.Write(plain); err != nil {
		return err
	}
	w.left -= uint64(len(plain))
	return w.done()
}

// done closes a file that is whole.
func (w *fileWriter) done() error {
	if w.left > 0 {
		return nil
	}
	f := w.file
	w.file = nil
	return errors.Join(f.Sync(), f.Close())
}

// drop closes what is not whole.
func (w *fileWriter) drop() {
	if w.file != nil {
		w.file.Close()
	}
}
