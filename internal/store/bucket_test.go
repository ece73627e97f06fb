package store

import (
	"errors"
	"path/filepath"
	"testing"
)

// Several keys of a bucket change together, or not at all.
func TestBucketUpdate(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b := s.Bucket("b")
	if _, found, err := b.Get("a"); found || err != nil {
		t.Errorf("found in a bucket that is not there: %v", err)
	}
	if err := b.Put("old", []byte("1")); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	for _, end := range []error{broken, nil} {
		err := b.Update(func(tx Table) error {
			if err := errors.Join(tx.Put("new", []byte("2")), tx.Delete("old")); err != nil {
				return err
			}
			if v, found, err := tx.Get("new"); string(v) != "2" || !found || err != nil {
				t.Errorf("within: %q, %v, %v", v, found, err)
			}
			return end
		})
		if !errors.Is(err, end) {
			t.Error(err)
		}
		_, hasOld, err1 := b.Get("old")
		_, hasNew, err2 := b.Get("new")
		if err := errors.Join(err1, err2); err != nil || hasOld != (end != nil) || hasNew != (end == nil) {
			t.Errorf("after %v: old %v, new %v, %v", end, hasOld, hasNew, err)
		}
	}
}
