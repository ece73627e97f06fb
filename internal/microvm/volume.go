package microvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	guestv1 "capsule/api/capsule/guest/v1"
	"capsule/internal/qemu"
	"capsule/internal/workload"
)

// volumeFacts tell of a volume that a running guest has.
type volumeFacts struct {
	Serial   string // of its disk, and the name of QEMU's node
	Name     string
	Source   string
	Path     string // in the guest
	ReadOnly bool
	Bytes    int64 // when QEMU opened it
}

// volume opens a volume for QEMU. The claim on a block device is the open file's:
// while QEMU has it, and no longer, the kernel refuses everyone else who would
// mount, check or remove it.
func (l *launch) volume(serial string, m workload.Mount) error {
	flags := os.O_RDWR
	if m.ReadOnly {
		flags = os.O_RDONLY
	}
	var st unix.Stat_t
	if err := unix.Stat(m.Source, &st); err != nil {
		return &os.PathError{Op: "look at", Path: m.Source, Err: err}
	}
	block := st.Mode&unix.S_IFMT == unix.S_IFBLK
	if block {
		flags |= os.O_EXCL | unix.O_DIRECT // QEMU takes it for "cache.direct" only if it was opened so
	}
	f, err := l.open(m.Source, flags)
	if isBusy(err) {
		return fmt.Errorf("%s is mounted or in use by another program of the capsule: %w", m.Source, errdefs.ErrUnavailable)
	}
	if err != nil {
		return err
	}
	bytes, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	l.machine.Volumes = append(l.machine.Volumes, volumeDisk{File: l.files.Add(f), ReadOnly: m.ReadOnly, Block: block})
	l.facts.Volumes = append(l.facts.Volumes, volumeFacts{
		Serial: serial, Name: m.Volume, Source: m.Source, Path: m.Path, ReadOnly: m.ReadOnly, Bytes: bytes,
	})
	return nil
}

// Grown tells a running guest that a volume's device has grown. One that is about
// to start sees it by itself, and so does a guest to which the volume is
// read-only, when it can write to it the next time.
func (d *Driver) Grown(ctx context.Context, id workload.ID, path string, sizeBytes int64) error {
	m, err := d.running(ctx, id)
	if errdefs.IsFailedPrecondition(err) {
		return nil
	}
	if err != nil {
		return err
	}
	i := slices.IndexFunc(m.Volumes, func(v volumeFacts) bool { return v.Path == path })
	if i < 0 {
		return fmt.Errorf("workload %q has no volume at %q: %w", id.Name, path, errdefs.ErrNotFound)
	}
	if err := m.grow(ctx, m.Volumes[i], sizeBytes); err != nil {
		return fmt.Errorf("grow volume %q in workload %q, which has all of it when it starts again: %w", m.Volumes[i].Name, id.Name, err)
	}
	return nil
}

// grow has QEMU show all of a volume's device, which is at least that large, and
// the guest's file system fill it.
func (m *vm) grow(ctx context.Context, v volumeFacts, atLeast int64) error {
	if v.ReadOnly {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, m.driver.pace.run)
	defer cancel()
	// One at a time: QEMU serves one monitor, ext4 grows once, and nobody may tell
	// of a size that was.
	m.growing.Lock()
	defer m.growing.Unlock()
	size, err := sizeOf(v.Source)
	if err != nil {
		return err
	}
	if size < atLeast {
		return fmt.Errorf("%s has %d bytes and not %d: %w", v.Source, size, atLeast, errdefs.ErrFailedPrecondition)
	}
	if err := m.resize(ctx, v.Serial, size); err != nil {
		return err
	}
	_, err = m.agent.Grow(ctx, &guestv1.GrowRequest{Serial: v.Serial, Size: size}, grpc.WaitForReady(true))
	return refused(ctx, err)
}

// resize has QEMU show the size of a disk.
func (m *vm) resize(ctx context.Context, node string, size int64) error {
	monitor, err := qemu.Dial(ctx, m.driver.file(m.record, qmpFile))
	if err != nil {
		return err
	}
	defer monitor.Close()
	return monitor.Do(ctx, "block_resize", map[string]any{"node-name": node, "size": size}, nil)
}

// catchUp grows volumes of a machine whose devices grew while it started, or while
// no daemon was there: nobody could tell it.
func (m *vm) catchUp(ctx context.Context) {
	for _, v := range m.Volumes {
		size, err := sizeOf(v.Source)
		if err == nil && size > v.Bytes {
			err = m.grow(ctx, v, size)
		}
		if err != nil && ctx.Err() == nil {
			slog.Warn("a guest keeps the size that its volume had", "workload", m.ID.Name, "volume", v.Name, "error", err)
		}
	}
}

// sizeOf a file or block device, in bytes.
func sizeOf(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Seek(0, io.SeekEnd)
}

// Freeze has the guest write out its volumes and hold their writers. It thaws by
// itself after the limit, should nobody ask it to. Where nothing runs, there is
// nothing to hold.
func (d *Driver) Freeze(ctx context.Context, id workload.ID, limit time.Duration) (thaw func(), err error) {
	m, err := d.running(ctx, id)
	if errdefs.IsFailedPrecondition(err) {
		return func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := m.freeze(ctx, limit); err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { m.thaw(context.WithoutCancel(ctx)) }), nil
}

// ice counts who holds the writers of a guest: they go on when the last one thaws.
type ice struct {
	turn    chan struct{} // held by who asks the guest
	holders int
}

func newIce() ice { return ice{turn: make(chan struct{}, 1)} }

// freeze answers within the limit. When the guest does not, it may be frozen all
// the same, for no longer than that.
func (m *vm) freeze(ctx context.Context, limit time.Duration) error {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case m.ice.turn <- struct{}{}:
	case <-limited.Done():
		return errors.Join(ctx.Err(), fmt.Errorf("its guest did not answer in %v: %w", limit, errdefs.ErrUnavailable))
	}
	defer func() { <-m.ice.turn }()
	_, err := m.agent.Freeze(limited, &guestv1.FreezeRequest{LimitMs: limit.Milliseconds()}, grpc.WaitForReady(true))
	switch {
	case m.over(), errors.Is(refused(ctx, err), errdefs.ErrFailedPrecondition): // it ends, and has written out all that it had
	case err != nil && ctx.Err() == nil && limited.Err() != nil:
		return fmt.Errorf("its guest did not answer in %v: %w", limit, errdefs.ErrUnavailable)
	case err != nil:
		return refused(ctx, err)
	}
	m.ice.holders++
	return nil
}

func (m *vm) thaw(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, m.driver.pace.call)
	defer cancel()
	m.ice.turn <- struct{}{}
	defer func() { <-m.ice.turn }()
	if m.ice.holders--; m.ice.holders > 0 || m.over() {
		return
	}
	if _, err := m.agent.Thaw(limited, &guestv1.ThawRequest{}); err != nil && !m.over() {
		slog.Warn("a guest does not answer, and thaws its volumes by itself", "workload", m.ID.Name, "error", refused(ctx, err))
	}
}
