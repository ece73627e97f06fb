package update

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/bundle"
	"capsule/internal/disk"
	"capsule/internal/slot"
)

// progressEvery bounds how often progress is told within a phase.
const progressEvery = 200 * time.Millisecond

// Push installs a bundle into the slot that isn't running and starts it. A cut
// anywhere leaves the running system the only one to start, or the new one whole;
// what of the root is in the slot by then is found there by the next push.
func (m *Manager) Push(ctx context.Context, o Offer, fetch Fetch, progress func(*v1.UpdateProgress)) (*v1.UpdateResult, error) {
	if !m.changing.TryLock() {
		return nil, errBusy()
	}
	defer m.changing.Unlock()
	h, unchanged, err := m.refuse(&o)
	if err != nil {
		return nil, err
	}
	if unchanged {
		return &v1.UpdateResult{Version: m.Version, Slot: m.boot.Slot, Unchanged: true}, nil
	}
	r, err := m.openRoot(ctx, h, fetch, newMeter(progress))
	if err != nil {
		return nil, err
	}
	defer r.close()
	if err := r.compare(ctx); err != nil {
		return nil, err
	}
	// From here on the slot's former system is gone.
	m.esp.Lock()
	err = m.forget()
	m.esp.Unlock()
	if err != nil {
		return nil, err
	}
	if err := r.write(ctx); err != nil {
		return nil, err
	}
	if err := r.verify(ctx); err != nil {
		return nil, err
	}
	if err := m.activate(ctx, h, o, fetch, r.meter); err != nil {
		return nil, err
	}
	if !o.NoReboot {
		if err := m.restart("version " + h.Manifest.Version + " is installed"); err != nil {
			return nil, err
		}
	}
	return &v1.UpdateResult{Version: h.Manifest.Version, Slot: m.other(), Reboots: !o.NoReboot}, nil
}

// forget takes the other slot's entry and kernel image away, and the record of
// what was installed there and never started. m.esp is held.
func (m *Manager) forget() error {
	if err := m.ESP(disk.Writable, func(esp string) error { return slot.Forget(esp, m.other()) }); err != nil {
		return fmt.Errorf("make %s free: %w", m.other(), err)
	}
	h, err := readHistory(m.Bucket)
	if err != nil {
		return err
	}
	for _, r := range h {
		if r.Slot == m.other() && r.Outcome == installed {
			if err := m.Bucket.Delete(r.key); err != nil {
				return fmt.Errorf("keep the history of updates: %w", err)
			}
		}
	}
	return nil
}

// activate brings the kernel image and the entry, in the order that a cut can't
// hurt: without an entry nothing starts the image, and what Run finds without one
// it takes for a leftover.
func (m *Manager) activate(ctx context.Context, h *bundle.Header, o Offer, fetch Fetch, meter *meter) error {
	version := h.Manifest.Version
	meter.begin(v1.UpdatePhase_UPDATE_PHASE_ACTIVATE, h.Manifest.UKI.Size)
	image, err := m.fetchKernel(ctx, h, fetch, meter.kernel)
	if err != nil {
		return fmt.Errorf("fetch the kernel image: %w", err)
	}
	m.esp.Lock()
	defer m.esp.Unlock()
	var written string
	err = m.ESP(disk.Buffered, func(esp string) (err error) {
		written, err = slot.Install(esp, m.other(), version, bytes.NewReader(image), int64(len(image)))
		return err
	})
	if err != nil {
		return fmt.Errorf("install the kernel image: %w", err)
	}
	record, err := addRecord(m.Bucket, facts{
		Version: version, Slot: m.other(), Verity: h.Manifest.Root.VerityHash, From: m.Version, Time: time.Now(),
		Outcome: installed, Addressed: m.Machine.Addressed(), Window: o.Window, AutoConfirm: o.AutoConfirm,
	})
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err // the last moment to stop it
	}
	err = m.ESP(disk.Writable, func(esp string) error { return slot.Activate(esp, m.other(), version, written) })
	if err != nil {
		// Perhaps it's there all the same, and would start what was said to have failed.
		return errors.Join(fmt.Errorf("make the boot entry: %w", err), m.forget())
	}
	meter.end()
	record.Activated = true
	if err := putRecord(m.Bucket, record); err != nil {
		m.Log.Error("update", "error", err) // the entry is there, and says the same
	}
	m.Event("installed", fmt.Sprintf("version %s in %s, to follow %s", version, m.other(), m.Version))
	return nil
}

// meter tells of the progress of a push.
type meter struct {
	tell func(*v1.UpdateProgress)
	now  v1.UpdateProgress
	last time.Time
}

func newMeter(tell func(*v1.UpdateProgress)) *meter {
	if tell == nil {
		tell = func(*v1.UpdateProgress) {}
	}
	return &meter{tell: tell}
}

func (p *meter) begin(phase v1.UpdatePhase, total int64) {
	p.now.Phase, p.now.Done, p.now.Total = phase, 0, total
	p.send()
}

func (p *meter) at(done int64) {
	p.now.Done = done
	if time.Since(p.last) >= progressEvery {
		p.send()
	}
}

// kernel is told how much of the kernel image is there, and how much more of it was.
func (p *meter) kernel(done, reused int64) {
	p.now.Reused += reused
	p.at(done)
}

func (p *meter) end() {
	p.now.Done = p.now.Total
	p.send()
}

func (p *meter) send() {
	p.last = time.Now()
	p.tell(&v1.UpdateProgress{Phase: p.now.Phase, Done: p.now.Done, Total: p.now.Total, Reused: p.now.Reused})
}

// damaged is of a bundle whose content isn't what its header signs.
func damaged(format string, args ...any) error {
	return fmt.Errorf("the bundle is damaged: "+format+": %w", append(args, errdefs.ErrDataLoss)...)
}
