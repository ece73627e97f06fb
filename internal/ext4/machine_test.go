package ext4_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"capsule/internal/ext4"
	"capsule/internal/lvm"
	"capsule/internal/lvm/lvmtest"
	"capsule/internal/run"
)

const mib = 1 << 20

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func mount(t *testing.T, name string, flags uintptr) (dir string, unmount func()) {
	t.Helper()
	dir = t.TempDir()
	must(t, unix.Mount(lvm.Device(name), dir, "ext4", unix.MS_NOATIME|unix.MS_NODEV|flags, ""))
	return dir, func() { must(t, unix.Unmount(dir, 0)) }
}

func write(t *testing.T, file, text string) {
	t.Helper()
	f, err := os.Create(file)
	must(t, err)
	_, err = f.WriteString(text)
	must(t, err, f.Sync(), f.Close())
}

// copyDevice takes a volume as a power cut would leave it: what is mounted is read
// past its file system.
func copyDevice(t *testing.T, from, to string) {
	t.Helper()
	r, err := os.OpenFile(lvm.Device(from), os.O_RDONLY|unix.O_DIRECT, 0)
	must(t, err)
	defer r.Close()
	w, err := os.OpenFile(lvm.Device(to), os.O_WRONLY, 0)
	must(t, err)
	b, zero := make([]byte, 2*mib), make([]byte, mib)
	b = b[4096-int(uintptr(unsafe.Pointer(&b[0]))&4095):][:mib] // as O_DIRECT wants it
	for at := int64(0); ; at += mib {
		n, err := r.ReadAt(b, at)
		if n > 0 && !bytes.Equal(b[:n], zero[:n]) {
			_, werr := w.WriteAt(b[:n], at)
			must(t, werr)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
	}
	must(t, w.Sync(), w.Close())
}

// tear writes a first sector of the superblock with later times, as when the power
// fails before the second one.
func tear(t *testing.T, name string) {
	t.Helper()
	f, err := os.OpenFile(lvm.Device(name), os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt(bytes.Repeat([]byte{0x66}, 8), 1024+0x2c)
	must(t, err, f.Sync(), f.Close())
}

// A file system that was written to and grown, its power cut while mounted, and its
// superblock torn by it, is as good as any after a cut.
func TestTornInUse(t *testing.T) {
	lvmtest.Pool(t, 1<<30)
	ctx := t.Context()
	const name, cut = "vol-a.000001", "vol-b.000001"
	must(t, lvm.CreateThin(ctx, name, 192*mib), ext4.Format(ctx, lvm.Device(name)), lvm.CreateThin(ctx, cut, 256*mib))
	dir, unmount := mount(t, name, 0)
	write(t, filepath.Join(dir, "first"), "before it grew")
	must(t, lvm.ExtendThin(ctx, name, 256*mib))
	if grown, err := ext4.Grow(dir); !grown || err != nil {
		t.Fatal(grown, err)
	}
	write(t, filepath.Join(dir, "second"), "in the journal only")
	copyDevice(t, name, cut)
	unmount()

	tear(t, cut)
	if s, err := ext4.ReadSuper(lvm.Device(cut)); err != nil || !s.NeedsRecovery {
		t.Fatalf("no power cut: %+v, %v", s, err)
	}
	if err := unix.Mount(lvm.Device(cut), dir, "ext4", 0, ""); err == nil {
		t.Fatal("the kernel takes it: this test tears nothing")
	}
	must(t, ext4.Check(ctx, lvm.Device(cut)))
	dir, unmount = mount(t, cut, 0)
	defer unmount()
	for file, want := range map[string]string{"first": "before it grew", "second": "in the journal only"} {
		if b, err := os.ReadFile(filepath.Join(dir, file)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", file, b, err)
		}
	}
}

// Grow says why it can't.
func TestGrowRefused(t *testing.T) {
	lvmtest.Pool(t, 1<<30)
	ctx := t.Context()
	const name = "vol-a.000001"
	must(t, lvm.CreateThin(ctx, name, 64*mib), ext4.Format(ctx, lvm.Device(name)), lvm.ExtendThin(ctx, name, 128*mib))
	dir, unmount := mount(t, name, unix.MS_RDONLY)
	defer unmount()
	if grown, err := ext4.Grow(dir); grown || !errors.Is(err, unix.EROFS) {
		t.Error("read-only:", grown, err)
	}
	if grown, err := ext4.Grow("/run"); grown || !errors.Is(err, unix.ENOTTY) {
		t.Error("tmpfs:", grown, err)
	}
	if err := ext4.Check(ctx, lvm.Device(name)); !errdefs.IsUnavailable(err) {
		t.Error("checked while mounted:", err)
	}
	if err := ext4.Check(ctx, lvm.Device("vol-none.000000")); !errdefs.IsNotFound(err) {
		t.Error("no device:", err)
	}
}

// What is in bounded folders stays within their bound, whatever moves between them,
// and others have the rest. Without the means for it that is said.
func TestBound(t *testing.T) {
	lvmtest.Pool(t, 1<<30)
	ctx := t.Context()
	const name, plain = "vol-a.000001", "vol-b.000001"
	must(t, lvm.CreateThin(ctx, name, 128*mib), lvm.CreateThin(ctx, plain, 64*mib), ext4.Format(ctx, lvm.Device(plain)))
	_, err := run.Output(ctx, time.Minute, "mkfs.ext4", "-q", "-F", "-O", ext4.ProjectFeatures, "-E", "nodiscard,"+ext4.ProjectQuota, lvm.Device(name))
	must(t, err)
	if s, err := ext4.ReadSuper(lvm.Device(name)); err != nil || !s.Projects {
		t.Fatalf("%+v, %v", s, err)
	}
	dir := t.TempDir()
	must(t, unix.Mount(lvm.Device(name), dir, "ext4", 0, ext4.ProjectOption))
	defer func() { must(t, unix.Unmount(dir, 0)) }()
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	must(t, os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755), ext4.Bound(8*mib, 20, upper, work))

	err = asUser(func() error {
		return errors.Join(fill(filepath.Join(upper, "a"), 5), fill(filepath.Join(work, "b"), 5))
	})
	if !errors.Is(err, unix.EDQUOT) {
		t.Errorf("10 MiB of 8: %v", err)
	}
	must(t, os.Remove(filepath.Join(work, "b")), os.Rename(filepath.Join(upper, "a"), filepath.Join(work, "a")))
	err = asUser(func() error {
		for i := range 30 {
			if err := os.WriteFile(filepath.Join(upper, fmt.Sprint(i)), nil, 0o600); err != nil {
				return err
			}
		}
		return nil
	})
	if !errors.Is(err, unix.EDQUOT) {
		t.Errorf("30 files of 20: %v", err)
	}
	must(t, fill(filepath.Join(dir, "others"), 20))
	var st unix.Statfs_t
	must(t, unix.Statfs(upper, &st))
	if size := int64(st.Blocks) * st.Bsize; size != 8*mib {
		t.Errorf("a bounded folder shows %d bytes", size)
	}

	bare, unmount := mount(t, plain, 0)
	defer unmount()
	if err := ext4.Bound(8*mib, 20, bare); !errdefs.IsNotImplemented(err) {
		t.Errorf("a file system without projects: %v", err)
	}
}

// asUser calls fn without the right to pass quotas, as a workload has none.
func asUser(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		err := unix.Capget(&header, &data[0])
		if err == nil {
			data[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
			err = unix.Capset(&header, &data[0])
		}
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	return <-done
}

// fill writes so many MiB.
func fill(file string, mebibytes int) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, mebibytes*mib))
	return errors.Join(err, f.Sync(), f.Close())
}
