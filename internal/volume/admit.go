package volume

import (
	"fmt"
	"slices"
	"sync"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/lvm"
	"capsule/internal/store"
)

// Admit looks at objects that are being applied, in the transaction that does
// it: it refuses volumes that shrink and what the pool can't take. Warnings, by
// the uid of an object, say what was rounded and which workloads will be held.
func (m *Manager) Admit(tx store.View, objs []*v1.Object) (warnings map[string][]string, err error) {
	a := &admission{Manager: m, tx: tx}
	a.all = sync.OnceValues(func() ([]*v1.Object, error) { return tx.List("") })
	a.room = sync.OnceValue(a.readRoom)
	warnings = map[string][]string{}
	for _, obj := range objs {
		var warn []string
		var err error
		switch {
		case obj.GetVolume() != nil:
			warn, err = a.volume(obj)
		case obj.GetWorkload() != nil:
			warn, err = a.workload(obj)
		}
		if err != nil {
			return nil, err
		}
		if len(warn) > 0 {
			warnings[obj.Meta.Uid] = warn
		}
	}
	return warnings, nil
}

// admission is of one apply. What is the same for all of its objects is looked at
// once, and only if one of them needs it.
type admission struct {
	*Manager
	tx   store.View
	all  func() ([]*v1.Object, error) // as they will be
	room func() error                 // readRoom
}

func (a *admission) volume(obj *v1.Object) (warnings []string, err error) {
	name, asked := obj.Meta.Name, obj.GetVolume().GetSpec().GetSize()
	before := lvm.RoundUp(a.tx.Old(obj).GetVolume().GetSpec().GetSize())
	if r, ok := a.record(name); ok && before > 0 {
		before = max(before, r.Size)
	}
	larger, warning, err := resize(before, asked)
	if err == nil && larger {
		err = a.room()
	}
	if err != nil {
		return nil, fmt.Errorf("volume %q: %w", name, err)
	}
	if warning != "" {
		warnings = append(warnings, warning)
	}
	return warnings, nil
}

// resize tells what a wish for a size means to a volume of the size before, zero
// when it is new. A volume never shrinks.
func resize(before, asked int64) (larger bool, warning string, err error) {
	size := lvm.RoundUp(asked)
	if size < before {
		return false, "", fmt.Errorf("it has %s and can't shrink to %s: create a smaller one and copy what you need: %w",
			sizeText(before), sizeText(asked), errdefs.ErrInvalidArgument)
	}
	if size != asked {
		warning = fmt.Sprintf("%d bytes are rounded up to %s: volumes have whole extents of 4 MiB", asked, sizeText(size))
	}
	return size > before, warning, nil
}

// readRoom refuses a volume that is new or grows when the pool is too full, or
// when more would be promised than the operator allows.
func (a *admission) readRoom() error {
	p, err := lvm.ReadPool()
	if err != nil {
		return err
	}
	limits := a.limits.Load()
	if err := limits.tooFull(p); err != nil {
		return err
	}
	all, err := a.all()
	if err != nil {
		return err
	}
	var promised int64
	for _, obj := range all {
		promised += lvm.RoundUp(obj.GetVolume().GetSpec().GetSize())
	}
	return overcommitted(promised, p.DataSize, limits.Overcommit)
}

// workload warns of volumes that a workload will have to wait for.
func (a *admission) workload(obj *v1.Object) (warnings []string, err error) {
	if obj.GetWorkload().GetIntent().GetStopped() {
		return nil, nil
	}
	for volume, w := range wanted(claimantOf(obj), obj.GetWorkload().GetSpec().GetMounts()) {
		held, err := a.willHold(volume, w)
		if err != nil {
			return nil, err
		}
		if held != nil {
			warnings = append(warnings, held.Error())
		}
	}
	slices.Sort(warnings)
	return warnings, nil
}

// willHold is what a workload will wait for at a volume, nil when for nothing.
// Besides who has the volume, those count that are declared to.
func (a *admission) willHold(volume string, want claim) (*HeldError, error) {
	obj, err := a.tx.Get(manifest.KindVolume, volume)
	switch {
	case errdefs.IsNotFound(err):
		return &HeldError{Volume: volume, Reason: reasonMissing}, nil
	case err != nil:
		return nil, err
	case obj.GetMeta().GetDeletedAt() != nil:
		return &HeldError{Volume: volume, Reason: reasonDeleting}, nil
	}
	if why := a.trouble.get(volume); why != "" {
		return &HeldError{Volume: volume, Reason: fmt.Sprintf(reasonDamaged, why)}, nil
	}
	r, _ := a.record(volume)
	claims := r.Claims
	var others []*v1.Object
	if !r.has(want.Workload) { // else it has the volume already
		if others, err = a.all(); err != nil {
			return nil, err
		}
	}
	for _, other := range others {
		meta := other.GetMeta()
		if other.GetWorkload() == nil || meta.GetDeletedAt() != nil || other.GetWorkload().GetIntent().GetStopped() || r.has(meta.GetName()) {
			continue
		}
		if c, ok := wanted(claimantOf(other), other.GetWorkload().GetSpec().GetMounts())[volume]; ok {
			claims = append(claims, c)
		}
	}
	if holder := blocker(claims, want); holder != "" {
		return &HeldError{Volume: volume, Holder: holder}, nil
	}
	return nil, nil
}

// claimantOf is a workload as it will ask for its volumes.
func claimantOf(obj *v1.Object) Claimant {
	return Claimant{Workload: obj.GetMeta().GetName(), VM: obj.GetMeta().GetKind() == manifest.KindMicroVM}
}

// sizeText is a size for people, and to the byte.
func sizeText(n int64) string { return fmt.Sprintf("%s (%d bytes)", amount(n), n) }
