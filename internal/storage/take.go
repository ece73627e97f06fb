package storage

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"capsule/internal/disk"
	"capsule/internal/installer"
	"capsule/internal/lvm"
)

// lostBytes of a disk are what lvm keeps for itself, and what is no whole extent.
const lostBytes = 8 << 20

// A Plan is what would be done.
type Plan struct {
	installer.Plan
	Replaced    *disk.Device // the disk that leaves; nil when one is added
	MovingBytes int64        // from that one
	UnderWay    bool         // it was begun already

	old string // its id
}

// Plan says which disk would join, in the place of the one that replaces names if it
// does, or why it doesn't.
func (m *Manager) Plan(ctx context.Context, choice installer.Choice, replaces string) (Plan, error) {
	if err := checkName("disk that joins", choice.Disk); err != nil {
		return Plan{}, err
	}
	if c, ok := m.underWay(); ok && c.is(choice.Disk, replaces) {
		return c.plan(), nil
	}
	if err := m.whole(); err != nil {
		return Plan{}, err
	}
	m.mu.Lock()
	full := len(m.found)+1 >= lvm.PartsMax
	m.mu.Unlock()
	if full {
		return Plan{}, fmt.Errorf("the pool has %d disks, and no more are taken: %w", lvm.PartsMax, errdefs.ErrResourceExhausted)
	}
	chosen, err := m.rules().Plan(m.survey.Disks(), choice)
	if err != nil {
		return Plan{}, err
	}
	p := Plan{Plan: chosen}
	if replaces == "" {
		return p, nil
	}
	return p, m.planReplaced(ctx, &p, replaces)
}

// is tells whether an operator asks for what is under way.
func (c change) is(joins, replaces string) bool {
	if c.Kept || !c.Disk.device().Is(joins) {
		return false
	}
	if c.Old == "" {
		return replaces == ""
	}
	return c.OldDisk.device().Is(replaces)
}

// plan is that of what was begun.
func (c change) plan() Plan {
	p := Plan{UnderWay: true}
	p.Disk.Device, p.Digest = c.Disk.device(), c.Digest
	if c.Old != "" {
		old := c.OldDisk.device()
		p.Replaced, p.old = &old, c.Old
	}
	return p
}

// planReplaced finds the disk that leaves, and makes sure that what is on it fits.
func (m *Manager) planReplaced(ctx context.Context, p *Plan, id string) error {
	if err := checkName("disk to replace", id); err != nil {
		return err
	}
	if boot, ok := disk.Describe(m.Sysfs, m.Boot.Disk); ok && boot.Is(id) {
		return fmt.Errorf("disk %q is the one that the capsule runs from: make a backup of the capsule, and install it with that backup on another disk: %w", id, errdefs.ErrFailedPrecondition)
	}
	m.mu.Lock()
	same := 0
	for part, d := range m.found {
		if d.Is(id) {
			p.Replaced, p.old = &d, part
			same++
		}
	}
	m.mu.Unlock()
	if same > 1 {
		return fmt.Errorf("%d disks of the pool have the serial number %q: name one by its worldwide name: %w", same, id, errdefs.ErrFailedPrecondition)
	}
	if p.Replaced == nil {
		return fmt.Errorf("no disk of the pool has the serial number %q; \"capsulectl capsule disk list\" shows those there are: %w", id, errdefs.ErrNotFound)
	}
	parts, err := lvm.Physicals(ctx)
	if err != nil {
		return err
	}
	for _, part := range parts {
		if part.ID == p.old {
			p.MovingBytes = part.UsedBytes()
		}
	}
	if room := int64(p.Disk.Bytes) - lostBytes; room < p.MovingBytes {
		return fmt.Errorf("disk %q is too small: %d MiB are in use of disk %q, and it has room for %d MiB: %w",
			p.Disk.ID(), p.MovingBytes>>20, id, max(room, 0)>>20, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// Take does what the plan with this digest says, and tells how far it is. When ctx ends
// it goes on; called again it's followed.
func (m *Manager) Take(ctx context.Context, choice installer.Choice, replaces, planned string, tell func(Progress) error) error {
	id, err := m.start(ctx, choice, replaces, planned)
	if err != nil {
		return err
	}
	return m.follow(ctx, id, tell)
}

// start notes the change, or finds the one that is under way, and gives its id.
func (m *Manager) start(ctx context.Context, choice installer.Choice, replaces, planned string) (string, error) {
	m.taking.Lock()
	defer m.taking.Unlock()
	plan, err := m.Plan(ctx, choice, replaces)
	if err != nil {
		return "", err
	}
	if plan.Digest != planned {
		return "", fmt.Errorf("disk %q has changed since it was shown: look at it again: %w", plan.Disk.ID(), errdefs.ErrAborted)
	}
	if plan.UnderWay {
		if c, ok := m.underWay(); ok {
			return c.ID, nil
		}
	}
	c := change{ID: lvm.NewID(), Disk: identityOf(plan.Disk.Device), Digest: plan.Digest, Begun: time.Now().UTC()}
	if plan.Replaced != nil {
		c.Old, c.OldDisk = plan.old, identityOf(*plan.Replaced)
	}
	return c.ID, m.begin(c)
}

// follow tells of a change until it has ended, and how.
func (m *Manager) follow(ctx context.Context, id string, tell func(Progress) error) error {
	for {
		m.mu.Lock()
		now, changed := m.now, m.changed
		running := m.change != nil && m.change.ID == id
		kept := running && m.change.Kept
		failed := m.ended[id]
		m.mu.Unlock()
		if !running {
			return failed
		}
		if now.Step != "" && !kept {
			if err := tell(now); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// Keep calls off the replacement that is under way, and waits until both disks are as
// they were.
func (m *Manager) Keep(ctx context.Context) error {
	c, ok := m.underWay()
	if !ok || c.Old == "" {
		return fmt.Errorf("no disk is being replaced: %w", errdefs.ErrFailedPrecondition)
	}
	if err := m.keep(); err != nil {
		return err
	}
	m.wakeUp()
	return m.follow(ctx, c.ID, func(Progress) error { return nil })
}
