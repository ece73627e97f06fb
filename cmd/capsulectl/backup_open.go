package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	crypt "filippo.io/age"
	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/backup"
)

// OpenOptions say how a backup is opened.
type OpenOptions struct {
	Identity       string
	PassphraseFile string
}

func (o *OpenOptions) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.Identity, "identity", "", "file with the age key that opens the backup")
	passphraseFile(cmd, &o.PassphraseFile)
}

// savedBackup is a backup in a file, which may be read several times.
type savedBackup struct {
	path string // of the newest file
	keys []crypt.Identity
}

// openBackup finds out which file is meant, and asks for what opens it.
func (a *app) openBackup(path string, o OpenOptions) (savedBackup, error) {
	if isBackupFolder(path) {
		newest, err := newestBackup(path)
		if err != nil {
			return savedBackup{}, err
		}
		path = newest
	} else if _, err := os.Stat(path); err != nil {
		return savedBackup{}, readError(path, err)
	}
	keys, err := a.identities(o.Identity, o.PassphraseFile)
	return savedBackup{path, keys}, err
}

// open begins to read it with all that it stands on.
func (b savedBackup) open() (c *backup.Chain, done func(), err error) {
	var files []*os.File
	closeAll := func() {
		for _, f := range files {
			f.Close()
		}
	}
	defer func() {
		if err != nil {
			closeAll()
		}
	}()
	var readers []*backup.Reader
	for path := b.path; ; {
		f, r, err := b.openFile(path)
		if f != nil {
			files = append(files, f)
		}
		if err != nil {
			return nil, nil, b.explain(path, err)
		}
		readers = append(readers, r)
		if len(r.Header().GetBase()) == 0 || len(readers) == backup.ChainMax {
			break
		}
		before, err := backupWithID(filepath.Dir(b.path), r.Header().GetBase())
		if err != nil {
			return nil, nil, err
		}
		path = filepath.Join(filepath.Dir(b.path), before.file)
	}
	c, err = backup.NewChain(readers[0], readers[1:]...)
	return c, closeAll, b.explain(b.path, err)
}

func (b savedBackup) openFile(path string) (*os.File, *backup.Reader, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, readError(path, err)
	}
	plain, err := crypt.Decrypt(f, b.keys...)
	if err != nil {
		if errors.As(err, new(*crypt.NoIdentityMatchError)) {
			return f, nil, errWrongKey
		}
		return f, nil, backup.ErrForeign
	}
	r, err := backup.NewReader(authentic{plain})
	return f, r, err
}

var errWrongKey = errors.New("wrong key")

// explain says which file it is, and what to do. Nil is nil.
func (b savedBackup) explain(path string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errWrongKey):
		return &failure{exitRefused, fmt.Errorf("%q does not open with this key or passphrase", path), "use --identity with the key of one of its recipients, or --passphrase-file with its passphrase"}
	case errors.Is(err, backup.ErrForeign):
		return &failure{exitFailed, fmt.Errorf("%q is no backup of a capsule", path), "name a file that \"capsulectl capsule backup\" wrote"}
	case errors.Is(err, backup.ErrNewer):
		return &failure{exitFailed, fmt.Errorf("%q was made by a newer version", path), "use a capsulectl and a stick that are at least as new"}
	case errors.Is(err, backup.ErrCut):
		return &failure{exitFailed, fmt.Errorf("%q is cut off", path), "use another copy of it, or an earlier backup"}
	case errors.Is(err, backup.ErrDamaged):
		return &failure{exitFailed, fmt.Errorf("%q: %w", path, err), "use another copy of it, or an earlier backup"}
	}
	return err
}

// authentic reads what was decrypted. That a piece of it isn't what was encrypted is
// damage, whatever age calls it.
type authentic struct{ io.Reader }

func (a authentic) Read(p []byte) (int, error) {
	n, err := a.Reader.Read(p)
	if err == nil || isEOF(err) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, new(*fs.PathError)) {
		return n, err
	}
	return n, fmt.Errorf("it was cut off or changed since it was written: %w", backup.ErrDamaged)
}

// checkedBackup is one that was read to its end.
type checkedBackup struct {
	savedBackup
	header *capsulev1.BackupHeader // with what its volumes hold
	state  []*capsulev1.BackupRecord
	// stateBytes of their data.
	stateBytes int
}

// check reads all of a backup, and of those that it stands on: nothing is changed
// anywhere before it's known to be whole.
func (b savedBackup) check(ctx context.Context, a *app) (*checkedBackup, error) {
	c, done, err := b.open()
	if err != nil {
		return nil, err
	}
	defer done()
	all := &checkedBackup{savedBackup: b, header: c.Header()}
	bar := a.ui.progress()
	defer bar.end()
	var volume *capsulev1.BackupVolume
	read, volumes := int64(0), 0
	for {
		rec, err := c.Next()
		if isEOF(err) {
			break
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, b.explain(b.path, err)
		}
		switch r := rec.GetRecord().(type) {
		case *capsulev1.BackupRecord_File, *capsulev1.BackupRecord_Data:
			if err := all.keep(rec); err != nil {
				return nil, b.explain(b.path, err)
			}
		case *capsulev1.BackupRecord_Volume:
			volume, volumes = all.header.GetVolumes()[volumes], volumes+1
			volume.Size, volume.Fresh, volume.Used = r.Volume.GetSize(), r.Volume.GetFresh(), 0
		case *capsulev1.BackupRecord_Chunk:
			volume.Used += backup.ChunkBytes
			read += int64(len(r.Chunk.GetData()))
			bar.set("check the backup", read, 0)
		}
	}
	if err := c.Rest(); err != nil {
		return nil, b.explain(b.path, err)
	}
	if volumes != len(all.header.GetVolumes()) {
		return nil, b.explain(b.path, fmt.Errorf("volumes are missing: %w", backup.ErrDamaged))
	}
	bar.done()
	return all, nil
}

// stateMax bounds the files of a backup, packed, which are kept in memory; a stick takes
// no more.
const stateMax = 128 << 20

func (b *checkedBackup) keep(rec *capsulev1.BackupRecord) error {
	if b.stateBytes += len(rec.GetData()); b.stateBytes > stateMax {
		return fmt.Errorf("its state has more than %s: %w", size(stateMax), backup.ErrDamaged)
	}
	b.state = append(b.state, rec)
	return nil
}

// used is how many bytes its volumes hold.
func (b *checkedBackup) used() (sum int64) {
	for _, v := range b.header.GetVolumes() {
		sum += int64(v.GetUsed()) //nolint:gosec // bounded by the reader
	}
	return sum
}
