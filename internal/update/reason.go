package update

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"capsule/internal/durable"
)

// ReasonFile is where whoever rolls back says why, process 1 or this package. The
// system that runs afterwards takes it into its history.
const ReasonFile = "/perm/update/rollback.json"

// reasonMax bounds one reason in bytes: it may name many workloads.
const reasonMax = 1024

// reason why a system was rolled back.
type reason struct {
	Slot    string    `json:"slot"` // that it was in
	Version string    `json:"version"`
	Reason  string    `json:"reason"`
	Time    time.Time `json:"time"`
}

// leaveReason says why the running system goes.
func (m *Manager) leaveReason(text string) error {
	if len(text) > reasonMax {
		text = strings.ToValidUTF8(text[:reasonMax], "")
	}
	data, err := json.Marshal(reason{Slot: m.boot.Slot, Version: m.Version, Reason: text, Time: time.Now().UTC()})
	if err != nil {
		return err
	}
	dir := filepath.Dir(m.ReasonFile)
	if err := os.Mkdir(dir, 0o700); err == nil {
		err = durable.Sync(filepath.Dir(dir))
		if err != nil {
			return err
		}
	}
	return durable.WriteFile(m.ReasonFile, data, 0o600)
}

// readReason gives nil when nobody left one. One that nobody can read is as good
// as none, and goes.
func (m *Manager) readReason() (*reason, error) {
	data, err := os.ReadFile(m.ReasonFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read why it was rolled back: %w", err)
	}
	var r reason
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
