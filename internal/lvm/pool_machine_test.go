package lvm_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"capsule/internal/dm"
	"capsule/internal/ext4"
	"capsule/internal/lvm"
	"capsule/internal/lvm/lvmtest"
)

// queued is how long a write waits in a full pool that doesn't refuse it at once
// (no_space_timeout of dm-thin-pool).
const queued = 60 * time.Second

// The pool tells when it passes nine tenths, up to which volumes are made; full, it
// gives errors at once to whoever needs a new chunk, and to nobody else; space that
// is given back brings it round by itself.
func TestPoolFull(t *testing.T) {
	const size = 128 * mib
	lvmtest.Pool(t, size)
	ctx := t.Context()
	const a, b = "vol-a.000001", "vol-b.000001"
	for _, name := range []string{a, b} {
		if err := lvm.CreateThin(ctx, name, size); err != nil {
			t.Fatal(err)
		}
	}
	fill(t, b, 0, 8*mib)
	watch, stop := context.WithCancel(ctx)
	defer stop()
	events := lvm.WatchPool(watch)
	fill(t, a, 0, 100*mib)
	quiet(t, events, "84 %")
	if err := errors.Join( // the guard's policy decides, not lvm
		lvm.CreateThin(ctx, "vol-c.000001", size),
		lvm.Snapshot(ctx, "vol-c.000001", "snap-c.000002"),
		lvm.ExtendThin(ctx, b, 2*size),
	); err != nil {
		t.Error("at 84 %:", err)
	}
	if err := errors.Join(lvm.SnapshotToRead(ctx, a, "snap-a.000003"), lvm.RemoveThin(ctx, "snap-a.000003")); err != nil {
		t.Error("to read:", err)
	}
	fill(t, a, 100*mib, 8*mib)
	awaitEvent(t, events, "91 %")
	if err := errors.Join(lvm.SnapshotToRead(ctx, "vol-c.000001", "snap-c.000003"), lvm.RemoveThin(ctx, "snap-c.000003")); err != nil {
		t.Error("to read at 91 %:", err)
	}

	begin := time.Now()
	err := tryFill(a, 108*mib, 20*mib)
	if !errors.Is(err, unix.ENOSPC) || time.Since(begin) >= queued {
		t.Errorf("full: %v after %v", err, time.Since(begin))
	}
	awaitEvent(t, events, "full")
	p, err := lvm.ReadPool()
	if err != nil || p.Mode != lvm.ModeFull || p.DataUsed != p.DataSize {
		t.Errorf("full: %+v, %v", p, err)
	}
	fill(t, b, 0, 8*mib) // it has these chunks
	if err := lvm.Snapshot(ctx, b, "snap-b.000002"); err == nil {
		t.Error("lvm made a snapshot in a full pool")
	}
	timed(t, "remove", func() error { return lvm.RemoveThin(ctx, a) })
	if p, err = lvm.ReadPool(); err != nil || p.Mode != lvm.ModeWrite {
		t.Errorf("after a volume was removed: %+v, %v", p, err)
	}
	fill(t, b, 8*mib, 8*mib)
}

// A file system in a full pool gets errors; once space is back and it was checked,
// it works on with what was synced.
func TestPoolFullUnderFileSystem(t *testing.T) {
	const size = 128 * mib
	lvmtest.Pool(t, size)
	ctx := t.Context()
	const a, b = "vol-a.000001", "vol-b.000001"
	if err := lvm.CreateThin(ctx, a, size); err != nil {
		t.Fatal(err)
	}
	makeVolume(t, b, size)
	dir, unmount := mount(t, b)
	write(t, filepath.Join(dir, "kept"), "as synced")
	fill(t, a, 0, size-24*mib)
	begin := time.Now()
	err := fillFile(filepath.Join(dir, "large"), 64*mib)
	if err == nil || time.Since(begin) >= queued {
		t.Errorf("full: %v after %v", err, time.Since(begin))
	}
	t.Log("file in a full pool:", err, time.Since(begin))
	if err := lvm.RemoveThin(ctx, a); err != nil {
		t.Fatal(err)
	}
	unmount()
	s, err := ext4.ReadSuper(lvm.Device(b))
	t.Logf("%+v, %v", s, err)
	if err := ext4.Check(ctx, lvm.Device(b)); err != nil {
		t.Error(err)
	}
	dir, _ = mount(t, b)
	if got := read(t, filepath.Join(dir, "kept")); got != "as synced" {
		t.Errorf("%q", got)
	}
	if err := fillFile(filepath.Join(dir, "large2"), 32*mib); err != nil {
		t.Error("after the check:", err)
	}
}

// The pool's metadata, nearly full, is made larger while volumes are written to.
func TestMetadataExtended(t *testing.T) {
	crowded(t)
	before, err := lvm.ReadPool()
	if err != nil {
		t.Fatal(err)
	}
	wasFree, err := lvm.Free(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	timed(t, "extend", func() error { return lvm.ExtendMetadata(t.Context(), 32*mib) })
	after, err := lvm.ReadPool()
	if err != nil || after.MetadataSize < before.MetadataSize+32*mib || after.Mode != lvm.ModeWrite {
		t.Errorf("%+v, then %+v, %v", before, after, err)
	}
	scatter(t, "vol-a.000001")
	free, err := lvm.Free(t.Context())
	if used := wasFree - free; err != nil || used != 64*mib {
		t.Errorf("%d bytes of the group, %v, want 64 MiB: with the spare", used, err)
	}
}

// Metadata that ran full stops writes, never reads. Made larger, it goes on at once,
// and nothing that was synced is lost.
func TestMetadataFull(t *testing.T) {
	ctx := t.Context()
	watch, stop := context.WithCancel(ctx)
	defer stop()
	events := lvm.WatchPool(watch)
	fillMetadata(t)
	timed(t, "event", func() error { awaitEvent(t, events, "metadata full"); return nil })
	if p, err := lvm.ReadPool(); err != nil || p.Mode != lvm.ModeReadOnly || p.MetadataUsed != p.MetadataSize {
		t.Errorf("%+v, %v", p, err)
	}
	compare(t, "vol-a.000001")
	timed(t, "extend", func() error { return lvm.ExtendMetadata(ctx, 32*mib) })
	scatter(t, "vol-a.000001")
	if p, err := lvm.ReadPool(); err != nil || p.Mode != lvm.ModeWrite || p.NeedsCheck {
		t.Errorf("with more metadata: %+v, %v", p, err)
	}

	// And what a boot makes of it.
	timed(t, "close", func() error { return lvm.Deactivate(ctx) })
	if look, err := lvm.Activate(ctx); look || err != nil {
		t.Error(look, err)
	}
	compare(t, "vol-a.000001")
	if p, err := lvm.ReadPool(); err != nil || p.Mode != lvm.ModeWrite || p.NeedsCheck {
		t.Errorf("after a boot: %+v, %v", p, err)
	}
}

// A boot with full metadata is no different: the pool can be read, and works again
// once its metadata is larger.
func TestBootWithMetadataFull(t *testing.T) {
	fillMetadata(t)
	ctx := t.Context()
	if err := lvm.Deactivate(ctx); err != nil {
		t.Fatal(err)
	}
	if look, err := lvm.Activate(ctx); look || err != nil {
		t.Error(look, err)
	}
	p, err := lvm.ReadPool()
	t.Logf("%+v, %v", p, err)
	compare(t, "vol-a.000001")
	if err := lvm.ExtendMetadata(ctx, 32*mib); err != nil {
		t.Fatal(err)
	}
	scatter(t, "vol-a.000001")
	if p, err := lvm.ReadPool(); err != nil || p.Mode != lvm.ModeWrite || p.NeedsCheck {
		t.Errorf("%+v, %v", p, err)
	}
}

func fillMetadata(t *testing.T) {
	t.Helper()
	crowded(t)
	c, err := dm.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := 2000; err == nil; i++ {
		if i == 2040 {
			t.Fatal("the metadata never ran full")
		}
		err = tryStrew(c, i)
	}
	t.Log("metadata full:", err)
}

// crowded gives the test a pool whose metadata is more than 80 % full.
func crowded(t *testing.T) {
	t.Helper()
	lvmtest.PoolWithMetadata(t, 1<<30, 4*mib)
	t.Cleanup(lvmtest.Changed)
	if err := lvm.CreateThin(t.Context(), "vol-a.000001", scattered); err != nil {
		t.Fatal(err)
	}
	fill(t, "vol-a.000001", 0, scattered)
	c, err := dm.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 60 {
		p, err := lvm.ReadPool()
		if err != nil {
			t.Fatal(err)
		}
		if p.MetadataUsed*100 >= p.MetadataSize*80 {
			t.Logf("%d snapshots: %d of %d KiB", i, p.MetadataUsed>>10, p.MetadataSize>>10)
			return
		}
		strew(t, c, 1000+i)
	}
	t.Fatal("the metadata doesn't fill up")
}

// strew makes a snapshot that lvm, which refuses any beyond three quarters, doesn't
// know of, and unshares its metadata.
func strew(t *testing.T, c *dm.Control, id int) {
	t.Helper()
	if err := tryStrew(c, id); err != nil {
		t.Fatal(err)
	}
}

func tryStrew(c *dm.Control, id int) error {
	const pool, volume = "capsule-thinpool-tpool", "capsule-vol--a.000001"
	if err := c.Suspend(volume); err != nil {
		return err
	}
	if err := errors.Join(c.Message(pool, fmt.Sprintf("create_snap %d 1", id)), c.Resume(volume)); err != nil {
		return err
	}
	return tryScatter("vol-a.000001")
}
