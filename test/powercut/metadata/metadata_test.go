package metadata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"capsule/internal/blocklog"
	"capsule/internal/dm"
	"capsule/internal/ext4"
	"capsule/internal/kmod"
	"capsule/internal/lvm"
)

const (
	// data is vmexec's blank data disk.
	data = "/dev/vdc"

	sector    = 512
	gib       = 1 << 30
	permBytes = 256 << 20 // of the partition PERM: its pool has 8 MiB of metadata
	logBytes  = 1 * gib
	copyBytes = 1 * gib

	volume      = "vol-a.000001"
	volumeBytes = 32 << 20
	// firstID of the devices that fill the metadata; lvm counts from 1.
	firstID = 100_000
	idsMax  = 100_000

	cuts = 24
	seed = 1
)

// dmPool is the pool's own device, once it has a volume.
const dmPool = "capsule-thinpool-tpool"

func TestFullMetadata(t *testing.T) {
	if os.Getenv("CAPSULE_TEST_MACHINE") == "" {
		t.Skip("needs device mapper and a disk: run it by test/vmexec")
	}
	if testing.Short() {
		t.Skip("takes a minute and a half; run without -short")
	}
	modules, err := kmod.Open("/")
	if err == nil {
		err = modules.Load("dm_mod", "dm_thin_pool", "dm_log_writes", "dm_snapshot")
	}
	if err != nil {
		t.Fatal(err)
	}
	control, err := dm.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { control.Close() })
	d := &disks{t: t, control: control}
	d.slice("recorded", 0, permBytes)
	d.slice("log", gib, logBytes)
	d.slice("replayed", 2*gib, permBytes)
	d.slice("copy", 3*gib, copyBytes)
	device := d.make("powercut-disk", permBytes, "log-writes", d.path("recorded")+" "+d.path("log"))
	from := work(t, control, device)
	d.remove("powercut-disk")
	l := readLog(t, d.path("log"))
	t.Logf("%d writes, discards and flushes, %d of them flushes; the metadata was filled from entry %d on", len(l.Entries), len(l.Flushes()), from)

	replayed, err := os.OpenFile(d.path("replayed"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer replayed.Close()
	r := blocklog.NewReplayer(l, blocklog.Disk{File: replayed})
	for _, c := range choose(l, from) {
		if err := d.try(r, l, replayed, c); err != nil {
			t.Errorf("cut %v: %v", c, err)
		}
	}
}

// text is what a file holds that was synced before the metadata was full.
var text = bytes.Repeat([]byte("kept\n"), 20_000)

// work makes a group as a first boot does, with a volume and a file in it, then
// fills the pool's metadata. It gives after how many log entries that began.
func work(t *testing.T, control *dm.Control, device string) (full int) {
	t.Helper()
	must(t, lvm.Setup(device))
	must(t, lvm.MarkNew(device))
	must(t, lvm.Create(t.Context(), device))
	must(t, lvm.CreateThin(t.Context(), volume, volumeBytes))
	must(t, ext4.Format(t.Context(), lvm.Device(volume)))
	dir := t.TempDir()
	must(t, unix.Mount(lvm.Device(volume), dir, "ext4", unix.MS_NOATIME, "errors=remount-ro"))
	must(t, writeSynced(filepath.Join(dir, "kept")))
	full = recorded(t, control)
	var err error
	made := 0
	for ; err == nil && made < idsMax; made++ {
		err = control.Message(dmPool, fmt.Sprintf("create_thin %d", firstID+made))
	}
	pool, poolErr := lvm.ReadPool()
	must(t, poolErr)
	t.Logf("%d devices, then: %v; the pool is %q, needs check: %v, metadata %d of %d bytes", made, err, pool.Mode, pool.NeedsCheck, pool.MetadataUsed, pool.MetadataSize)
	if err == nil {
		t.Fatal("the metadata could not be filled")
	}
	_ = writeSynced(filepath.Join(dir, "more")) // may find no room
	must(t, unix.Unmount(dir, 0))
	_ = lvm.Deactivate(t.Context())
	removeGroup(t, control)
	return full
}

// recorded is how many entries the log has by now.
func recorded(t *testing.T, control *dm.Control) (entries int) {
	t.Helper()
	d, err := control.Status("powercut-disk")
	must(t, err)
	if _, err := fmt.Sscan(d.Targets[0].Params, &entries); err != nil {
		t.Fatalf("status of log-writes %q: %v", d.Targets[0].Params, err)
	}
	return entries
}

func writeSynced(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}

func readLog(t *testing.T, device string) *blocklog.Log {
	t.Helper()
	f, err := os.Open(device)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	size, err := f.Seek(0, io.SeekEnd)
	must(t, err)
	l, err := blocklog.Read(f, size)
	must(t, err)
	return l
}

// choose picks cuts behind from, most of them near the end, where it is full.
func choose(l *blocklog.Log, from int) []blocklog.Cut {
	random := rand.New(rand.NewPCG(seed, 0))
	var all []blocklog.Cut
	rest := len(l.Entries) - from
	for i := range cuts {
		n := len(l.Entries) - rest*i*i/(cuts*cuts)
		mode := []blocklog.Mode{blocklog.Prefix, blocklog.Drop, blocklog.Torn}[i%3]
		all = append([]blocklog.Cut{{Mode: mode, N: n, Seed: random.Uint64()}}, all...)
	}
	return all
}

// try starts from the disk of one cut as a capsule does, then makes room.
func (d *disks) try(r *blocklog.Replayer, l *blocklog.Log, replayed *os.File, c blocklog.Cut) error {
	base, err := l.Base(c)
	if err == nil {
		err = r.Forward(base)
	}
	if err == nil {
		err = replayed.Sync()
	}
	if err == nil {
		err = unix.IoctlSetInt(int(replayed.Fd()), unix.BLKFLSBUF, 0)
	}
	if err != nil {
		return err
	}
	device := d.make("powercut-disk", permBytes, "snapshot", d.path("replayed")+" "+d.path("copy")+" N 8")
	defer d.remove("powercut-disk")
	defer removeGroup(d.t, d.control)
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(r.Rest(blocklog.Disk{File: f}, c), f.Sync(), f.Close()); err != nil {
		return err
	}
	return d.start(d.t.Context(), device)
}

func (d *disks) start(ctx context.Context, device string) error {
	if err := lvm.Setup(device); err != nil {
		return err
	}
	if look, err := lvm.Activate(ctx); err != nil || look {
		return fmt.Errorf("activate: look %v: %w", look, err)
	}
	before, err := lvm.ReadPool()
	if err != nil {
		return err
	}
	if err := lvm.ExtendMetadata(ctx, lvm.ExtentBytes); err != nil {
		return fmt.Errorf("extend the metadata of a pool that is %+v: %w", before, err)
	}
	after, err := lvm.ReadPool()
	if err != nil {
		return err
	}
	if after.Mode != lvm.ModeWrite || after.NeedsCheck {
		return fmt.Errorf("with more metadata the pool is %+v, was %+v", after, before)
	}
	if err := lvm.CreateThin(ctx, "vol-new.000002", lvm.ExtentBytes); err != nil {
		return err
	}
	if err := ext4.Check(ctx, lvm.Device(volume)); err != nil {
		return err
	}
	dir := d.t.TempDir()
	if err := unix.Mount(lvm.Device(volume), dir, "ext4", unix.MS_NOATIME, "errors=remount-ro"); err != nil {
		return fmt.Errorf("mount the volume: %w", err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "kept"))
	if err == nil && !bytes.Equal(got, text) {
		err = fmt.Errorf("what was synced has changed: %d bytes", len(got))
	}
	return errors.Join(err, unix.Unmount(dir, 0))
}

// disks are parts of the data disk.
type disks struct {
	t       *testing.T
	control *dm.Control
	paths   map[string]string
}

func (d *disks) path(name string) string { return d.paths[name] }

// slice makes a part of the data disk a device.
func (d *disks) slice(name string, at, size int64) {
	d.t.Helper()
	if d.paths == nil {
		d.paths = map[string]string{}
	}
	d.paths[name] = d.make("slice-"+name, size, "linear", fmt.Sprintf("%s %d", data, at/sector))
	d.t.Cleanup(func() { d.remove("slice-" + name) })
}

func (d *disks) make(name string, size int64, kind, params string) string {
	d.t.Helper()
	made, err := d.control.Create(name, false, dm.Target{Sectors: uint64(size) / sector, Kind: kind, Params: params})
	must(d.t, err)
	return made.Path()
}

func (d *disks) remove(name string) {
	d.t.Helper()
	must(d.t, d.control.Remove(name))
}

// removeGroup takes away the group's devices, whatever order they need.
func removeGroup(t *testing.T, control *dm.Control) {
	t.Helper()
	for again := true; again; {
		names, err := control.Names()
		must(t, err)
		again = false
		for _, name := range names {
			if strings.HasPrefix(name, lvm.Group+"-") && control.Remove(name) == nil {
				again = true
			}
		}
	}
	must(t, os.RemoveAll("/dev/"+lvm.Group))
	nodes, err := filepath.Glob("/dev/mapper/" + lvm.Group + "-*")
	must(t, err)
	for _, node := range nodes {
		must(t, os.Remove(node))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
