package update

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"capsule/internal/slot"
)

// leaveReason says why the running system goes.
func (m *Manager) leaveReason(text string) error {
	if !m.Machine.Normal() {
		return nil // nothing is written to /perm in recovery mode
	}
	return slot.Reason{Slot: m.boot.Slot, Version: m.Version, Reason: text, Time: time.Now().UTC()}.Leave(m.ReasonFile)
}

// readReason gives nil when nobody left one. One that nobody can read is as good
// as none, and goes.
func (m *Manager) readReason() (*slot.Reason, error) {
	data, err := os.ReadFile(m.ReasonFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read why it was rolled back: %w", err)
	}
	var r slot.Reason
	if err := json.Unmarshal(data, &r); err != nil {
		m.Log.Error("update: read why it was rolled back", "error", err, "text", string(data[:min(len(data), 512)]))
		return nil, m.dropReason() //nolint:nilerr // told
	}
	return &r, nil
}

func (m *Manager) dropReason() error {
	if err := os.Remove(m.ReasonFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
