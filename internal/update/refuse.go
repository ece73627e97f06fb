package update

import (
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"

	"capsule/internal/bundle"
	"capsule/internal/disk"
	"capsule/internal/slot"
)

// Offer is what a push begins with.
type Offer struct {
	Header         []byte // of the bundle: all before the kernel image
	Size           int64  // of the whole bundle, bytes
	AllowDowngrade bool
	Force          bool // take a version that was rolled back here, or the running one once more
	NoReboot       bool
	Window         time.Duration // 0 for WindowDefault
	AutoConfirm    time.Duration // 0 for never
}

// espSpare is what must stay free on the ESP beside the kernel image, in bytes: for
// the entry, what files waste of their last clusters, and the loader's own files.
const espSpare = 1 << 20

func errBusy() error {
	return fmt.Errorf("another update is being pushed, or a rollback begins: %w", errdefs.ErrFailedPrecondition)
}

// refuse gives the header of an offer that can be installed, or why not. Nothing is
// written. unchanged: it's what runs already.
func (m *Manager) refuse(o *Offer) (h *bundle.Header, unchanged bool, err error) {
	if !m.Machine.Normal() || m.Bucket == nil {
		return nil, false, fmt.Errorf("the capsule is in recovery mode, which installs nothing: %w", errdefs.ErrFailedPrecondition)
	}
	if err := m.restarting(); err != nil {
		return nil, false, err
	}
	if h, err = m.authentic(o); err != nil {
		return nil, false, err
	}
	same, err := m.same(h.Manifest)
	if err != nil {
		return nil, false, err
	}
	if same && !o.Force {
		return h, true, nil
	}
	t, err := m.trial()
	if err != nil {
		return nil, false, err
	}
	if t != nil {
		return nil, false, fmt.Errorf("version %s, which runs, is not confirmed yet: confirm it or roll it back first: %w", m.Version, errdefs.ErrFailedPrecondition)
	}
	for _, check := range []func(*Offer, bundle.Manifest) error{windows, m.order, m.rolledBackBefore, m.fitsSlot, m.fitsESP} {
		if err := check(o, h.Manifest); err != nil {
			return nil, false, err
		}
	}
	return h, false, nil
}

// authentic checks that this is a bundle for this capsule from whom it trusts.
func (m *Manager) authentic(o *Offer) (*bundle.Header, error) {
	h, err := bundle.ParseHeader(o.Header)
	if err != nil {
		return nil, err
	}
	if err := h.Verify(m.Keys); err != nil {
		return nil, err
	}
	switch f := h.Manifest; {
	case f.Product != bundle.Product:
		return nil, fmt.Errorf("the bundle is for product %q, and this is %q: %w", f.Product, bundle.Product, errdefs.ErrInvalidArgument)
	case f.Architecture != m.Architecture:
		return nil, fmt.Errorf("the bundle is for architecture %q, and this capsule has %q: %w", f.Architecture, m.Architecture, errdefs.ErrInvalidArgument)
	case o.Size < h.Size:
		return nil, fmt.Errorf("the bundle is cut off: it has %d bytes, and its header says %d: %w", o.Size, h.Size, errdefs.ErrInvalidArgument)
	case o.Size > h.Size:
		return nil, fmt.Errorf("the bundle has %d bytes more than the %d that its header says: %w", o.Size-h.Size, h.Size, errdefs.ErrInvalidArgument)
	}
	return h, nil
}

// same says whether this version runs. With other content it's refused by order.
func (m *Manager) same(f bundle.Manifest) (bool, error) {
	if f.Version != m.Version {
		return false, nil
	}
	root, err := m.Root()
	if err != nil {
		return false, fmt.Errorf("look what runs: %w", err)
	}
	return root.Hash == f.Root.VerityHash, nil
}

// windows checks the times, and sets their defaults.
func windows(o *Offer, _ bundle.Manifest) error {
	if o.Window == 0 {
		o.Window = WindowDefault
	}
	if o.Window < WindowMin || o.Window > WindowMax {
		return fmt.Errorf("window of %v: want %v to %v: %w", o.Window, WindowMin, WindowMax, errdefs.ErrInvalidArgument)
	}
	if o.AutoConfirm < 0 || o.AutoConfirm > o.Window-startMax {
		return fmt.Errorf("auto-confirm after %v may never come within a window of %v, of which %v are for the start: %w",
			o.AutoConfirm, o.Window, startMax, errdefs.ErrInvalidArgument)
	}
	return nil
}

// order refuses what doesn't come after the running version.
func (m *Manager) order(o *Offer, f bundle.Manifest) error {
	switch {
	case f.Version == m.Version && !o.Force:
		return fmt.Errorf("version %s runs already, with other content: --force replaces it: %w", f.Version, errdefs.ErrFailedPrecondition)
	case f.Version == m.Version:
		return nil
	case !Follows(m.Version, f.Follows):
		return fmt.Errorf("version %s can replace %s or newer, and %s runs: install %s first: %w", f.Version, f.Follows, m.Version, f.Follows, errdefs.ErrFailedPrecondition)
	case !o.AllowDowngrade && older(f.Version, f.BuiltUnix, m.Version, m.BuiltUnix):
		return fmt.Errorf("version %s is older than %s, which runs: --allow-downgrade installs it all the same: %w", f.Version, m.Version, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// rolledBackBefore refuses a version that this capsule came back from.
func (m *Manager) rolledBackBefore(o *Offer, f bundle.Manifest) error {
	h, err := readHistory(m.Bucket)
	if err != nil {
		return err
	}
	r := h.last(func(r *record) bool { return r.Version == f.Version })
	if r == nil || r.Outcome != rolledBack || o.Force {
		return nil
	}
	return fmt.Errorf("version %s was rolled back here on %s (%s): --force tries it again: %w",
		f.Version, r.Ended.UTC().Format(time.DateOnly), r.Reason, errdefs.ErrFailedPrecondition)
}

func (m *Manager) fitsSlot(_ *Offer, f bundle.Manifest) error {
	name := m.other()
	have, err := m.sizeOf(name)
	if err != nil {
		return fmt.Errorf("size of %s: %w", name, err)
	}
	if f.Root.Size > have {
		return fmt.Errorf("%s is too small: the root needs %d bytes, and it has %d: %w", name, f.Root.Size, have, errdefs.ErrResourceExhausted)
	}
	return nil
}

// sizeOf a slot in bytes.
func (m *Manager) sizeOf(name string) (int64, error) {
	f, err := m.open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Seek(0, io.SeekEnd)
}

// fitsESP also makes sure that the running system is there to go back to.
func (m *Manager) fitsESP(_ *Offer, f bundle.Manifest) error {
	if f.UKI.Size > slot.UKIMax {
		return fmt.Errorf("the bundle's kernel image has %d bytes, and at most %d are taken: %w", f.UKI.Size, slot.UKIMax, errdefs.ErrInvalidArgument)
	}
	var have int64
	err := m.ESP(disk.ReadOnly, func(esp string) error {
		if err := slot.Kept(esp, m.boot.Slot); err != nil {
			return fmt.Errorf("version %s, which runs, is not known to be good yet, and would be all there is to go back to; \"capsulectl capsule info\" shows what it lacks: %w", m.Version, err)
		}
		space, err := m.Space(esp)
		if err != nil {
			return err
		}
		freed, err := slot.Frees(esp, m.other())
		have = space + freed
		return err
	})
	if err != nil {
		return err
	}
	if need := f.UKI.Size + espSpare; need > have {
		return fmt.Errorf("the boot partition is too full: the kernel image needs %d bytes, and it has %d: %w", need, have, errdefs.ErrResourceExhausted)
	}
	return nil
}
