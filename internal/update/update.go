// Package update replaces the running system by another one and goes back. It
// decides; the boot loader's counter and process 1 enforce what must happen even
// when this package doesn't run any more.
//
//	                 Push                    restart                 Confirm
//	(nothing there) ──────▶ installed ───────────────▶ tentative ──────────────▶ confirmed
//	                                                       │ tries used up, process 1,  │
//	                                                       │ deadline, Rollback         │ Rollback
//	                                                       ▼                            ▼
//	                                                  rolled back ◀─────────────────────┘
//
// A system is tentative while the loader counts its entry and the other slot has
// one to go back to: no state of ours says so. While it is, nothing is written to
// the other slot. The store's bucket only tells people what happened, and this
// package what was asked for at the push.
//
// All that touches the machine goes through Machine, the slots' devices and the
// slot package. Push never holds more than the hash tree, the kernel image and a few
// MiB.
package update

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/bundle"
	"capsule/internal/disk"
	"capsule/internal/slot"
	"capsule/internal/store"
)

// Limits that an operator can meet.
const (
	// WindowDefault is how long a system may stay unconfirmed, from its start on.
	WindowDefault = 10 * time.Minute
	// WindowMin leaves time to boot.
	WindowMin = time.Minute
	// WindowMax: after that the machine is as good as unattended.
	WindowMax = 24 * time.Hour
)

// Machine is what this package asks of the capsule around it.
type Machine interface {
	Boot() disk.Boot
	// Normal is false in recovery mode.
	Normal() bool
	// Addressed: an uplink has an address.
	Addressed() bool
	// Reboot asks process 1 for an orderly restart and doesn't wait for it. Why is kept.
	Reboot(why string) error
	// Tell sends one notice to process 1.
	Tell(text string) error
	// Unready names the workloads that an update must keep running and that don't
	// run, with why: a sentence each.
	Unready() []string
}

// Options of a Manager. What follows Log has defaults.
type Options struct {
	Bucket       *store.Bucket // nil in recovery mode
	Machine      Machine
	Keys         []bundle.PublicKey // whose bundles are taken
	Version      string             // that runs
	BuiltUnix    int64              // seconds since 1970, of its commit
	Architecture string             // as runtime.GOARCH has it
	Log          *slog.Logger

	// Event tells the operator what was found or done: a word and a sentence.
	// Default: the log.
	Event func(kind, text string)
	// ReasonFile is where process 1 leaves why it rolled back, slot.ReasonFile.
	ReasonFile string
	// EFIVars is where the firmware's variables are mounted.
	EFIVars string
	// Uptime is how long the system runs, by a clock that nobody sets: the time of a
	// tentative system counts by it, here and in process 1. Default: since boot.
	Uptime func() time.Duration
	// ESP opens the EFI system partition, Boot.WithESP.
	ESP func(disk.Access, func(root string) error) error
	// Space is what is free on the opened ESP in bytes, slot.Space.
	Space func(root string) (int64, error)
	// Root says what runs, slot.RunningRoot.
	Root func() (slot.Root, error)
	// Counted says whether the running system is tentative, slot.Tentative.
	Counted func(disk.Boot) (bool, error)
	// Again says whether the running system was good before, slot.Again.
	Again func() (bool, error)
	// Bless makes the running system's entry one that isn't counted, slot.Bless.
	Bless func(disk.Boot) error
}

func (o *Options) defaults() {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Event == nil {
		log := o.Log
		o.Event = func(kind, text string) { log.Info("update", "event", kind, "text", text) }
	}
	o.ReasonFile = cmp.Or(o.ReasonFile, slot.ReasonFile)
	o.EFIVars = cmp.Or(o.EFIVars, disk.EFIVars)
	if o.Uptime == nil {
		o.Uptime = uptime
	}
	if o.ESP == nil {
		o.ESP = o.Machine.Boot().WithESP
	}
	if o.Space == nil {
		o.Space = slot.Space
	}
	if o.Root == nil {
		o.Root = slot.RunningRoot
	}
	if o.Counted == nil {
		o.Counted = slot.Tentative
	}
	if o.Again == nil {
		o.Again = slot.Again
	}
	if o.Bless == nil {
		o.Bless = slot.Bless
	}
}

// uptime is the time since boot, whatever the clock on the wall did.
func uptime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) // fails for unknown clocks only
	return time.Duration(t.Nano())
}

// Manager makes updates. Its methods may be called from any goroutine.
type Manager struct {
	Options
	boot disk.Boot

	changing sync.Mutex // a slot or what is started next: one push or rollback at a time
	ending   sync.Mutex // the tentative system's end: confirmed or rolled back, not both
	esp      sync.Mutex // files of the ESP between their making and their entry
	kernel   *kernel    // of a push that broke; changing guards it

	mu        sync.Mutex
	looked    bool   // tentative is known
	tentative *trial // nil when the running system is confirmed
	restarts  string // why the machine restarts; "" when it doesn't
}

// New makes a manager. Run must be called for a tentative system to be watched.
func New(o Options) (*Manager, error) {
	if o.Machine == nil || o.Version == "" || o.Architecture == "" {
		return nil, fmt.Errorf("updates need the machine, its version and architecture: %w", errdefs.ErrInvalidArgument)
	}
	o.defaults()
	return &Manager{Options: o, boot: o.Machine.Boot()}, nil
}

// other is the slot that doesn't run.
func (m *Manager) other() string { return slot.Other(m.boot.Slot) }

// Tentative describes the running system while it isn't confirmed; nil then.
func (m *Manager) Tentative() *v1.TentativeSystem {
	t, err := m.trial()
	if err != nil || t == nil {
		return nil //nolint:nilerr // Run tells of it, and tries again
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return t.proto(m.Uptime())
}

// trial looks once whether the running system is tentative, and what was asked for
// at its push.
func (m *Manager) trial() (*trial, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.looked {
		return m.tentative, nil
	}
	counted, err := m.Counted(m.boot)
	if err != nil {
		return nil, fmt.Errorf("look whether this system is confirmed: %w", err)
	}
	if counted {
		h, err := readHistory(m.Bucket)
		if err != nil {
			m.Log.Error("update", "error", err) // the deadline holds all the same
		}
		m.tentative = newTrial(h.last(m.runs))
		if m.tentative.again, err = m.Again(); err != nil {
			return nil, fmt.Errorf("look whether this system was gone back to: %w", err)
		}
		if m.tentative.again {
			m.tentative.autoConfirm, m.tentative.window = againSoak, WindowDefault
		}
	}
	m.looked = true
	return m.tentative, nil
}

// runs says whether a record is that of the running system.
func (m *Manager) runs(r *record) bool { return r.Slot == m.boot.Slot && r.Version == m.Version }

// Status of the running system, of what it could go back to, and of what happened.
func (m *Manager) Status(context.Context) (*v1.UpdateServiceStatusResponse, error) {
	h, err := readHistory(m.Bucket)
	if err != nil {
		return nil, err
	}
	t, err := m.trial()
	if err != nil {
		return nil, err
	}
	out := &v1.UpdateServiceStatusResponse{Version: m.Version, Slot: m.boot.Slot, Tentative: m.Tentative()}
	for i := len(h) - 1; i >= 0; i-- {
		if h[i].Version != "" {
			out.History = append(out.History, h[i].proto())
		}
	}
	err = m.ESP(disk.ReadOnly, func(esp string) error {
		if s, err := m.former(esp, t != nil); err == nil {
			out.Other = &v1.OtherSystem{Version: s.entry.Version, Slot: s.entry.Slot}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", m.other(), err)
	}
	return out, nil
}

// Confirm keeps the tentative system for good.
func (m *Manager) Confirm(context.Context) (*v1.UpdateServiceConfirmResponse, error) {
	return m.confirm("confirmed by an operator")
}

func (m *Manager) confirm(how string) (*v1.UpdateServiceConfirmResponse, error) {
	if !m.Machine.Normal() {
		return nil, fmt.Errorf("a system in recovery mode can't be confirmed: %w", errdefs.ErrFailedPrecondition)
	}
	m.ending.Lock()
	defer m.ending.Unlock()
	if err := m.restarting(); err != nil {
		return nil, err
	}
	t, err := m.trial()
	if err != nil {
		return nil, err
	}
	out := &v1.UpdateServiceConfirmResponse{Version: m.Version, Unchanged: t == nil}
	if t == nil {
		return out, nil
	}
	if err := m.Bless(m.boot); err != nil {
		return nil, fmt.Errorf("confirm version %s: %w", m.Version, err)
	}
	m.mu.Lock()
	m.tentative = nil
	m.mu.Unlock()
	// It is confirmed from here on, whatever fails.
	if err := m.Machine.Tell("CAPSULE_CONFIRMED=1"); err != nil {
		m.Log.Error("update: tell process 1 of the confirmation", "error", err) // it looks at the entry itself
	}
	if err := m.close(m.runs, confirmed, how); err != nil {
		m.Log.Error("update", "error", err)
	}
	m.Event("confirmed", fmt.Sprintf("version %s in %s: %s", m.Version, m.boot.Slot, how))
	return out, nil
}

// close gives the newest record that fits its outcome.
func (m *Manager) close(fits func(*record) bool, o outcome, reason string) error {
	h, err := readHistory(m.Bucket)
	if err != nil {
		return err
	}
	r := h.last(fits)
	if r == nil {
		return nil
	}
	r.end(o, time.Now(), reason)
	return putRecord(m.Bucket, r)
}

// Rollback starts the system of the other slot, if every block of it is whole.
//
// In recovery mode, too: the other system may read what this one can't.
func (m *Manager) Rollback(ctx context.Context) (*v1.UpdateServiceRollbackResponse, error) {
	if !m.changing.TryLock() {
		return nil, errBusy()
	}
	defer m.changing.Unlock()
	m.ending.Lock()
	defer m.ending.Unlock()
	if err := m.restarting(); err != nil {
		return nil, err
	}
	t, err := m.trial()
	if err != nil {
		return nil, err
	}
	other, err := m.formerWhole(ctx, t != nil)
	if err != nil {
		return nil, err
	}
	if err := m.goBack(t != nil, "rolled back by an operator"); err != nil {
		return nil, err
	}
	return &v1.UpdateServiceRollbackResponse{Version: other.entry.Version, Slot: other.entry.Slot}, nil
}

// formerWhole is the system that the running one can give way to, read to its last
// block.
func (m *Manager) formerWhole(ctx context.Context, onTrial bool) (other *system, err error) {
	var missing error
	err = m.ESP(disk.ReadOnly, func(esp string) error {
		other, missing = m.former(esp, onTrial)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", m.other(), err)
	}
	if missing == nil {
		missing = m.whole(ctx, other)
	}
	if missing != nil {
		return nil, fmt.Errorf("%s has no system to go back to: %w", m.other(), missing)
	}
	return other, nil
}

// goBack leaves the reason, makes the loader start the other slot and restarts. The
// entry of a confirmed system stays: one can return to it.
func (m *Manager) goBack(onTrial bool, reason string) error {
	if err := m.leaveReason(reason); err != nil {
		m.Log.Error("update: keep why it is rolled back", "error", err) // going back matters more
	}
	m.esp.Lock()
	defer m.esp.Unlock()
	err := m.ESP(disk.Writable, func(esp string) error {
		if onTrial {
			return slot.Condemn(esp, m.boot.Slot)
		}
		return slot.Prefer(esp, m.other())
	})
	if err != nil {
		return errors.Join(fmt.Errorf("roll back to %s: %w", m.other(), err), m.dropReason())
	}
	m.Event("rolled-back", fmt.Sprintf("version %s in %s: %s; the capsule restarts from %s", m.Version, m.boot.Slot, reason, m.other()))
	return m.restart("it is rolled back: " + reason)
}

// restart asks for a restart; from then on nothing is changed any more.
func (m *Manager) restart(why string) error {
	if err := m.Machine.Reboot(why); err != nil {
		return fmt.Errorf("restart: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.restarts = why
	return nil
}

// restarting is an error once the machine is to restart.
func (m *Manager) restarting() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.restarts == "" {
		return nil
	}
	return fmt.Errorf("the capsule restarts now: %s: %w", m.restarts, errdefs.ErrFailedPrecondition)
}
