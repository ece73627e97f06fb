package main

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/backup"
)

const (
	backupSuffix = ".backup"
	// indexFile of a folder has the hashes of the newest backup in it, and no data: what
	// is known, also to who can't open the backup. Its form is that of a backup.
	indexFile = "index"
	stampForm = "20060102T150405.000Z"
)

// A backup in a folder is named by its capsule, the time, its place in its chain, and
// its id: "box-20261130T174500.123Z-02-<id>.backup" stands on two others.
var backupName = regexp.MustCompile(`^(.+)-(\d{8}T\d{6}\.\d{3}Z)-(\d{2})-([0-9a-f]{32})\.backup$`)

// backupEntry is a backup in a folder.
type backupEntry struct {
	file  string // its name
	stamp string
	place int // in its chain, 0 for a whole one
	id    string
}

func nameOfBackup(h *capsulev1.BackupHeader, place int) string {
	name := h.GetName()
	if name == "" || name != filepath.Base(name) || strings.ContainsAny(name, `/\:`) { // the capsule says it
		name = "capsule"
	}
	return fmt.Sprintf("%s-%s-%02d-%x%s", name, h.GetCreatedAt().AsTime().UTC().Format(stampForm), place, h.GetId(), backupSuffix)
}

// backupsIn lists the backups of a folder, oldest first.
func backupsIn(dir string) ([]backupEntry, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, readError(dir, err)
	}
	var all []backupEntry
	for _, e := range entries {
		if m := backupName.FindStringSubmatch(e.Name()); m != nil {
			place, _ := strconv.Atoi(m[3]) // two digits
			all = append(all, backupEntry{file: e.Name(), stamp: m[2], place: place, id: m[4]})
		}
	}
	slices.SortFunc(all, func(a, b backupEntry) int {
		return cmp.Or(strings.Compare(a.stamp, b.stamp), cmp.Compare(a.place, b.place), strings.Compare(a.id, b.id))
	})
	return all, nil
}

// backupWithID finds one in a folder.
func backupWithID(dir string, id []byte) (backupEntry, error) {
	all, err := backupsIn(dir)
	if err != nil {
		return backupEntry{}, err
	}
	want := hex.EncodeToString(id)
	for _, e := range all {
		if e.id == want {
			return e, nil
		}
	}
	return backupEntry{}, &failure{exitFailed, fmt.Errorf("the backup that it stands on, %s, is not in %q", want, dir), "keep the files of a chain together, under the names that they were given"}
}

// isBackupFolder tells a folder, also one that is to be made, from a file.
func isBackupFolder(path string) bool {
	if strings.HasSuffix(path, "/") || strings.HasSuffix(path, string(filepath.Separator)) {
		return true
	}
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// known is what the newest backup of a folder lets the capsule leave out.
type known struct {
	file   *os.File
	reader *backup.Reader
	place  int // of the one that stands on it
}

func (k *known) close() {
	if k != nil {
		k.file.Close()
	}
}

// base is the id of that backup.
func (k *known) base() []byte {
	if k == nil {
		return nil
	}
	return k.reader.Header().GetId()
}

// openKnown opens the index of a folder of this capsule. Where there is none that is of
// use, the next backup is a whole one; why says so to people.
func openKnown(dir, fingerprint string) (k *known, why string, err error) {
	f, err := os.Open(filepath.Join(dir, indexFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", readError(indexFile, err)
	}
	defer func() {
		if k == nil {
			f.Close()
		}
	}()
	r, err := backup.NewReader(f)
	if err != nil {
		return nil, "its index can't be used", nil //nolint:nilerr // it's made anew
	}
	if r.Header().GetFingerprint() != fingerprint {
		return nil, "the newest backup in it is of another capsule", nil
	}
	e, err := backupWithID(dir, r.Header().GetId())
	if err != nil {
		return nil, "the newest backup is not in it any more", nil //nolint:nilerr // told
	}
	if e.place+1 >= backup.ChainMax {
		return nil, fmt.Sprintf("%d backups stand on each other", e.place+1), nil
	}
	return &known{file: f, reader: r, place: e.place + 1}, "", nil
}

// knownBatch is how many chunks go in one message.
const knownBatch = 1024

// send tells the capsule all chunks, in order.
func (k *known) send(send func(*capsulev1.BackupKnown) error) error {
	batch := &capsulev1.BackupKnown{}
	flush := func() error {
		if len(batch.GetIndexes()) == 0 {
			return nil
		}
		err := send(batch)
		batch = &capsulev1.BackupKnown{Volume: batch.GetVolume()}
		return err
	}
	for {
		rec, err := k.reader.Next()
		if err != nil {
			return errors.Join(flush(), ignoreEOF(err))
		}
		if v := rec.GetVolume(); v != nil {
			if err := flush(); err != nil {
				return err
			}
			batch.Volume = v.GetName()
		}
		c := rec.GetChunk()
		if c == nil {
			continue
		}
		batch.Indexes, batch.Hashes = append(batch.Indexes, c.GetIndex()), append(batch.Hashes, c.GetHash())
		if len(batch.GetIndexes()) == knownBatch {
			if err := flush(); err != nil {
				return err
			}
		}
	}
}

// newestBackup is the last one of a folder.
func newestBackup(dir string) (string, error) {
	all, err := backupsIn(dir)
	if err != nil {
		return "", err
	}
	if len(all) == 0 {
		return "", &failure{exitFailed, fmt.Errorf("%q holds no backup", dir), "name a backup, or a folder that \"capsulectl capsule backup\" filled"}
	}
	return filepath.Join(dir, all[len(all)-1].file), nil
}

func ignoreEOF(err error) error {
	if isEOF(err) {
		return nil
	}
	return err
}

// stampOf is when a backup was made, for people.
func stampOf(h *capsulev1.BackupHeader) string {
	return h.GetCreatedAt().AsTime().Local().Format(time.DateTime)
}
