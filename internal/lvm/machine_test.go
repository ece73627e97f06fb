package lvm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"capsule/internal/ext4"
	"capsule/internal/lvm"
	"capsule/internal/lvm/lvmtest"
)

const mib = 1 << 20

// makeVolume gives a test a formatted volume.
func makeVolume(t *testing.T, name string, sizeBytes int64) {
	t.Helper()
	if err := lvm.CreateThin(t.Context(), name, sizeBytes); err != nil {
		t.Fatal(err)
	}
	if err := ext4.Format(t.Context(), lvm.Device(name)); err != nil {
		t.Fatal(err)
	}
}

// mount mounts a volume until the test ends, or the returned function is called.
func mount(t *testing.T, name string) (dir string, unmount func()) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(lvm.Device(name), dir, "ext4", unix.MS_NOATIME|unix.MS_NODEV, "errors=remount-ro,discard"); err != nil {
		t.Fatal("mount:", err)
	}
	done := false
	unmount = func() {
		if !done {
			done = true
			if err := unix.Unmount(dir, 0); err != nil {
				t.Error("unmount:", err)
			}
		}
	}
	t.Cleanup(unmount)
	return dir, unmount
}

func timed(t *testing.T, what string, f func() error) {
	t.Helper()
	begin := time.Now()
	if err := f(); err != nil {
		t.Fatal(what+":", err)
	}
	t.Logf("%s: %v", what, time.Since(begin).Round(time.Millisecond))
}

func TestLife(t *testing.T) {
	lvmtest.Pool(t, 1<<30)
	ctx := t.Context()
	const name, snap = "vol-photos.0a1b2c", "snap-photos.3d4e5f"
	timed(t, "create", func() error { return lvm.CreateThin(ctx, name, 100*mib, "capsule.volume=photos") })
	timed(t, "format", func() error { return ext4.Format(ctx, lvm.Device(name)) })
	timed(t, "check", func() error { return ext4.Check(ctx, lvm.Device(name)) })
	timed(t, "snapshot", func() error { return lvm.Snapshot(ctx, name, snap) })
	timed(t, "extend", func() error { return lvm.ExtendThin(ctx, name, 200*mib) })
	timed(t, "extend again", func() error { return lvm.ExtendThin(ctx, name, 100*mib) })
	all, err := lvm.List(ctx)
	want := []lvm.Thin{
		{Name: snap, SizeBytes: 100 * mib},
		{Name: name, SizeBytes: 200 * mib, Active: true, Tags: []string{"capsule.volume=photos"}},
	}
	if diff := cmp.Diff(want, all); err != nil || diff != "" {
		t.Error(err, diff)
	}
	timed(t, "activate", func() error { return lvm.SetActive(ctx, snap, true) })
	timed(t, "mapped", func() error { _, err := lvm.MappedBytes(snap); return err })
	timed(t, "pool", func() error { p, err := lvm.ReadPool(); t.Logf("%+v", p); return err })
	if _, err := lvm.MappedBytes("vol-none.000000"); !errdefs.IsNotFound(err) {
		t.Errorf("use of a volume that isn't there: %v", err)
	}
	timed(t, "remove", func() error { return lvm.RemoveThin(ctx, name, snap, "vol-none.000000") })
	timed(t, "remove again", func() error { return lvm.RemoveThin(ctx, name, snap) })
}

// What a caller got wrong, or asks for twice, has an error of its own.
func TestRefused(t *testing.T) {
	lvmtest.Pool(t, 1<<30)
	ctx := t.Context()
	makeVolume(t, "vol-a.000001", 32*mib)
	for name, err := range map[string]error{
		"created twice":   lvm.CreateThin(ctx, "vol-a.000001", 32*mib),
		"reserved name":   lvm.CreateThin(ctx, "snapshot0", 32*mib),
		"snapshot of air": lvm.Snapshot(ctx, "vol-none.000000", "snap-none.000000"),
		"extend air":      lvm.ExtendThin(ctx, "vol-none.000000", 64*mib),
		"open air":        lvm.SetActive(ctx, "vol-none.000000", true),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		t.Log(name, err)
	}
	all, err := lvm.List(ctx)
	want := []lvm.Thin{{Name: "vol-a.000001", SizeBytes: 32 * mib, Active: true}}
	if diff := cmp.Diff(want, all); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

// A volume that is mounted, or held by a virtual machine, is neither removed nor
// loses a byte by the try.
func TestRemoveRefusesUsed(t *testing.T) {
	lvmtest.Pool(t, 1<<30)
	ctx := t.Context()
	const name, other = "vol-a.000001", "vol-b.000001"
	makeVolume(t, name, 32*mib)
	dir, unmount := mount(t, name)
	write(t, filepath.Join(dir, "photo"), "kept")
	if err := lvm.RemoveThin(ctx, other, name); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("mounted: %v", err)
	}
	if err := ext4.Check(ctx, lvm.Device(name)); !errdefs.IsUnavailable(err) {
		t.Errorf("check while mounted: %v", err)
	}
	unmount()
	f, err := os.OpenFile(lvm.Device(name), os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := lvm.RemoveThin(ctx, name); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("held: %v", err)
	}
	f.Close()
	if err := ext4.Check(ctx, lvm.Device(name)); err != nil {
		t.Error(err)
	}
	dir, unmount = mount(t, name)
	if b, err := os.ReadFile(filepath.Join(dir, "photo")); string(b) != "kept" {
		t.Error("after the tries:", err, string(b))
	}
	unmount()
	if err := lvm.RemoveThin(ctx, name); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(lvm.Device(name)); !os.IsNotExist(err) {
		t.Error("its node stayed:", err)
	}
}

func TestRemoveFreesPool(t *testing.T) {
	lvmtest.Pool(t, 1<<30)
	const size = 64 * mib
	if err := lvm.CreateThin(t.Context(), "vol-a.000001", size); err != nil {
		t.Fatal(err)
	}
	fill(t, "vol-a.000001", 0, size)
	if p, err := lvm.ReadPool(); err != nil || p.DataUsed != size {
		t.Fatalf("%+v, %v", p, err)
	}
	if err := lvm.RemoveThin(t.Context(), "vol-a.000001"); err != nil {
		t.Fatal(err)
	}
	if p, err := lvm.ReadPool(); err != nil || p.DataUsed != 0 {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestExtendWhileWritten(t *testing.T) {
	lvmtest.Pool(t, 1<<30)
	ctx := t.Context()
	const name, size = "vol-a.000001", 512 * mib
	makeVolume(t, name, 32*mib)
	dir, unmount := mount(t, name)
	writes, stop := writer(t, filepath.Join(dir, "log"))
	writes(3)
	timed(t, "extend", func() error { return lvm.ExtendThin(ctx, name, size) })
	writes(3)
	timed(t, "grow", func() error {
		grown, err := ext4.Grow(dir)
		if err == nil && !grown {
			t.Error("not grown")
		}
		return err
	})
	if grown, err := ext4.Grow(dir); grown || err != nil {
		t.Error("grown again:", grown, err)
	}
	writes(3)
	if err := stop(); err != nil {
		t.Error("writer:", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil || int64(fs.Blocks)*fs.Bsize < size*9/10 {
		t.Errorf("%d blocks, %v", fs.Blocks, err)
	}
	f, err := os.Create(filepath.Join(dir, "large"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, 300*mib), f.Sync(), f.Close()); err != nil {
		t.Error("more than it held before:", err)
	}
	unmount()
	if err := ext4.Check(ctx, lvm.Device(name)); err != nil {
		t.Error(err)
	}
	if s, err := ext4.ReadSuper(lvm.Device(name)); err != nil || s != (ext4.Super{SizeBytes: size, BlockBytes: 4096}) {
		t.Errorf("%+v, %v", s, err)
	}
}

// A snapshot of a volume in use is a whole file system as of that moment.
func TestSnapshotWhileWritten(t *testing.T) {
	lvmtest.Pool(t, 1<<30)
	ctx := t.Context()
	const name, snap, clone = "vol-a.000001", "snap-a.000002", "vol-a.000003"
	makeVolume(t, name, 64*mib)
	dir, _ := mount(t, name)
	writes, stop := writer(t, filepath.Join(dir, "log"))
	writes(3)
	if err := lvm.Snapshot(ctx, name, snap); err != nil {
		t.Fatal(err)
	}
	writes(3)
	if err := stop(); err != nil {
		t.Error("writer:", err)
	}
	write(t, filepath.Join(dir, "later"), "not in the snapshot")
	if err := lvm.Clone(ctx, snap, clone); err != nil {
		t.Fatal(err)
	}
	if s, err := ext4.ReadSuper(lvm.Device(clone)); err != nil || s.NeedsRecovery {
		t.Errorf("%+v, %v: the journal was not empty", s, err)
	}
	if err := ext4.Check(ctx, lvm.Device(clone)); err != nil {
		t.Error(err)
	}
	copied, _ := mount(t, clone)
	now, err1 := os.ReadFile(filepath.Join(dir, "log"))
	then, err2 := os.ReadFile(filepath.Join(copied, "log"))
	if err1 != nil || err2 != nil || len(then) == 0 || len(then) >= len(now) || !bytes.HasPrefix(now, then) {
		t.Errorf("%d bytes of %d, %v, %v", len(then), len(now), err1, err2)
	}
	if _, err := os.Stat(filepath.Join(copied, "later")); !os.IsNotExist(err) {
		t.Error("what was written later is there:", err)
	}
	active := map[string]bool{}
	all, err := lvm.List(ctx)
	for _, v := range all {
		active[v.Name] = v.Active
	}
	if diff := cmp.Diff(map[string]bool{name: true, snap: false, clone: true}, active); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

// Calls from many places at once all come to their end, one after the other.
func TestManyAtOnce(t *testing.T) {
	lvmtest.Pool(t, 1<<30)
	ctx := t.Context()
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			name := fmt.Sprintf("vol-%d.000001", i)
			for _, step := range []func() error{
				func() error { return lvm.CreateThin(ctx, name, 32*mib) },
				func() error { return ext4.Format(ctx, lvm.Device(name)) },
				func() error { return lvm.ExtendThin(ctx, name, 64*mib) },
				func() error { return lvm.Snapshot(ctx, name, "snap-"+name) },
				func() error { return lvm.RemoveThin(ctx, name) },
			} {
				if err := step(); err != nil {
					t.Error(name, err)
				}
			}
		})
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := lvm.CreateThin(gone, "vol-none.000000", 32*mib); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that gave up: %v", err)
	}
	all.Wait()
	left, err := lvm.List(ctx)
	if err != nil || len(left) != 4 {
		t.Errorf("%+v, %v", left, err)
	}
}
