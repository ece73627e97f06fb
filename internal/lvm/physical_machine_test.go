package lvm_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"capsule/internal/kmod"
	"capsule/internal/lvm"
	"capsule/internal/lvm/lvmtest"
)

// loopDisk is a further disk of the test's own.
func loopDisk(t *testing.T, sizeBytes int64) string {
	t.Helper()
	file, err := os.CreateTemp("/perm", "disk-") // vmexec's scratch disk: /tmp is memory
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(file.Name()) })
	control, err := os.Open("/dev/loop-control")
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		t.Fatal("find a loop device:", err)
	}
	path := "/dev/loop" + strconv.Itoa(n)
	loop, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer loop.Close()
	if err := errors.Join(file.Truncate(sizeBytes), unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_SET_FD, int(file.Fd())), file.Close()); err != nil {
		t.Fatal("make a loop device:", err)
	}
	t.Cleanup(func() {
		loop, err := os.Open(path)
		if err == nil {
			err = errors.Join(unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0), loop.Close())
		}
		if err != nil {
			t.Error("remove a loop device:", err)
		}
	})
	return path
}

// spread gives the test a group on two disks, with a volume that has content on both,
// and a third disk. All is as before when it ends.
func spread(t *testing.T, volume string) (second, third string) {
	t.Helper()
	lvmtest.Pool(t, 256*mib)
	lvmtest.Changed()
	second, third = loopDisk(t, 1<<30), loopDisk(t, 1<<30)
	modules, err := kmod.Open("/")
	if err == nil {
		err = modules.Load("dm_mirror")
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := lvm.Setup(lvmtest.Disk, second, third); err != nil {
		t.Fatal(err)
	}
	timed(t, "join", func() error { return lvm.Join(t.Context(), second, lvm.NewID()) })
	t.Cleanup(func() { leave(t) })
	lvmtest.Command(t, "lvextend", "-y", "-L", "+512m", lvm.Group+"/"+lvm.Pool, second)
	makeVolume(t, volume, 600*mib)
	fill(t, volume, 0, 500*mib)
	return second, third
}

// leave brings all back to the first disk.
func leave(t *testing.T) {
	ctx := context.Background()
	for _, p := range physicals(t) {
		if p.Device == lvmtest.Disk {
			continue
		}
		if p.UsedBytes() > 0 {
			if err := lvm.Move(ctx, p.Device, lvmtest.Disk); err != nil {
				t.Error(err)
			}
		}
		if err := errors.Join(lvm.Reduce(ctx, p.Device), lvm.Forget(ctx, p.Device)); err != nil {
			t.Error(err)
		}
	}
	if err := lvm.Setup(lvmtest.Disk); err != nil {
		t.Error(err)
	}
}

func physicals(t *testing.T) []lvm.Physical {
	t.Helper()
	all, err := lvm.Physicals(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// part is what the group has on a device.
func part(t *testing.T, device string) (p lvm.Physical, member bool) {
	t.Helper()
	all := physicals(t)
	i := slices.IndexFunc(all, func(p lvm.Physical) bool { return p.Device == device })
	if i < 0 {
		return p, false
	}
	return all[i], true
}

// begun tells when some of what is moved to a device is there, and some isn't.
func begun(to string) bool {
	done, total, err := lvm.Moved(to)
	return err == nil && done > 0 && done < total
}

// A disk is replaced while its volumes are written to: it rests when it's told to, goes
// on after a kill, and nothing is lost.
func TestReplace(t *testing.T) {
	const volume, busy = "vol-a.000001", "vol-b.000002"
	second, third := spread(t, volume)
	ctx := t.Context()
	makeVolume(t, busy, 64*mib)
	dir, unmount := mount(t, busy)
	writes, stop := writer(t, filepath.Join(dir, "log"))
	writes(1)

	if err := lvm.Join(ctx, third, lvm.NewID()); err != nil {
		t.Fatal(err)
	}
	for range 2 { // to say so twice is no error
		if err := lvm.Close(ctx, second, false); err != nil {
			t.Fatal(err)
		}
	}
	before, _ := part(t, second)
	if !before.Closed || before.UsedBytes() < 500*mib {
		t.Fatalf("%+v", before)
	}

	// It's told to rest once it has begun.
	resting, rest := context.WithCancel(ctx)
	moved := make(chan error, 1)
	go func() { moved <- lvm.Move(resting, second, third) }()
	for end := time.Now().Add(patience); !begun(third) && len(moved) == 0 && time.Now().Before(end); {
		writes(1)
	}
	rest()
	if err := <-moved; !errors.Is(err, context.Canceled) {
		t.Fatal("moving was not to be stopped:", err)
	}
	if moving, err := lvm.Moving(ctx); !moving || err != nil {
		t.Fatal(moving, err)
	}
	writes(3)
	if err := lvm.CreateThin(ctx, "vol-c.000003", 64*mib); err != nil { // all else goes on
		t.Error(err)
	}
	if err := lvm.RemoveThin(ctx, "vol-c.000003"); err != nil {
		t.Error(err)
	}

	// It's killed at a moment of its own choice.
	killed(t, func() bool { return begun(third) }, "pvmove", "-y", "-i", "1", second, third)
	if err := lvm.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	writes(3)

	timed(t, "move the rest", func() error { return lvm.Move(ctx, second, third) })
	if left, _ := part(t, second); left.UsedBytes() != 0 {
		t.Errorf("%+v", left)
	}
	if err := errors.Join(lvm.Reduce(ctx, second), lvm.Forget(ctx, second)); err != nil {
		t.Fatal(err)
	}
	if _, member := part(t, second); member {
		t.Error("the old disk is still in the group")
	}
	if err := stop(); err != nil {
		t.Error("writer:", err)
	}
	unmount()
	compare(t, volume)
	if err := lvm.RemoveThin(ctx, volume, busy); err != nil {
		t.Error(err)
	}
}

// What is called off leaves both disks in use.
func TestUnmove(t *testing.T) {
	const volume = "vol-a.000001"
	second, third := spread(t, volume)
	ctx := t.Context()
	if err := errors.Join(lvm.Join(ctx, third, lvm.NewID()), lvm.Close(ctx, second, false)); err != nil {
		t.Fatal(err)
	}
	resting, rest := context.WithCancel(ctx)
	moved := make(chan error, 1)
	go func() { moved <- lvm.Move(resting, second, third) }()
	for end := time.Now().Add(patience); !begun(third) && len(moved) == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	rest()
	if err := <-moved; !errors.Is(err, context.Canceled) {
		t.Fatal("moving was not to be stopped:", err)
	}
	if err := lvm.Unmove(ctx); err != nil {
		t.Fatal(err)
	}
	if err := lvm.Close(ctx, second, true); err != nil {
		t.Fatal(err)
	}
	if moving, err := lvm.Moving(ctx); moving || err != nil {
		t.Error(moving, err)
	}
	compare(t, volume)
	if err := lvm.RemoveThin(ctx, volume); err != nil {
		t.Error(err)
	}
}

// Without one of its disks what lies on PERM alone opens, the pool doesn't, and nothing
// can be changed; with the disk all is as before.
func TestMissing(t *testing.T) {
	const volume = "vol-a.000001"
	second, third := spread(t, volume)
	ctx := t.Context()
	lvmtest.Command(t, "lvcreate", "-y", "-L", "8m", "-n", lvm.Perm, lvm.Group, lvmtest.Disk)
	defer func() { lvmtest.Command(t, "lvremove", "-y", "-f", lvm.Group+"/"+lvm.Perm) }()
	parts, err := lvm.Assemble(lvmtest.Disk, []string{second, third})
	if err != nil || len(parts.Found) != 1 || len(parts.Missing) != 0 {
		t.Fatalf("%+v, %v", parts, err)
	}
	if err := lvm.Deactivate(ctx); err != nil {
		t.Fatal(err)
	}
	parts, err = lvm.Assemble(lvmtest.Disk, []string{third})
	if err != nil || len(parts.Found) != 0 || len(parts.Missing) != 1 {
		t.Fatalf("%+v, %v", parts, err)
	}
	if err := lvm.Setup(lvmtest.Disk); err != nil {
		t.Fatal(err)
	}
	if err := lvm.ActivatePerm(ctx); err != nil {
		t.Error("perm without the second disk:", err)
	}
	look, err := lvm.Activate(ctx)
	t.Log("activated:", look, err)
	if _, err := os.Stat(lvm.Device(volume)); err == nil {
		t.Error("the volume is open without its disk")
	}
	if lvm.CreateThin(ctx, "vol-b.000002", 64*mib) == nil || lvm.RemoveThin(ctx, volume) == nil || lvm.Join(ctx, third, lvm.NewID()) == nil {
		t.Error("the group was changed without its disk")
	}
	missing := slices.IndexFunc(physicals(t), func(p lvm.Physical) bool { return p.Missing && p.Device == "" })
	if missing < 0 {
		t.Errorf("%+v", physicals(t))
	}
	if err := lvm.Setup(lvmtest.Disk, second); err != nil {
		t.Fatal(err)
	}
	if look, err := lvm.Activate(ctx); look || err != nil {
		t.Error("with the disk again:", look, err)
	}
	compare(t, volume)
	if err := lvm.RemoveThin(ctx, volume); err != nil {
		t.Error(err)
	}
}
