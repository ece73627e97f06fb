// Package storage owns which disks a capsule uses: that which it runs from, and those
// that were added to the pool beside it. It finds them at each start, tells when one is
// missing, and adds and replaces them while volumes are in use.
//
// The metadata of the volume group says which disks belong to it; no other disk is
// ever written to but the one that an operator named and agreed to lose. While one is
// missing nothing of the group is changed: whatever lies on it alone stays closed, and
// opens when the disk is back. /perm lies on the disk that the capsule runs from, so
// the machine comes up without the others.
//
// A change is noted in the store before it begins, and each step is found anew by
// looking at what is there (next): a cut at any write, or the end of the daemon, is
// taken up at the next start.
//
//		noted ──join──▶ in the group ─────────────────────────────▶ finish: grow, forget
//		   │                │ replaces another                          ▲
//		   │                └─▶ close ─▶ move … ─▶ reduce ──────────────┤
//		   │                       ╰─ kept ─▶ unmove ─▶ open ───────────╯
//		   ╰─▶ given up: the disk is gone, or holds something else than was agreed to
//
//	  - join clears the disk and makes it a part of the group; cut before that it isn't
//	    one, and the disk counts as empty or as it was shown.
//	  - close has nothing new put on the disk that leaves; move copies what is on it,
//	    volume by volume, and goes on where it was; reduce takes it out.
//	  - In the group there is no way but forward, or to keep both disks.
package storage

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/disk"
	"capsule/internal/installer"
	"capsule/internal/lvm"
	"capsule/internal/store"
)

const (
	lookEvery = 30 * time.Second // at the disks; also until what failed is tried again
	lateMax   = time.Minute      // from the start on, for a disk to appear
	soonEvery = 2 * time.Second  // between looks while one is late
)

// Options of a Manager.
type Options struct {
	Store *store.Store
	Boot  disk.Boot
	// Sysfs is where the kernel tells of devices, Perm where /perm is mounted.
	Sysfs, Perm string
	// Opened is called when volumes may be there that weren't, or the pool has another size.
	Opened func(ctx context.Context)
	Log    *slog.Logger
}

// Manager looks after the disks.
type Manager struct {
	Options
	bucket *store.Bucket
	world  world
	survey *installer.Installer
	wake   chan struct{}
	begun  time.Time

	taking sync.Mutex // one change is begun at a time

	mu      sync.Mutex
	home    string                 // id of PERM
	found   map[string]disk.Device // of the other parts of the group, by id
	missing []string               // ids
	told    map[string]bool        // of the missing, that an event was noted
	looked  bool
	reopen  bool                // disks came since
	known   map[string]identity // of those that joined, by id, as in the store
	change  *change             // under way
	stop    context.CancelFunc  // of the step that is being done
	now     Progress
	moved   time.Time     // when it last got on
	changed chan struct{} // closed when one of the above changes
	ended   map[string]error
}

// Progress of a change.
type Progress struct {
	Step        string
	Done, Total int64  // bytes that are moved; zero of steps that move nothing
	Waits       string // why it doesn't get on; "" when it does
}

// New makes a manager; Assemble finds the disks, Run goes on with what was begun.
func New(o Options) (*Manager, error) {
	m := &Manager{
		Options: o, bucket: o.Store.Bucket("disks"), wake: make(chan struct{}, 1), begun: time.Now(),
		survey:  installer.New(installer.Options{Sysfs: o.Sysfs, Boot: o.Boot, Log: o.Log}),
		found:   map[string]disk.Device{},
		known:   map[string]identity{},
		told:    map[string]bool{},
		changed: make(chan struct{}), ended: map[string]error{},
	}
	m.world = &machine{m}
	return m, m.read()
}

// What the bucket holds, as JSON:
//
//	change       → change that is under way
//	member/<id>  → identity of a disk that joined the group, or is about to
const (
	changeKey  = "change"
	memberKeys = "member/"
)

func (m *Manager) read() error {
	err := m.bucket.Each(func(key string, value []byte) error {
		if id, ok := strings.CutPrefix(key, memberKeys); ok {
			var i identity
			err := json.Unmarshal(value, &i)
			m.known[id] = i
			return err
		}
		if key == changeKey {
			m.change = &change{}
			return json.Unmarshal(value, m.change)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read what is kept of disks: %w", err)
	}
	return nil
}

// identity is what stands on a disk's label.
type identity struct {
	Serial string `json:"serial,omitempty"`
	WWN    string `json:"wwn,omitempty"`
	Model  string `json:"model,omitempty"`
	Bytes  uint64 `json:"bytes"`
	Sector int    `json:"sector"`
}

func identityOf(d disk.Device) identity {
	return identity{Serial: d.Serial, WWN: d.WWN, Model: d.Model, Bytes: d.Bytes, Sector: d.Sector}
}

// device is the disk as far as it is known without being there.
func (i identity) device() disk.Device {
	return disk.Device{Serial: i.Serial, WWN: i.WWN, Model: i.Model, Bytes: i.Bytes, Sector: i.Sector}
}

// String names the disk for people.
func (i identity) String() string {
	d := i.device()
	if d.ID() == "" {
		return "of which nothing is known"
	}
	if d.Model == "" {
		return fmt.Sprintf("%q", d.ID())
	}
	return fmt.Sprintf("%q (%s)", d.ID(), d.Model)
}

// Assemble finds the disks of the group before its volumes are used, and waits a
// moment for those that are late. Which are missing is told, and no error.
func (m *Manager) Assemble(ctx context.Context) error {
	for {
		if err := m.look(); err != nil {
			return err
		}
		if len(m.Missing()) == 0 {
			return m.restore(ctx)
		}
		if time.Since(m.begun) > lateMax {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(soonEvery):
		}
	}
}

// restore has lvm use disks again that it noted as missing: one that was pulled out
// while a volume was removed, and is there again.
func (m *Manager) restore(ctx context.Context) error {
	m.mu.Lock()
	alone := len(m.found) == 0
	m.mu.Unlock()
	if alone {
		return nil
	}
	parts, err := lvm.Physicals(ctx)
	if err != nil {
		return err
	}
	for _, p := range parts {
		if p.Missing && p.Device != "" {
			m.Log.Warn("a disk was missing when the pool was changed, and is used again", "device", p.Device)
			if err := lvm.Restore(ctx, p.Device); err != nil {
				return err
			}
		}
	}
	return nil
}

// look finds the disks of the group, and has lvm use exactly these. Nothing is read
// while all is as it was: a disk may be asleep.
func (m *Manager) look() error {
	m.mu.Lock()
	calm := m.looked && len(m.missing) == 0 && m.change == nil && m.allThere()
	m.mu.Unlock()
	if calm {
		return nil
	}
	byPath := map[string]disk.Device{}
	for _, d := range disk.Devices(m.Sysfs) {
		if d.Name != m.Boot.Disk { // its copies carry no other part of the group
			byPath[d.Path()] = d
		}
	}
	parts, err := lvm.Assemble(m.Boot.PERM, slices.Collect(maps.Keys(byPath)))
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	found := map[string]disk.Device{}
	for id, path := range parts.Found {
		found[id] = byPath[path]
		if _, there := m.found[id]; !there && m.looked {
			m.reopen = true
		}
	}
	m.home, m.found, m.looked = parts.Home, found, true
	m.tellMissing(parts.Missing)
	m.missing = parts.Missing
	return lvm.Setup(m.devices()...)
}

// allThere tells whether the disks are those of the last look.
func (m *Manager) allThere() bool {
	for _, was := range m.found {
		if now, ok := disk.Describe(m.Sysfs, was.Name); !ok || !sameDisk(was, now) {
			return false
		}
	}
	return true
}

// sameDisk compares disks, whose size may have changed.
func sameDisk(a, b disk.Device) bool {
	a.Bytes, b.Bytes = 0, 0
	return a == b
}

// devices are those that lvm uses: PERM, and the disks of the group that are there.
func (m *Manager) devices() []string {
	var others []string
	for _, d := range m.found {
		others = append(others, d.Path())
	}
	slices.Sort(others)
	return append([]string{m.Boot.PERM}, others...)
}

// tellMissing tells of disks that are missing now, or back. Right after the start they
// may only be late.
func (m *Manager) tellMissing(missing []string) {
	for _, id := range missing {
		switch {
		case time.Since(m.begun) <= lateMax && !slices.Contains(m.missing, id):
			m.Log.Warn("a disk of the pool is not there yet", "disk", m.known[id].String())
		case time.Since(m.begun) > lateMax && !m.told[id]:
			m.told[id] = true
			m.note("disk-missing", missingText(m.known[id]))
		}
	}
	for id := range m.told {
		if !slices.Contains(missing, id) {
			delete(m.told, id)
			m.note("disk-back", fmt.Sprintf("disk %s of the pool is there again", m.known[id]))
		}
	}
}

func missingText(i identity) string {
	return fmt.Sprintf("disk %s of the pool is missing: volumes can't be used without it, and nothing is changed; connect it again", i)
}

// note keeps an event about the pool.
func (m *Manager) note(kind, text string) {
	m.Log.Info("disks", "event", kind, "message", text)
	obj := &v1.Object{Meta: &v1.Meta{Kind: "Pool", Name: lvm.Pool}}
	if err := m.Store.NoteChange(obj, kind, text); err != nil {
		m.Log.Error("keep event", "error", err)
	}
}

// Missing names the disks of the pool that are missing, in a sentence each; the machine
// is degraded while there are some.
func (m *Manager) Missing() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var texts []string
	for _, id := range m.missing {
		texts = append(texts, missingText(m.known[id]))
	}
	return texts
}

// Run goes on with what was begun, uses disks that grew while the machine was off, and
// watches for disks that come and go, until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	grown := false
	for ctx.Err() == nil {
		err := m.look()
		if err != nil {
			m.Log.Error("look for the disks of the pool", "error", err)
		}
		m.openBack(ctx)
		if !grown && err == nil && len(m.Missing()) == 0 {
			grown = m.useGrown(ctx)
		}
		m.advance(ctx)
		wait := lookEvery
		if len(m.Missing()) > 0 && time.Since(m.begun) < lateMax {
			wait = soonEvery
		}
		select {
		case <-ctx.Done():
		case <-m.wake:
		case <-time.After(wait):
		}
	}
	return nil
}

// openBack opens the volumes of disks that came.
func (m *Manager) openBack(ctx context.Context) {
	m.mu.Lock()
	reopen := m.reopen
	m.reopen = false
	m.mu.Unlock()
	if !reopen {
		return
	}
	if err := m.restore(ctx); err != nil {
		m.Log.Error("use a disk again that was missing", "error", err)
	}
	if look, err := lvm.Activate(ctx); err != nil || look {
		m.Log.Error("open volumes", "some stay closed", look, "error", err)
	}
	m.opened(ctx)
}

func (m *Manager) opened(ctx context.Context) {
	if m.Opened != nil {
		m.Opened(ctx)
	}
}

// ring wakes those who follow a change.
func (m *Manager) ring() {
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *Manager) wakeUp() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// bounds of what operators ask for.
const nameMax = 256 // bytes of a serial number or worldwide name

func checkName(what, id string) error {
	if id == "" || len(id) > nameMax {
		return fmt.Errorf("%s: want its serial number or worldwide name: %w", what, errdefs.ErrInvalidArgument)
	}
	return nil
}
