package server

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/store"
)

// Room is what there is for workloads on this machine, in bytes; zero where that is not
// known.
type Room struct {
	Memory int64 // that all of them may have together
	Disk   int64 // of the file system of what they keep outside of their mounts
}

// fits refuses workloads that this machine can never give what they declare. Limits
// that are too much only together are accepted, since few use theirs at one time: its
// notes, by uid, say so once.
func (s *objects) fits(tx store.View, objs []*capsulev1.Object) (notes map[string][]string, err error) {
	if s.Room == nil {
		return nil, nil
	}
	room := s.Room()
	var errs []error
	first := ""
	for _, o := range objs {
		if o.GetWorkload() == nil {
			continue
		}
		errs = append(errs, s.tooLarge(o, room))
		if first == "" && s.memoryOf(o) > 0 {
			first = o.GetMeta().GetUid()
		}
	}
	if err := errors.Join(errs...); err != nil || first == "" || room.Memory == 0 {
		return nil, err
	}
	together, err := s.memoryTogether(tx)
	if err != nil || together <= room.Memory {
		return nil, err
	}
	return map[string][]string{first: {fmt.Sprintf(
		"the memory limits of all workloads are %d MiB together, and there are %d MiB for them: when those are used up, one of them is ended with reason oom",
		together>>20, room.Memory>>20)}}, nil
}

// tooLarge says what of a workload no other has to leave for it to be impossible.
func (s *objects) tooLarge(o *capsulev1.Object, room Room) error {
	meta, r := o.GetMeta(), o.GetWorkload().GetSpec().GetResources()
	var errs []error
	if need := s.memoryOf(o); room.Memory > 0 && r.GetMemory() > 0 && need > room.Memory {
		beside := ""
		if more := need - r.GetMemory(); more > 0 {
			beside = fmt.Sprintf(" and %d MiB for its kernel", more>>20)
		}
		errs = append(errs, fmt.Errorf("%s %q: resources.memory: %s%s can't be had on this machine, which has %d MiB for workloads beside what it needs itself: %w",
			meta.GetKind(), meta.GetName(), manifest.FormatSize(r.GetMemory()), beside, room.Memory>>20, errdefs.ErrInvalidArgument))
	}
	if room.Disk > 0 && r.GetDisk() > room.Disk {
		errs = append(errs, fmt.Errorf("%s %q: resources.disk: %s is more than all of /perm, which has %d MiB; keep large data in a volume: %w",
			meta.GetKind(), meta.GetName(), manifest.FormatSize(r.GetDisk()), room.Disk>>20, errdefs.ErrInvalidArgument))
	}
	return errors.Join(errs...)
}

// memoryTogether is what all workloads may take that are not to stay stopped.
func (s *objects) memoryTogether(tx store.View) (sum int64, err error) {
	all, err := tx.List("")
	if err != nil {
		return 0, err
	}
	for _, o := range all {
		if w := o.GetWorkload(); w != nil && o.GetMeta().GetDeletedAt() == nil && !w.GetIntent().GetStopped() {
			sum += s.memoryOf(o)
		}
	}
	return sum, nil
}

// memoryOf a workload is the most that it may take; 0 when nothing was said of it.
func (s *objects) memoryOf(o *capsulev1.Object) int64 {
	limit := o.GetWorkload().GetSpec().GetResources().GetMemory()
	if o.GetMeta().GetKind() == manifest.KindMicroVM && s.MachineMemory != nil {
		return s.MachineMemory(limit)
	}
	return limit
}
