package volume

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"capsule/api/manifest"
	"capsule/internal/store"
)

// awaitedKeys are of volumes whose data is to come from a backup: until it has, nothing
// is made in their place, and no workload gets an empty one.
const awaitedKeys = "awaited/"

// waitsForData is the status of such a volume.
const waitsForData = "waits for its data: capsulectl capsule restore BACKUP fills it; deleting the volume gives the data up"

var errNotAwaited = fmt.Errorf("it does not wait for data: %w", errdefs.ErrFailedPrecondition)

// Await prepares a store that came from another machine, before it's used here: what it
// keeps of logical volumes was of that machine's disk, and these volumes wait for their
// data. The others are made as they are declared, empty.
func Await(st *store.Store, names []string) error {
	b := st.Bucket(bucketName)
	var old []string
	if err := b.Each(func(key string, _ []byte) error {
		for _, prefix := range []string{volumeKeys, snapshotKeys, intentKeys, awaitedKeys} {
			if strings.HasPrefix(key, prefix) {
				old = append(old, key)
			}
		}
		return nil
	}); err != nil {
		return err
	}
	return b.Update(func(t store.Table) error {
		for _, key := range old {
			if err := t.Delete(key); err != nil {
				return err
			}
		}
		for _, name := range names {
			if err := t.Put(awaitedKeys+name, []byte("{}")); err != nil {
				return err
			}
		}
		return nil
	})
}

// awaited is an error when a volume does not wait for its data.
func (m *Manager) awaited(name string) error {
	if _, err := m.opts.Store.Get(manifest.KindVolume, name); err != nil {
		return err
	}
	if !m.isAwaited(name) {
		return errNotAwaited
	}
	return nil
}

// isAwaited tells whether a volume waits for its data.
func (m *Manager) isAwaited(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.awaited[name]
}

func (c *change) dropAwaited(name string) error {
	delete(c.awaited, name)
	return c.table.Delete(awaitedKeys + name)
}
