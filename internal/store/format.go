package store

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/version"
)

// Format of what this version writes, and the oldest format whose readers
// understand it. Raise readers only for a change that an older capsuled would
// misread: added fields, keys and buckets never need it.
const (
	formatWritten = 1
	formatReaders = 1
)

var keyStamp = []byte("stamp")

// stamp says who can read the store.
type stamp struct {
	Format  int    `json:"format"`
	Readers int    `json:"readers"`
	Version string `json:"version"` // of the capsuled with that format
}

// restamp makes the buckets and writes the stamp, unless a newer one is there.
func restamp(db *bolt.DB) error {
	fresh := func(tx *bolt.Tx) bool {
		old, err := readStamp(tx)
		return err == nil && (old.Format > formatWritten || old.Format == formatWritten && old.Version == version.Version)
	}
	var done bool
	if err := db.View(func(tx *bolt.Tx) error { done = fresh(tx); return nil }); err != nil || done {
		return err
	}
	return db.Update(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{bucketFormat, bucketObjects, bucketStatus, bucketEvents, bucketKV} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return fmt.Errorf("make bucket %s: %w", name, err)
			}
		}
		data, err := json.Marshal(stamp{Format: formatWritten, Readers: formatReaders, Version: version.Version})
		if err != nil {
			return err
		}
		return tx.Bucket(bucketFormat).Put(keyStamp, data)
	})
}

func readStamp(tx *bolt.Tx) (stamp, error) {
	var s stamp
	b := tx.Bucket(bucketFormat)
	if b == nil {
		return s, fmt.Errorf("it has no format stamp")
	}
	if err := json.Unmarshal(b.Get(keyStamp), &s); err != nil {
		return s, fmt.Errorf("format stamp: %w", err)
	}
	return s, nil
}

// readAll proves that this version can read the store.
func readAll(tx *bolt.Tx) error {
	s, err := readStamp(tx)
	if err != nil {
		return err
	}
	if s.Readers > formatWritten {
		return fmt.Errorf("it was written by capsuled %s in format %d; this is capsuled %s, which reads up to format %d: install a newer version",
			s.Version, s.Format, version.Version, formatWritten)
	}
	for _, name := range [][]byte{bucketObjects, bucketStatus, bucketEvents, bucketKV} {
		if tx.Bucket(name) == nil {
			return fmt.Errorf("it has no bucket %q", name)
		}
	}
	if _, err := (view{tx: tx}).List(""); err != nil {
		return err
	}
	kv := tx.Bucket(bucketKV)
	return kv.ForEachBucket(func(name []byte) error {
		return kv.Bucket(name).ForEach(func(k, v []byte) error {
			if _, err := unseal(v); err != nil {
				return fmt.Errorf("%s/%s: %w", name, k, err)
			}
			return nil
		})
	})
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal puts a CRC-32C in front: a rotten page inside a value is seen, not read.
func seal(data []byte) []byte {
	out := make([]byte, 0, 4+len(data))
	out = binary.LittleEndian.AppendUint32(out, crc32.Checksum(data, castagnoli))
	return append(out, data...)
}

// unseal gives the value without copying it.
func unseal(data []byte) ([]byte, error) {
	if len(data) < 4 || crc32.Checksum(data[4:], castagnoli) != binary.LittleEndian.Uint32(data) {
		return nil, fmt.Errorf("checksum of %d bytes is wrong", len(data))
	}
	return data[4:], nil
}

func decode(data []byte, m proto.Message) error {
	data, err := unseal(data)
	if err != nil {
		return err
	}
	return proto.Unmarshal(data, m)
}

func encode(m proto.Message) ([]byte, error) {
	data, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	return seal(data), nil
}

// readObject reads one object and joins its status.
func readObject(tx *bolt.Tx, key, data []byte) (*v1.Object, error) {
	obj := &v1.Object{}
	if err := decode(data, obj); err != nil {
		return nil, fmt.Errorf("read object %q: %w", key, err)
	}
	status := pending(obj)
	if status == nil {
		return obj, nil
	}
	if raw := tx.Bucket(bucketStatus).Get([]byte(obj.GetMeta().GetUid())); raw != nil {
		if err := decode(raw, status); err != nil {
			return nil, fmt.Errorf("read status of %q: %w", key, err)
		}
	}
	put(obj, status)
	return obj, nil
}

// writeObject writes an object without its status.
func writeObject(tx *bolt.Tx, obj *v1.Object) error {
	data, err := encode(bare(obj))
	if err != nil {
		return fmt.Errorf("encode %s %q: %w", obj.Meta.Kind, obj.Meta.Name, err)
	}
	return tx.Bucket(bucketObjects).Put(objectKey(obj.Meta.Kind, obj.Meta.Name), data)
}
