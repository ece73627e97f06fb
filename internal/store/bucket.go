package store

import (
	"bytes"
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// Bucket is a small table of another package, kept in the store.
type Bucket struct {
	store *Store
	name  []byte
}

// Bucket gives the table of that name; it exists once something is put.
func (s *Store) Bucket(name string) *Bucket {
	return &Bucket{store: s, name: []byte(name)}
}

// Get gives a copy of the value of key and whether there is one.
func (b *Bucket) Get(key string) (value []byte, found bool, err error) {
	err = b.store.db.View(func(tx *bolt.Tx) error {
		value, found, err = Table{name: b.name, bolt: tx.Bucket(bucketKV).Bucket(b.name)}.Get(key)
		return err
	})
	return value, found, err
}

// Put writes the value of key to disk.
func (b *Bucket) Put(key string, value []byte) error {
	return b.Update(func(t Table) error { return t.Put(key, value) })
}

// Delete removes key; an absent one is success.
func (b *Bucket) Delete(key string) error {
	return b.Update(func(t Table) error { return t.Delete(key) })
}

// Each calls fn with every key and value in the order of keys. fn must not
// write to the store.
func (b *Bucket) Each(fn func(key string, value []byte) error) error {
	return b.store.db.View(func(tx *bolt.Tx) error {
		table := tx.Bucket(bucketKV).Bucket(b.name)
		if table == nil {
			return nil
		}
		return table.ForEach(func(k, data []byte) error {
			value, err := unseal(data)
			if err != nil {
				return fmt.Errorf("read %s/%s: %w", b.name, k, err)
			}
			return fn(string(k), bytes.Clone(value))
		})
	})
}

// Clear removes all keys.
func (b *Bucket) Clear() error {
	if b.store.ReadOnly() {
		return errReadOnly
	}
	defer b.store.copier.wake()
	return b.store.db.Update(func(tx *bolt.Tx) error {
		kv := tx.Bucket(bucketKV)
		if kv.Bucket(b.name) == nil {
			return nil
		}
		return kv.DeleteBucket(b.name)
	})
}

// Update runs fn in one transaction: all that it writes is on disk when Update
// returns, or nothing of it after an error of fn.
func (b *Bucket) Update(fn func(Table) error) error {
	if b.store.ReadOnly() {
		return errReadOnly
	}
	defer b.store.copier.wake()
	return b.store.db.Update(func(tx *bolt.Tx) error {
		table, err := tableIn(tx, b.name)
		if err != nil {
			return err
		}
		return fn(table)
	})
}

// tableIn gives the table of that name to a transaction that writes.
func tableIn(tx *bolt.Tx, name []byte) (Table, error) {
	table, err := tx.Bucket(bucketKV).CreateBucketIfNotExists(name)
	if err != nil {
		return Table{}, fmt.Errorf("make table %s: %w", name, err)
	}
	return Table{name: name, bolt: table}, nil
}

// Table is a bucket inside a transaction; it must not be used after it.
type Table struct {
	name []byte
	bolt *bolt.Bucket // nil when nothing was ever put
}

// Get gives a copy of the value of key and whether there is one.
func (t Table) Get(key string) (value []byte, found bool, err error) {
	if t.bolt == nil {
		return nil, false, nil
	}
	data := t.bolt.Get([]byte(key))
	if data == nil {
		return nil, false, nil
	}
	if data, err = unseal(data); err != nil {
		return nil, false, fmt.Errorf("read %s/%s: %w", t.name, key, err)
	}
	return bytes.Clone(data), true, nil
}

// Put sets the value of key.
func (t Table) Put(key string, value []byte) error { return t.bolt.Put([]byte(key), seal(value)) }

// Delete removes key; an absent one is success.
func (t Table) Delete(key string) error { return t.bolt.Delete([]byte(key)) }
