package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Where containerd keeps what a capsule uses of it.
const (
	containerdDir  = permDir + "/containerd"
	imagesFile     = containerdDir + "/io.containerd.metadata.v1.bolt/meta.db"
	layersDir      = containerdDir + "/io.containerd.snapshotter.v1.erofs"
	containerSpace = "capsule"
	kindCommitted  = 3
	boltWait       = 5 * time.Second
)

// checkImage looks whether an image is in containerd's store and whether the
// layers that it has are whole.
func checkImage(name string) error {
	err := viewBolt(imagesFile, func(tx *bolt.Tx) error {
		if images := bucket(tx, "v1", containerSpace, "images"); images == nil || images.Bucket([]byte(name)) == nil {
			return fmt.Errorf("image %q is not in containerd's store", name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return viewBolt(filepath.Join(layersDir, "metadata.db"), checkLayers)
}

func viewBolt(path string, fn func(*bolt.Tx) error) error {
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: boltWait})
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	return errors.Join(db.View(fn), db.Close())
}

func bucket(tx *bolt.Tx, path ...string) *bolt.Bucket {
	b := tx.Bucket([]byte(path[0]))
	for _, name := range path[1:] {
		if b != nil {
			b = b.Bucket([]byte(name))
		}
	}
	return b
}

// checkLayers looks at the file of each committed snapshot.
func checkLayers(tx *bolt.Tx) error {
	all := bucket(tx, "v1", "snapshots")
	if all == nil {
		return errors.New("no snapshots in the store of layers")
	}
	layers := 0
	err := all.ForEachBucket(func(key []byte) error {
		s := all.Bucket(key)
		if kind := s.Get([]byte("kind")); len(kind) != 1 || kind[0] != kindCommitted {
			return nil
		}
		layers++
		id, _ := binary.Uvarint(s.Get([]byte("id")))
		return checkLayer(filepath.Join(layersDir, "snapshots", fmt.Sprint(id), "layer.erofs"))
	})
	if err == nil && layers == 0 {
		err = errors.New("no layers of the image")
	}
	return err
}

// checkLayer looks whether a file has all blocks that its superblock counts
// (fs/erofs/erofs_fs.h).
func checkLayer(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	const super, magic = 1024, 0xe0f5e1e2
	if len(data) < super+128 || binary.LittleEndian.Uint32(data[super:]) != magic {
		return fmt.Errorf("%s is no EROFS: %d bytes", path, len(data))
	}
	blocks, shift := binary.LittleEndian.Uint32(data[super+36:]), data[super+12]
	if want := int64(blocks) << shift; int64(len(data)) < want {
		return fmt.Errorf("%s has %d bytes, want %d", path, len(data), want)
	}
	return nil
}
