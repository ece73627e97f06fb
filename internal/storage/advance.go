package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"capsule/internal/store"
)

// A world is what a change is made on: this machine, or a model of one.
type world interface {
	look(ctx context.Context, c change) (sight, error)
	// do may be cut anywhere, and is done again then if next says so.
	do(ctx context.Context, s step, c change) error
}

// advance brings what is under way forward until it has ended, or has to wait.
func (m *Manager) advance(ctx context.Context) {
	for ctx.Err() == nil {
		c, ok := m.underWay()
		if !ok {
			return
		}
		s, why, err := m.step(ctx, c)
		if err != nil && ctx.Err() == nil && !errors.Is(err, context.Canceled) {
			m.Log.Error("disks", "change", c.String(), "step", string(s), "error", err)
			m.report(Progress{Step: string(s), Waits: err.Error()})
			return
		}
		if s == stepWait {
			m.report(Progress{Step: string(s), Waits: why})
			return
		}
	}
}

// step does the one that comes next.
func (m *Manager) step(ctx context.Context, c change) (s step, why string, err error) {
	seen, err := m.world.look(ctx, c)
	if err != nil {
		return stepWait, "", err
	}
	s, why = next(c, seen)
	switch s {
	case stepWait:
		return s, why, nil
	case stepGiveUp:
		return s, why, m.end(c, fmt.Errorf("%s is given up: %s", &c, why))
	}
	m.report(Progress{Step: string(s)})
	once, stop := context.WithCancel(ctx)
	defer stop()
	m.mu.Lock()
	if m.change == nil || m.change.Kept != c.Kept { // called off just now
		m.mu.Unlock()
		return s, "", nil
	}
	m.stop = stop
	m.mu.Unlock()
	if err := m.world.do(once, s, c); err != nil {
		return s, "", err
	}
	if s == stepFinish {
		return s, "", m.end(c, nil)
	}
	return s, "", nil
}

func (m *Manager) underWay() (change, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.change == nil {
		return change{}, false
	}
	return *m.change, true
}

// begin notes a change, with the disk that will be known by it.
func (m *Manager) begin(c change) error {
	err := m.bucket.Update(func(t store.Table) error {
		if err := putJSON(t, memberKeys+c.ID, c.Disk); err != nil {
			return err
		}
		return putJSON(t, changeKey, c)
	})
	if err != nil {
		return fmt.Errorf("note the change: %w", err)
	}
	m.mu.Lock()
	m.known[c.ID] = c.Disk
	m.change, m.now, m.moved = &c, Progress{}, time.Now()
	m.ring()
	m.mu.Unlock()
	m.note("disk-begun", c.String()+" was begun")
	m.wakeUp()
	return nil
}

// end forgets a change. Of the disks, that which is in the group no more is forgotten too.
func (m *Manager) end(c change, failed error) error {
	gone := c.Old
	if failed != nil {
		gone = c.ID
	} else if c.Kept {
		gone = ""
	}
	err := m.bucket.Update(func(t store.Table) error {
		if gone != "" {
			if err := t.Delete(memberKeys + gone); err != nil {
				return err
			}
		}
		return t.Delete(changeKey)
	})
	if err != nil {
		return fmt.Errorf("note the end of the change: %w", err)
	}
	m.mu.Lock()
	delete(m.known, gone)
	m.change, m.now = nil, Progress{}
	clear(m.ended)
	m.ended[c.ID] = failed
	m.ring()
	m.mu.Unlock()
	switch {
	case failed != nil:
		m.note("disk-failed", failed.Error())
	case c.Kept:
		m.note("disk-kept", c.String()+" was called off: both disks are in use")
	default:
		m.note("disk-done", c.String()+" is done")
	}
	return nil
}

// keep notes that a change is called off.
func (m *Manager) keep() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.change == nil {
		return nil
	}
	c := *m.change
	c.Kept = true
	if err := m.bucket.Update(func(t store.Table) error { return putJSON(t, changeKey, c) }); err != nil {
		return fmt.Errorf("note that it's called off: %w", err)
	}
	m.change = &c
	if m.stop != nil {
		m.stop()
	}
	m.ring()
	return nil
}

// report tells those who follow.
func (m *Manager) report(p Progress) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p == m.now {
		return
	}
	if p.Step != m.now.Step || p.Done != m.now.Done {
		m.moved = time.Now()
	}
	m.now = p
	m.ring()
}

func putJSON(t store.Table, key string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return t.Put(key, data)
}
