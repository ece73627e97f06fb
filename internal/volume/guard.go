package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/ext4"
	"capsule/internal/lvm"
)

const (
	guardEvery = 30 * time.Second // metadata fills without an event

	// A pool is better again only when it's so many points below the threshold:
	// one that is written to at the threshold would tell of it for ever.
	calmPoints = 2

	metadataPercent = 80 // from which on metadata is extended
	metadataStep    = 32 << 20
	metadataAgain   = 10 * time.Minute // after a failure, or without space
)

// guard is what is remembered of watching the pool.
type guard struct {
	reserve atomic.Int64 // bytes of the group that belong to nothing

	// Of the watching goroutine only.
	level      v1.PoolLevel // that was last told
	unreadable bool
	notBefore  time.Time // for extending metadata
}

// poolObject stands for the pool in events.
func poolObject() *v1.Object { return &v1.Object{Meta: &v1.Meta{Kind: "Pool", Name: lvm.Pool}} }

// watchPool looks at the pool until ctx ends: whenever the kernel says so, and
// regularly.
func (m *Manager) watchPool(ctx context.Context) {
	m.readReserve(ctx)
	events := lvm.WatchPool(ctx)
	tick := time.NewTicker(guardEvery)
	defer tick.Stop()
	for {
		m.lookAtPool(ctx)
		m.lookAtGuests(ctx)
		select {
		case <-ctx.Done():
			return
		case _, ok := <-events:
			if !ok {
				return
			}
		case <-tick.C:
		}
	}
}

func (m *Manager) readReserve(ctx context.Context) {
	free, err := lvm.Free(ctx)
	if err != nil {
		m.log.Error("read the free space of the group", "error", err)
		return
	}
	m.guard.reserve.Store(free)
}

// PoolChanged takes up that the pool has another size, or is there again: what waited
// for room, or for a disk, is looked at.
func (m *Manager) PoolChanged(ctx context.Context) {
	m.readReserve(ctx)
	for _, name := range m.keys(ctx) {
		m.Wake(name)
	}
}

// lookAtPool tells what changed with the pool, and extends its metadata.
func (m *Manager) lookAtPool(ctx context.Context) {
	p, err := lvm.ReadPool()
	if err != nil {
		if !m.guard.unreadable && ctx.Err() == nil {
			m.log.Error("read the pool", "error", err)
		}
		m.guard.unreadable = true
		return
	}
	m.guard.unreadable = false
	if m.extendMetadata(ctx, p) {
		if p, err = lvm.ReadPool(); err != nil {
			return
		}
	}
	before := m.guard.level
	m.guard.level = settled(before, p, *m.limits.Load())
	if kind, text := announcement(before, m.guard.level, p, *m.limits.Load()); kind != "" {
		m.notePool(kind, text)
	}
	if before >= v1.PoolLevel_POOL_LEVEL_CRITICAL && m.guard.level < v1.PoolLevel_POOL_LEVEL_CRITICAL {
		m.PoolChanged(ctx) // for what had to wait
	}
}

func (m *Manager) notePool(kind, text string) {
	m.log.Warn("pool", "event", kind, "message", text)
	if err := m.opts.Store.Note(poolObject(), kind, text); err != nil {
		m.log.Error("keep event", "error", err)
	}
}

// settled is the level that counts now, after another one before.
func settled(before v1.PoolLevel, p lvm.PoolState, l Limits) v1.PoolLevel {
	now := l.level(p)
	if now >= before {
		return now
	}
	full, _ := fullness(p)
	switch {
	case before == v1.PoolLevel_POOL_LEVEL_WARN && full > l.Warn-calmPoints:
		return before
	case before == v1.PoolLevel_POOL_LEVEL_CRITICAL && full > l.Critical-calmPoints:
		return before
	}
	return now
}

// announcement is the event of a pool whose level changed; "" for none.
func announcement(before, now v1.PoolLevel, p lvm.PoolState, l Limits) (kind, text string) {
	if before == now {
		return "", ""
	}
	switch now {
	case v1.PoolLevel_POOL_LEVEL_FULL:
		return "pool-full", l.sentence(p)
	case v1.PoolLevel_POOL_LEVEL_CRITICAL:
		return "pool-critical", l.sentence(p)
	case v1.PoolLevel_POOL_LEVEL_WARN:
		return "pool-warn", l.sentence(p)
	}
	if before == v1.PoolLevel_POOL_LEVEL_UNSPECIFIED { // the first look
		return "", ""
	}
	return "pool-ok", fmt.Sprintf("the pool is %s: enough is free again", fillSentence(p))
}

// extendMetadata makes the pool's metadata larger in time, and tells whether it
// did. Full metadata makes the pool read-only.
func (m *Manager) extendMetadata(ctx context.Context, p lvm.PoolState) bool {
	if percent(p.MetadataUsed, p.MetadataSize) < metadataPercent || time.Now().Before(m.guard.notBefore) {
		return false
	}
	err := lvm.ExtendMetadata(ctx, metadataStep)
	m.readReserve(ctx)
	if err != nil {
		if ctx.Err() == nil {
			m.guard.notBefore = time.Now().Add(metadataAgain)
			m.notePool("pool-metadata", fmt.Sprintf("the pool's metadata, of which %d %% are used, can't be extended: %v; delete snapshots",
				percent(p.MetadataUsed, p.MetadataSize), err))
		}
		return false
	}
	m.log.Info("extended the pool's metadata", "bytes", metadataStep)
	return true
}

// lookAtGuests stops microVMs whose own kernel met an error in the file system of
// a volume, which it has made read-only then: they get it back checked. What the
// capsule has mounted itself is looked at with each volume.
func (m *Manager) lookAtGuests(ctx context.Context) {
	guests := m.running()
	if guests == nil {
		return
	}
	for name, r := range m.known().volumes {
		for _, c := range r.Claims {
			if !c.VM || !failedInGuest(r.LV) {
				continue
			}
			reason := fmt.Sprintf("the file system of volume %q had an error; it is checked before the next start", name)
			if err := guests.Hold(ctx, c.Workload, reason); err != nil {
				m.log.Error("stop workload", "workload", c.Workload, "error", err)
			}
		}
	}
}

// failedInGuest tells whether a kernel that has the device now noted an error in
// its file system. Without one that has it, the next check is to come anyway.
func failedInGuest(lv string) bool {
	super, err := ext4.ReadSuper(lvm.Device(lv))
	return err == nil && super.Errors && inUse(lvm.Device(lv))
}

// inUse tells whether somebody has a block device for himself alone.
func inUse(device string) bool {
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_EXCL, 0)
	if err == nil {
		f.Close()
	}
	return errors.Is(err, unix.EBUSY)
}
