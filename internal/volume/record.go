package volume

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"capsule/internal/lvm"
	"capsule/internal/store"
)

// What the bucket "volumes" of the store holds, as JSON:
//
//	volume/<name>               → record
//	snapshot/<volume>/<name>    → snapshot
//	intent/<logical volume>     → intent
//	settings                    → what KeptOvercommit reads
const (
	bucketName   = "volumes"
	volumeKeys   = "volume/"
	snapshotKeys = "snapshot/"
	intentKeys   = "intent/"
	settingsKey  = "settings"
)

// record of a volume whose logical volume is whole.
type record struct {
	// UID of its object; "" from when a clone or an import is whole until the
	// loop has seen the object that declares it.
	UID  string `json:"uid,omitempty"`
	LV   string `json:"lv"`
	Size int64  `json:"size"` // bytes, of the logical volume
	// Fresh: the first mount may be to come. Not set, there is a folder data.
	Fresh  bool    `json:"fresh,omitempty"`
	Claims []claim `json:"claims,omitempty"`
	// Scheduled is when the schedule last made a snapshot.
	Scheduled time.Time `json:"scheduled,omitzero"`
}

// claim of a workload on a volume.
type claim struct {
	Workload string `json:"workload"`
	VM       bool   `json:"vm,omitempty"`
	Shared   bool   `json:"shared,omitempty"`
}

// snapshot of a volume, whole.
type snapshot struct {
	LV        string    `json:"lv"`
	CreatedAt time.Time `json:"createdAt"`
	Size      int64     `json:"size"` // bytes, of the volume then
	Fresh     bool      `json:"fresh,omitempty"`
	Scheduled bool      `json:"scheduled,omitempty"`
	// Used is what it refers to in the pool, in bytes. It never changes.
	Used int64 `json:"used,omitempty"`
	// Seq counts the snapshots of a volume, whatever the clock says.
	Seq uint64 `json:"seq,omitempty"`
}

// intent says that a logical volume is being made or removed. Either way it is
// to be gone when the machine starts and finds it.
type intent struct {
	LV      string `json:"lv"`
	Purpose string `json:"purpose"` // for people: "create", "remove", "snapshot", …
	Volume  string `json:"volume"`
}

// state is all that the bucket holds.
type state struct {
	volumes   map[string]record
	snapshots map[string]map[string]snapshot // by volume, by name
	intents   map[string]intent              // by logical volume
	awaited   map[string]bool                // volumes whose data is to come from a backup
}

// newLV is a name that no logical volume ever had: prefix is "vol" or "snap".
func newLV(prefix, name string) string {
	b := make([]byte, 3)
	rand.Read(b) // never fails: crypto/rand ends the program instead
	return prefix + "-" + name + "." + hex.EncodeToString(b)
}

func readState(b *store.Bucket) (state, error) {
	s := state{volumes: map[string]record{}, snapshots: map[string]map[string]snapshot{}, intents: map[string]intent{}, awaited: map[string]bool{}}
	err := b.Each(func(key string, value []byte) error {
		if err := s.read(key, value); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		return nil
	})
	return s, err
}

// read takes in one key. Those of a newer version are left alone.
func (s *state) read(key string, value []byte) error {
	if name, ok := strings.CutPrefix(key, volumeKeys); ok {
		var r record
		err := json.Unmarshal(value, &r)
		s.volumes[name] = r
		return err
	}
	if name, ok := strings.CutPrefix(key, awaitedKeys); ok {
		s.awaited[name] = true
		return nil
	}
	if lv, ok := strings.CutPrefix(key, intentKeys); ok {
		var i intent
		err := json.Unmarshal(value, &i)
		s.intents[lv] = i
		return err
	}
	if rest, ok := strings.CutPrefix(key, snapshotKeys); ok {
		volume, name, _ := strings.Cut(rest, "/")
		var snap snapshot
		err := json.Unmarshal(value, &snap)
		s.putSnapshot(volume, name, snap)
		return err
	}
	return nil
}

func (s *state) putSnapshot(volume, name string, snap snapshot) {
	if s.snapshots[volume] == nil {
		s.snapshots[volume] = map[string]snapshot{}
	}
	s.snapshots[volume][name] = snap
}

// clone is a copy that shares nothing that is changed in place.
func (s *state) clone() state {
	c := state{volumes: maps.Clone(s.volumes), snapshots: map[string]map[string]snapshot{}, intents: maps.Clone(s.intents), awaited: maps.Clone(s.awaited)}
	for name, r := range c.volumes {
		r.Claims = slices.Clone(r.Claims)
		c.volumes[name] = r
	}
	for volume, snaps := range s.snapshots {
		c.snapshots[volume] = maps.Clone(snaps)
	}
	return c
}

// change is a step of the journal: it reads what is, and all that it writes is
// on disk together, or nothing is.
type change struct {
	state
	table store.Table
}

// change runs fn in one transaction of the store. fn must not run commands and
// must not use the store otherwise.
func (m *Manager) change(fn func(*change) error) error {
	m.writing.Lock()
	defer m.writing.Unlock()
	c := &change{state: m.known()}
	err := m.bucket.Update(func(t store.Table) error {
		c.table = t
		return fn(c)
	})
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state = c.state
	return nil
}

// known is a copy of what the store has.
func (m *Manager) known() state {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.clone()
}

// record gives what is kept of a volume and whether something is.
func (m *Manager) record(volume string) (record, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.state.volumes[volume]
	r.Claims = slices.Clone(r.Claims)
	return r, ok
}

// snapshot gives what is kept of a snapshot and whether something is.
func (m *Manager) snapshot(volume, name string) (snapshot, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.state.snapshots[volume][name]
	return s, ok
}

// snapshotsOf are the snapshots of a volume by name.
func (m *Manager) snapshotsOf(volume string) map[string]snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.state.snapshots[volume])
}

func (c *change) put(key string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return c.table.Put(key, data)
}

func (c *change) putVolume(name string, r record) error {
	c.volumes[name] = r
	return c.put(volumeKeys+name, r)
}

func (c *change) dropVolume(name string) error {
	delete(c.volumes, name)
	return c.table.Delete(volumeKeys + name)
}

func (c *change) putSnapshot(volume, name string, s snapshot) error {
	c.state.putSnapshot(volume, name, s)
	return c.put(snapshotKeys+volume+"/"+name, s)
}

func (c *change) dropSnapshot(volume, name string) error {
	delete(c.snapshots[volume], name)
	if len(c.snapshots[volume]) == 0 {
		delete(c.snapshots, volume)
	}
	return c.table.Delete(snapshotKeys + volume + "/" + name)
}

func (c *change) putIntent(i intent) error {
	c.intents[i.LV] = i
	return c.put(intentKeys+i.LV, i)
}

func (c *change) putIntents(all []intent) error {
	for _, i := range all {
		if err := c.putIntent(i); err != nil {
			return err
		}
	}
	return nil
}

func (c *change) dropIntent(lv string) error {
	delete(c.intents, lv)
	return c.table.Delete(intentKeys + lv)
}

func (c *change) dropIntents(lvs []string) error {
	for _, lv := range lvs {
		if err := c.dropIntent(lv); err != nil {
			return err
		}
	}
	return nil
}

// begin writes to disk that logical volumes are going to be made or removed. It
// comes before the lvm command. Who begins has the lock of the volume, and calls
// commit or undo.
func (m *Manager) begin(all ...intent) error {
	m.setUnderway(true, all...)
	err := m.change(func(c *change) error { return c.putIntents(all) })
	if err != nil {
		m.setUnderway(false, all...)
	}
	return err
}

// commit writes what fn does, which may be nil, and that nothing is under way
// with the logical volume any more. It comes when that is whole and on disk, or
// gone. After an error the intent stands: undo comes next.
func (m *Manager) commit(lv string, fn func(*change) error) error {
	err := m.change(func(c *change) error {
		if fn != nil {
			if err := fn(c); err != nil {
				return err
			}
		}
		return c.dropIntent(lv)
	})
	if err == nil {
		m.setUnderway(false, intent{LV: lv})
	}
	return err
}

// undoMax bounds what an operation that failed, or was given up, does after it.
const undoMax = 5 * time.Minute

// undo removes a logical volume that was begun, after cause kept it from being
// committed. When that fails too, the loop and the next start try again: the
// intent stands. It gives cause, with what else went wrong.
func (m *Manager) undo(ctx context.Context, lv string, cause error) error {
	defer m.setUnderway(false, intent{LV: lv})
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoMax)
	defer cancel()
	err := unmountFS(m.dirOf(lv))
	if err == nil {
		err = lvm.RemoveThin(ctx, lv)
	}
	if err == nil {
		err = m.commit(lv, nil)
	}
	if err != nil {
		return fmt.Errorf("%w; what was begun is removed later: %w", cause, err)
	}
	return cause
}

func (m *Manager) setUnderway(on bool, all ...intent) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, i := range all {
		if on {
			m.underway[i.LV] = true
		} else {
			delete(m.underway, i.LV)
		}
	}
}

// leftovers are the logical volumes of a volume that an intent stands for though
// nobody works on it: what failed, or was cut.
func (m *Manager) leftovers(volume string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var lvs []string
	for lv, i := range m.state.intents {
		if i.Volume == volume && !m.underway[lv] {
			lvs = append(lvs, lv)
		}
	}
	slices.Sort(lvs)
	return lvs
}
