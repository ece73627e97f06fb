package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"capsule/internal/disk"
	"capsule/internal/installer"
	"capsule/internal/kmod"
	"capsule/internal/lvm"
)

const (
	poolDiskMin  = 1 << 30 // bytes of a disk that is worth adding
	progressTick = time.Second
)

// machine is the world of a change on this machine.
type machine struct{ *Manager }

// rules by which a disk is taken: those of the installer.
func (m *Manager) rules() installer.Rules {
	return installer.Rules{Unfit: m.unfit, Erase: "\"%s --erase\""}
}

// unfit says why a disk can't join; "" when it can.
func (m *Manager) unfit(c installer.Candidate) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.found {
		if d.Name == c.Name {
			return "it's in the pool already"
		}
	}
	if why := installer.UnfitFor(c, poolDiskMin); why != "" {
		return why
	}
	if boot, ok := disk.Describe(m.Sysfs, m.Boot.Disk); ok && boot.Sector != c.Sector {
		return fmt.Sprintf("its blocks have %d bytes, and those of the system's disk %d: a pool can't have both", c.Sector, boot.Sector)
	}
	return ""
}

func (w *machine) look(ctx context.Context, c change) (sight, error) {
	if err := w.Manager.look(); err != nil {
		return sight{}, err
	}
	s := sight{late: time.Since(w.begun) < lateMax}
	w.mu.Lock()
	if len(w.missing) > 0 {
		s.missing = w.known[w.missing[0]].String()
	}
	_, s.member = w.found[c.ID]
	w.mu.Unlock()
	switch {
	case s.missing != "":
		return s, nil
	case !s.member:
		w.lookAtNew(c, &s)
		return s, nil
	}
	parts, err := lvm.Physicals(ctx)
	if err != nil {
		return sight{}, err
	}
	for _, p := range parts {
		if p.ID == c.Old {
			s.oldMember, s.oldClosed, s.oldUsed = true, p.Closed, p.UsedBytes()
		}
	}
	s.moving, err = lvm.Moving(ctx)
	return s, err
}

// lookAtNew tells what is on the disk that is to join.
func (w *machine) lookAtNew(c change, s *sight) {
	plan, err := w.planNew(c)
	if err != nil {
		s.why = err.Error()
		return
	}
	s.there = true
	id, _ := lvm.ID(plan.Disk.Path()) // what is no label is none of ours
	switch {
	case id == c.ID:
		s.holds = holdsOurs
	case plan.Digest == c.Digest:
		s.holds = holdsShown
	case len(plan.Disk.Contents) == 0:
		s.holds = holdsNought
	}
}

// planNew is the disk that is to join, as it is now.
func (w *machine) planNew(c change) (installer.Plan, error) {
	plan, err := w.rules().Plan(w.survey.Disks(), installer.Choice{Disk: cmp.Or(c.Disk.WWN, c.Disk.Serial), Erase: true})
	if err == nil && identityOf(plan.Disk.Device) != c.Disk {
		err = fmt.Errorf("disk %s is another one than before: %w", c.Disk, errdefs.ErrFailedPrecondition)
	}
	return plan, err
}

func (w *machine) do(ctx context.Context, s step, c change) error {
	switch s {
	case stepJoin:
		return w.join(ctx, c)
	case stepUnmove:
		return lvm.Unmove(ctx)
	case stepFinish:
		return w.finish(ctx)
	}
	from, to := w.path(c.Old), w.path(c.ID)
	if from == "" || to == "" {
		return fmt.Errorf("a disk has gone: %w", errdefs.ErrUnavailable)
	}
	switch s {
	case stepClose:
		return lvm.Close(ctx, from, false)
	case stepOpen:
		return lvm.Close(ctx, from, true)
	case stepMove:
		return w.move(ctx, from, to)
	case stepReduce:
		return w.reduce(ctx, from)
	}
	return fmt.Errorf("no step %q: %w", s, errdefs.ErrInvalidArgument)
}

// path is where a part of the group is; "" when it isn't there.
func (m *Manager) path(id string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d, ok := m.found[id]; ok {
		return d.Path()
	}
	return ""
}

// join clears the disk and makes it a part of the group. Nobody else can have it open
// while it's cleared, and it's made sure that it's the one that was looked at.
func (w *machine) join(ctx context.Context, c change) error {
	plan, err := w.planNew(c)
	if err != nil {
		return err
	}
	path := plan.Disk.Path()
	device, err := w.survey.Open(path, plan)
	if err != nil {
		return err
	}
	err = installer.Clear(device, plan.Disk.Sector, int64(plan.Disk.Bytes))
	if err = errors.Join(err, device.Close()); err != nil {
		return fmt.Errorf("clear disk %s: %w", c.Disk, err)
	}
	w.mu.Lock()
	devices := append(w.devices(), path)
	w.mu.Unlock()
	if err := lvm.Setup(devices...); err != nil {
		return err
	}
	return lvm.Join(ctx, path, c.ID)
}

// move reports how far it is while it goes on.
func (w *machine) move(ctx context.Context, from, to string) error {
	if err := loadMirror(); err != nil {
		return err
	}
	ended := make(chan struct{})
	told := make(chan struct{})
	go func() {
		defer close(told)
		tick := time.NewTicker(progressTick)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				return
			case <-tick.C:
				if done, total, err := lvm.Moved(to); err == nil {
					w.report(Progress{Step: string(stepMove), Done: done, Total: total})
				}
			}
		}
	}()
	err := lvm.Move(ctx, from, to)
	close(ended)
	<-told
	return err
}

// loadMirror has the kernel able to copy what is in use, which nothing else needs.
func loadMirror() error {
	modules, err := kmod.Open("/")
	if err != nil {
		return err
	}
	return modules.Load("dm_mirror")
}

// reduce takes the old disk out. That its label can't be taken off then, as of a disk
// that can't be written to, is of no matter: nothing looks at it any more.
func (w *machine) reduce(ctx context.Context, from string) error {
	if err := lvm.Reduce(ctx, from); err != nil {
		return err
	}
	if err := lvm.Forget(ctx, from); err != nil {
		w.Log.Warn("the old disk keeps its label", "disk", from, "error", err)
	}
	return nil
}

func (w *machine) finish(ctx context.Context) error {
	if err := w.grow(ctx); err != nil {
		return err
	}
	w.opened(ctx)
	return nil
}
