package installer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"capsule/internal/bundle"
	"capsule/internal/disk"
	"capsule/internal/fat"
	"capsule/internal/lvm"
	"capsule/internal/slot"
)

// source is a small system.
func source(t *testing.T) Source {
	t.Helper()
	data := make([]byte, 700*slot.BlockSize)
	for i := range data {
		data[i] = byte(i * 7 >> 9)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "system"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	tree, hash, err := bundle.HashTree(f)
	if err != nil {
		t.Fatal(err)
	}
	return Source{
		System: bytes.NewReader(append(data, tree...)), Root: slot.Root{Hash: hash, DataBytes: int64(len(data))},
		Files: []fat.File{
			fat.Text("EFI/BOOT/BOOTX64.EFI", bytes.Repeat([]byte("loader"), 99_999)),
			fat.Text("loader/entries/capsule-slot_a+3-0.conf", []byte("title\n")),
			fat.Text(disk.SeedFile, []byte("seed")),
		},
	}
}

// A fakeDisk is a file that can lose power after so many writes, and lie.
type fakeDisk struct {
	*Device
	left   int  // writes until the cut; negative: never
	fails  int  // the write, counted from 0, that alone fails; negative: none
	blind  bool // once something was verified, it reads no more
	forget int  // the write, counted from 0, that it doesn't keep; negative: none
	writes int

	verified bool
}

var errCut = errors.New("power cut")

func (d *fakeDisk) WriteAt(p []byte, at int64) (int, error) {
	if d.left == 0 {
		return 0, errCut
	}
	d.left--
	d.writes++
	if d.writes-1 == d.fails {
		return 0, errCut
	}
	if d.writes-1 == d.forget {
		return len(p), nil
	}
	return d.Device.WriteAt(p, at)
}

func (d *fakeDisk) Fresh() (Reader, error) {
	if d.blind && d.verified {
		return nil, errCut
	}
	d.verified = true
	return d.Device.Fresh()
}

// emptyDisk is a sparse file; used: with something everywhere where we write.
func emptyDisk(t *testing.T, size int64, used bool) *fakeDisk {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if used {
		old := bytes.Repeat([]byte{0xff}, 3<<20)
		for _, at := range []int64{0, 1 << 20, 1<<20 + disk.ESPBytes, 1<<20 + disk.ESPBytes + disk.SlotBytes, 1<<20 + disk.ESPBytes + 2*disk.SlotBytes, size - int64(len(old))} {
			if _, err := f.WriteAt(old, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	return &fakeDisk{Device: &Device{f}, left: -1, fails: -1, forget: -1}
}

// write is an installation without what stands around it.
func write(ctx context.Context, target Target, table *disk.Table, source Source, progress func(Progress)) error {
	w := newWriter(ctx, target, table, source, progress)
	if err := w.fill(); err != nil {
		return err
	}
	return w.finish()
}

func newTable(t *testing.T, sector int, size int64) *disk.Table {
	t.Helper()
	table, err := disk.NewTable(sector, uint64(size)/uint64(sector))
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// whole checks a disk that was installed.
func whole(t *testing.T, d io.ReaderAt, sector int, size int64, src Source) {
	t.Helper()
	table, err := disk.ReadTable(d, sector, uint64(size)/uint64(sector))
	if err != nil || table.Damaged || len(table.Partitions) != 4 {
		t.Fatalf("%v, %+v", err, table)
	}
	mbr := make([]byte, 512)
	if _, err := d.ReadAt(mbr, 0); err != nil || mbr[450] != 0xee || mbr[510] != 0x55 {
		t.Errorf("no protective MBR: %v", err)
	}
	section := func(name string) *io.SectionReader {
		p, err := table.ByName(name)
		if err != nil {
			t.Fatal(err)
		}
		return io.NewSectionReader(d, table.Offset(p), int64(table.Bytes(p)))
	}
	tree, err := slot.OpenTree(section(disk.SlotA), src.Root.DataBytes, src.Root.Hash)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, slot.BlockSize)
	for i := range tree.Blocks() {
		if _, err := section(disk.SlotA).ReadAt(block, i*slot.BlockSize); err != nil {
			t.Fatal(err)
		}
		if err := tree.Verify(i, block); err != nil {
			t.Fatal(err)
		}
	}
	mark := make([]byte, len(lvm.Mark()))
	if _, err := section(disk.PERM).ReadAt(mark, lvm.MarkAt); err != nil || !bytes.Equal(mark, lvm.Mark()) {
		t.Errorf("PERM isn't new: %v", err)
	}
	checkESP(t, section(disk.ESP))
}

func checkESP(t *testing.T, r io.Reader) {
	t.Helper()
	if _, err := exec.LookPath("fsck.vfat"); err != nil {
		t.Log("boot partition not checked:", err)
		return
	}
	file := filepath.Join(t.TempDir(), "esp")
	out, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.CopyN(out, r, 16<<20); err != nil { // what is used stands at its beginning
		t.Fatal(err)
	}
	if err := out.Truncate(disk.ESPBytes); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "fsck.vfat", "-n", file).CombinedOutput(); err != nil {
		t.Errorf("fsck.vfat: %v\n%s", err, out)
	}
}

func TestWrite(t *testing.T) {
	src := source(t)
	for _, sector := range []int{512, 4096} {
		for _, used := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d, used %t", sector, used), func(t *testing.T) {
				const size = disk.NeededBytes + 3*4096
				d := emptyDisk(t, size, used)
				var last Progress
				if err := write(t.Context(), d, newTable(t, sector, size), src, func(p Progress) {
					if p.Done < last.Done || p.Done > p.Total {
						t.Errorf("progress %+v after %+v", p, last)
					}
					last = p
				}); err != nil {
					t.Fatal(err)
				}
				if last.Done != last.Total {
					t.Errorf("progress ends at %+v", last)
				}
				whole(t, d, sector, size, src)
			})
		}
	}
}

// TestCut cuts the power before each write. Until all is on the disk, what is left is
// no disk that boots; and the next run makes it whole, without being told to erase.
func TestCut(t *testing.T) {
	src := source(t)
	const size = disk.NeededBytes
	count := emptyDisk(t, size, false)
	if err := write(t.Context(), count, newTable(t, 512, size), src, nil); err != nil {
		t.Fatal(err)
	}
	const ofTable = 5 // writes of the last step, which follow what is verified
	for n := range count.writes {
		d := emptyDisk(t, size, true)
		d.left = n
		if err := write(t.Context(), d, newTable(t, 512, size), src, nil); !errors.Is(err, errCut) {
			t.Fatalf("cut before write %d: %v", n, err)
		}
		contents, err := disk.Contents(d, 512, size)
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 && len(contents) > 0 {
			t.Errorf("cut before write %d: the disk holds %v", n, contents)
		}
		table, err := disk.ReadTable(d, 512, size/512)
		if n <= count.writes-ofTable && !errdefs.IsNotFound(err) {
			t.Errorf("cut before write %d: there's a table: %v, %v", n, table, err)
		}
		d.left = -1
		if err := write(t.Context(), d, newTable(t, 512, size), src, nil); err != nil {
			t.Fatalf("after a cut before write %d: %v", n, err)
		}
		if n%8 == 0 {
			whole(t, d, 512, size, src)
		}
	}
}

// TestForgetful has the disk lose each write in turn: none is called installed.
func TestForgetful(t *testing.T) {
	src := source(t)
	const size = disk.NeededBytes
	count := emptyDisk(t, size, false)
	if err := write(t.Context(), count, newTable(t, 512, size), src, nil); err != nil {
		t.Fatal(err)
	}
	for n := range count.writes {
		d := emptyDisk(t, size, true)
		d.forget = n
		if err := write(t.Context(), d, newTable(t, 512, size), src, nil); !errdefs.IsDataLoss(err) {
			t.Errorf("write %d was lost: %v", n, err)
		}
	}
}

func TestWriteStops(t *testing.T) {
	src := source(t)
	const size = disk.NeededBytes
	damaged := source(t)
	b, err := io.ReadAll(io.NewSectionReader(damaged.System, 0, 1<<30))
	if err != nil {
		t.Fatal(err)
	}
	b[300*slot.BlockSize+17] ^= 1
	damaged.System = bytes.NewReader(b)
	short := source(t)
	short.Files = []fat.File{{Path: "a", Content: bytes.NewReader(nil), Bytes: 10}}
	huge := source(t)
	huge.Root.DataBytes = disk.SlotBytes
	ended, end := context.WithCancel(t.Context())
	end()
	for name, tc := range map[string]struct {
		ctx  context.Context
		src  Source
		want func(error) bool
	}{
		"a damaged stick":  {t.Context(), damaged, errdefs.IsDataLoss},
		"a file cut short": {t.Context(), short, func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
		"a huge system":    {t.Context(), huge, errdefs.IsFailedPrecondition},
		"nobody waits":     {ended, src, func(err error) bool { return errors.Is(err, context.Canceled) }},
	} {
		t.Run(name, func(t *testing.T) {
			d := emptyDisk(t, size, false)
			if err := write(tc.ctx, d, newTable(t, 512, size), tc.src, nil); !tc.want(err) {
				t.Error(err)
			}
			if _, err := disk.ReadTable(d, 512, size/512); !errdefs.IsNotFound(err) {
				t.Errorf("there's a table: %v", err)
			}
		})
	}
}

// A disk that is mounted, or whose partition is, is not opened.
func TestOpenBusy(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED, needs root")
	}
	image := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 64<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", "-F", image).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: %v: %s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", image).Output()
	if err != nil {
		t.Skip("SKIPPED, needs loop devices:", err)
	}
	loop := string(bytes.TrimSpace(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", loop).Run() })
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "mount", loop, dir).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: %v: %s", err, out)
	}
	if _, err := openDevice(loop); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("mounted: %v", err)
	}
	if err := exec.Command("umount", dir).Run(); err != nil {
		t.Fatal(err)
	}
	d, err := openDevice(loop)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	r, err := d.Fresh()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b := make([]byte, 2)
	if n, err := r.ReadAt(b, 1024+0x38); n != 2 || err != nil || b[0] != 0x53 || b[1] != 0xef {
		t.Errorf("read past the cache: %d, %v, % x", n, err, b)
	}
}
