package store

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// UPD-08, forth and back: a newer version's tables, and its keys in tables that this
// one has, outlive what this version changes beside them, in the store and its copy.
func TestTablesOfNewerVersion(t *testing.T) {
	s, path := openTemp(t)
	apply(t, s, container("a", "web:1"))
	newer := map[string]string{"tomorrow": "moon", "updates": "schedule/weekly"}
	err := errors.Join(s.Bucket("updates").Put("history/1", []byte("{}")), s.db.Update(func(tx *bolt.Tx) error {
		mark, _ := json.Marshal(stamp{Format: formatWritten + 1, Readers: formatReaders, Version: "99"})
		return tx.Bucket(bucketFormat).Put(keyStamp, mark)
	}))
	for table, key := range newer {
		err = errors.Join(err, s.Bucket(table).Put(key, []byte("kept")))
	}
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}

	s = reopen(t, path)
	apply(t, s, container("a", "web:2"), container("b", "web:1"))
	err = errors.Join(s.Delete("", "b"), s.Bucket("updates").Put("history/2", []byte("{}")), s.Bucket("updates").Delete("history/1"),
		s.Copy(), s.Close())
	if err != nil {
		t.Fatal(err)
	}

	copied, err := OpenCopy(path)
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close()
	for name, s := range map[string]*Store{filepath.Base(path): reopen(t, path), "copy": copied} {
		for table, key := range newer {
			if v, found, err := s.Bucket(table).Get(key); string(v) != "kept" || !found || err != nil {
				t.Errorf("%s: %s/%s: %q, %v", name, table, key, v, err)
			}
		}
		err := s.db.View(func(tx *bolt.Tx) error {
			if mark, err := readStamp(tx); err != nil || mark.Version != "99" || mark.Format != formatWritten+1 {
				t.Errorf("%s: %+v, %v", name, mark, err)
			}
			return nil
		})
		if err != nil {
			t.Error(name, err)
		}
	}
}
