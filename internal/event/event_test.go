package event

import (
	"path/filepath"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"

	v1 "capsule/api/capsule/v1"
)

func TestRing(t *testing.T) {
	db, err := bolt.Open(filepath.Join(t.TempDir(), "db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	const extra = 25
	err = db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucket([]byte("events"))
		if err != nil {
			return err
		}
		for range Max + extra {
			if err := Append(b, &v1.Event{Type: "created", Message: "x\xff" + strings.Repeat("é", messageMax)}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	err = db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("events"))
		all, err := List(b, 0, Max+extra)
		if err != nil || len(all) != Max || all[0].Id != extra+1 || all[Max-1].Id != Max+extra {
			t.Errorf("%d events from %d, %v", len(all), all[0].GetId(), err)
		}
		if len(all[0].Message) > messageMax {
			t.Errorf("message of %d bytes", len(all[0].Message))
		}
		if oldest, newest := Kept(b); oldest != extra+1 || newest != Max+extra {
			t.Errorf("kept %d to %d", oldest, newest)
		}
		if !strings.HasPrefix(all[0].Message, "xé") {
			t.Errorf("message %q", all[0].Message)
		}
		some, err := List(b, 100, 3)
		if err != nil || len(some) != 3 || some[0].Id != 101 {
			t.Error(some, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
