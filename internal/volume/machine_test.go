package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/await"
	"capsule/internal/ext4"
	"capsule/internal/image"
	"capsule/internal/lvm"
	"capsule/internal/lvm/lvmtest"
	"capsule/internal/store"
)

// These run in a machine of the image's kernel (test/vmexec), with a volume group.

const (
	poolSize = 1 << 30
	smallest = 32 * mib
)

// machine is a manager with an empty pool.
func machine(t *testing.T, content Content) *managed {
	t.Helper()
	lvmtest.Pool(t, poolSize)
	return start(t, newStore(t), content)
}

// start is a manager as the daemon starts it.
func start(t *testing.T, s *store.Store, content Content) *managed {
	t.Helper()
	m := prepare(t, s, content)
	m.dir = filepath.Join(os.TempDir(), "volumes")
	t.Cleanup(func() {
		all, err := mountings(m.dir)
		if err != nil {
			t.Error(err)
		}
		for _, at := range slices.Backward(all) {
			if err := unmountFS(at.dir); err != nil {
				t.Error(err)
			}
		}
	})
	if err := m.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m
}

// volume declares a volume and has it made.
func (m *managed) volume(t *testing.T, name string) record {
	t.Helper()
	m.declare(t, name, smallest)
	return m.step(t, name)
}

// step has the loop look at a volume once.
func (m *managed) step(t *testing.T, name string) record {
	t.Helper()
	if _, err := m.reconcile(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	r, _ := m.record(name)
	return r
}

func (m *managed) status(t *testing.T, name string) *v1.VolumeStatus {
	t.Helper()
	obj, err := m.opts.Store.Get(manifest.KindVolume, name)
	if err != nil {
		t.Fatal(err)
	}
	return obj.GetVolume().GetStatus()
}

func (m *managed) expectPhase(t *testing.T, name string, phase v1.VolumePhase, message string) {
	t.Helper()
	s := m.status(t, name)
	if s.GetPhase() != phase || !strings.Contains(s.GetMessage(), message) {
		t.Errorf("volume %s: %v, %q; want %v, %q", name, s.GetPhase(), s.GetMessage(), phase, message)
	}
}

// expectThin compares the logical volumes that there are.
func expectThin(t *testing.T, want ...string) {
	t.Helper()
	all, err := lvm.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, thin := range all {
		got = append(got, thin.Name)
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("logical volumes: %s", diff)
	}
}

var (
	blog = Claimant{Workload: "blog"}
	shop = Claimant{Workload: "shop", VM: true}
)

// give mounts a volume for a workload and returns the source.
func (m *managed) give(t *testing.T, c Claimant, mounts ...*v1.Mount) string {
	t.Helper()
	all, err := m.Mount(t.Context(), c, mounts, image.Image{})
	if err != nil {
		t.Fatal(err)
	}
	return all[0].Source
}

func (m *managed) take(t *testing.T, c Claimant) {
	t.Helper()
	if err := m.Release(t.Context(), c.Workload, nil); err != nil {
		t.Fatal(err)
	}
}

// held expects that a workload has to wait, and why.
func (m *managed) waits(t *testing.T, c Claimant, volume, why string) {
	t.Helper()
	_, err := m.Mount(t.Context(), c, []*v1.Mount{mount(volume)}, image.Image{})
	var held *HeldError
	if !errors.As(err, &held) || !strings.Contains(err.Error(), why) {
		t.Errorf("volume %s for %s: %v; want to wait: %s", volume, c.Workload, err, why)
	}
}

func put(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func expectFile(t *testing.T, name, text string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil || string(b) != text {
		t.Errorf("%s: %q, %v; want %q", name, b, err, text)
	}
}

func expectEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		t.Errorf("%s: %v, %v; want nothing in it", dir, entries, err)
	}
}

// From the declaration to files that outlive their workload.
func TestLife(t *testing.T) {
	m := machine(t, folder(t.TempDir()))
	r := m.volume(t, "a")
	expectThin(t, r.LV)
	m.expectPhase(t, "a", v1.VolumePhase_VOLUME_PHASE_READY, "")
	if !m.freedOnce("a") {
		t.Error("nobody was told that it is made")
	}
	dir := m.give(t, blog, mount("a"))
	if dir != filepath.Join(m.dir, "a", "data") {
		t.Errorf("source %q", dir)
	}
	expectEmpty(t, dir) // no lost+found
	put(t, dir+"/f", "mine")
	m.step(t, "a")
	m.expectPhase(t, "a", v1.VolumePhase_VOLUME_PHASE_IN_USE, "")
	if s := m.status(t, "a"); !cmp.Equal(s.Holders, []string{"blog"}) || s.Size != smallest || s.Used <= 0 {
		t.Errorf("status %v", s)
	}
	m.waits(t, shop, "a", `which workload "blog" holds`)
	m.waits(t, Claimant{Workload: "reader"}, "a", `which workload "blog" holds`)
	m.take(t, blog)
	if all, err := mountings(m.dir); err != nil || len(all) > 0 {
		t.Errorf("still mounted: %v, %v", all, err)
	}
	expectFile(t, m.give(t, Claimant{Workload: "reader"}, mount("a"))+"/f", "mine")
	m.take(t, Claimant{Workload: "reader"})

	if err := m.opts.Store.Delete(manifest.KindVolume, "a"); err != nil {
		t.Fatal(err)
	}
	m.step(t, "a")
	expectThin(t)
	if _, err := m.opts.Store.Get(manifest.KindVolume, "a"); err == nil {
		t.Error("the object is still there")
	}
	if s := m.known(); len(s.volumes)+len(s.intents) > 0 {
		t.Errorf("kept %+v", s)
	}
}

// A volume in use is deleted once it is released; one of its name is new.
func TestDeleteInUse(t *testing.T) {
	m := machine(t, folder(t.TempDir()))
	old := m.volume(t, "a")
	put(t, m.give(t, blog, mount("a"))+"/f", "old")
	if err := m.opts.Store.Delete(manifest.KindVolume, "a"); err != nil {
		t.Fatal(err)
	}
	m.step(t, "a")
	m.expectPhase(t, "a", v1.VolumePhase_VOLUME_PHASE_DELETING, `waits for workload "blog"`)
	expectThin(t, old.LV)
	m.declare(t, "a", smallest) // again, while the old one is in use
	m.step(t, "a")
	m.expectPhase(t, "a", v1.VolumePhase_VOLUME_PHASE_PENDING, `waits for workload "blog"`)
	expectThin(t, old.LV)
	m.take(t, blog)
	m.step(t, "a")
	expectThin(t)
	r := m.step(t, "a")
	expectThin(t, r.LV)
	if r.LV == old.LV {
		t.Errorf("name %s was used again", r.LV)
	}
	expectEmpty(t, m.give(t, blog, mount("a")))
}

// What the machine finds when it starts after a cut at any step of making,
// removing and cloning.
func TestCut(t *testing.T) {
	m := machine(t, folder(t.TempDir()))
	ctx := t.Context()
	keep := m.volume(t, "keep")
	put(t, m.give(t, blog, mount("keep"))+"/f", "kept")
	m.take(t, blog)
	make := func(lv string) {
		t.Helper()
		if err := lvm.CreateThin(ctx, lv, smallest); err != nil {
			t.Fatal(err)
		}
	}
	begin := func(lv, purpose, volume string) {
		t.Helper()
		if err := m.begin(intent{LV: lv, Purpose: purpose, Volume: volume}); err != nil {
			t.Fatal(err)
		}
	}
	m.declare(t, "before", smallest)
	begin("vol-before.000001", purposeCreate, "before") // no LV yet
	m.declare(t, "raw", smallest)
	begin("vol-raw.000001", purposeCreate, "raw")
	make("vol-raw.000001")
	m.declare(t, "formatted", smallest)
	begin("vol-formatted.000001", purposeCreate, "formatted")
	make("vol-formatted.000001")
	if err := ext4.Format(ctx, lvm.Device("vol-formatted.000001")); err != nil {
		t.Fatal(err)
	}
	begin("vol-gone.000001", purposeRemove, "gone") // half-way through a removal
	make("vol-gone.000001")
	begin("vol-closed.000001", purposeRemove, "closed") // the kernel doesn't have it
	make("vol-closed.000001")
	if err := lvm.SetActive(ctx, "vol-closed.000001", false); err != nil {
		t.Fatal(err)
	}
	begin("vol-import.000001", "import", "import") // mounted by a daemon that was killed
	make("vol-import.000001")
	if err := ext4.Format(ctx, lvm.Device("vol-import.000001")); err != nil {
		t.Fatal(err)
	}
	if err := mountFS(lvm.Device("vol-import.000001"), m.dirOf("vol-import.000001"), false); err != nil {
		t.Fatal(err)
	}
	make("vol-clone.000001") // whole, but nothing was declared of it
	err := m.change(func(c *change) error {
		return errors.Join(c.putVolume("clone", record{LV: "vol-clone.000001", Size: smallest}),
			c.putSnapshot("clone", "s", snapshot{LV: "snap-clone.000001"}))
	})
	if err != nil {
		t.Fatal(err)
	}
	make("vol-unknown.000001") // the store may be an older copy
	make("someone-elses")

	m = start(t, m.opts.Store, folder(t.TempDir()))
	expectThin(t, keep.LV, "vol-unknown.000001", "someone-elses")
	if s := m.known(); len(s.intents) > 0 || len(s.volumes) != 1 || len(s.snapshots) > 0 {
		t.Errorf("kept %+v", s)
	}
	var made []string
	for _, name := range []string{"before", "raw", "formatted"} {
		r := m.step(t, name)
		m.expectPhase(t, name, v1.VolumePhase_VOLUME_PHASE_READY, "")
		expectEmpty(t, m.give(t, blog, mount(name)))
		made = append(made, r.LV)
	}
	expectFile(t, m.give(t, blog, mount("keep"))+"/f", "kept")
	expectThin(t, append(made, keep.LV, "vol-unknown.000001", "someone-elses")...)
}

// The daemon is killed while workloads run: what is mounted stays, and who has it.
func TestDaemonKilled(t *testing.T) {
	m := machine(t, folder(t.TempDir()))
	m.volume(t, "a")
	m.volume(t, "b")
	a := m.give(t, blog, mount("a"))
	m.give(t, Claimant{Workload: "gone"}, mount("b"))
	f, err := os.Create(a + "/open") // as the workload does
	if err != nil {
		t.Fatal(err)
	}
	m.run(t, "blog") // the other one is declared no more
	m = start(t, m.opts.Store, folder(t.TempDir()))
	m.waits(t, shop, "a", `which workload "blog" holds`)
	if got := m.Holders("b"); got != nil {
		t.Errorf("held by %q", got)
	}
	if _, mounted, err := mountedAt(m.dirOf("b")); mounted || err != nil {
		t.Errorf("b is mounted still: %v", err)
	}
	if again := m.give(t, blog, mount("a")); again != a {
		t.Errorf("mounted at %q, before at %q", again, a)
	}
	if all, err := mountings(m.dirOf("a")); err != nil || len(all) != 1 {
		t.Errorf("mounted %v, %v", all, err)
	}
	if _, err := f.WriteString("goes on"); err != nil {
		t.Error(err)
	}
	if err := m.Release(t.Context(), "blog", nil); err == nil {
		t.Error("released although a program has it open")
	}
	if got := m.Holders("a"); !slices.Equal(got, []string{"blog"}) {
		t.Errorf("held by %q", got)
	}
	f.Close()
	m.take(t, blog)
	expectFile(t, m.give(t, blog, mount("a"))+"/open", "goes on")
}

// run declares workloads, so that their claims are kept.
func (m *managed) run(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := m.opts.Store.Apply(t.Context(), []*v1.Object{workloadObject("Container", name)}, false, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// The first mount takes over what the image has, once.
func TestFill(t *testing.T) {
	img := t.TempDir()
	if err := errors.Join(os.MkdirAll(img+"/srv/a/sub", 0o755), os.Symlink("srv/a", img+"/a"), os.WriteFile(img+"/file", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	put(t, img+"/srv/a/f", "of the image")
	if err := errors.Join(os.Chown(img+"/srv/a/f", 1000, 1001), os.Chown(img+"/srv/a", 1000, 1000), os.Chmod(img+"/srv/a", 0o750)); err != nil {
		t.Fatal(err)
	}
	m := machine(t, folder(img))
	for _, name := range []string{"a", "b", "c", "d"} {
		m.volume(t, name)
	}
	dir := m.give(t, blog, mount("a"))
	expectFile(t, dir+"/f", "of the image")
	var st, file unix.Stat_t
	if err := errors.Join(unix.Stat(dir, &st), unix.Stat(dir+"/f", &file)); err != nil {
		t.Fatal(err)
	}
	if st.Uid != 1000 || st.Gid != 1000 || st.Mode&0o7777 != 0o750 || file.Uid != 1000 || file.Gid != 1001 {
		t.Errorf("folder %d:%d %o, file %d:%d", st.Uid, st.Gid, st.Mode, file.Uid, file.Gid)
	}
	m.take(t, blog)
	put(t, img+"/srv/a/later", "of another image")
	if err := os.Remove(m.give(t, blog, mount("a")) + "/f"); err != nil {
		t.Error(err)
	}
	m.take(t, blog)
	dir = m.give(t, blog, mount("a"))
	for _, name := range []string{"f", "later"} {
		if _, err := os.Stat(dir + "/" + name); err == nil {
			t.Errorf("%s was copied later", name)
		}
	}
	// Unwanted.
	off := false
	expectEmpty(t, m.give(t, blog, &v1.Mount{Volume: "b", Path: "/a", CopyImageContent: &off}))
	// The second path has content, the first has none.
	expectFile(t, m.give(t, blog, &v1.Mount{Volume: "c", Path: "/none"}, &v1.Mount{Volume: "c", Path: "/srv/a/"})+"/f", "of the image")
	// A file is no folder, and nothing is decided by such a try.
	_, err := m.Mount(t.Context(), blog, []*v1.Mount{{Volume: "d", Path: "/file"}}, image.Image{})
	if err == nil || !strings.Contains(err.Error(), `the image has a file at "/file"`) {
		t.Error(err)
	}
	expectFile(t, m.give(t, blog, &v1.Mount{Volume: "d", Path: "/a"})+"/f", "of the image")
}

// broken fails while it is copied.
type broken struct{ folder }

func (b broken) View(ctx context.Context, img image.Image, look func(string) error) error {
	return errors.Join(b.folder.View(ctx, img, look), errors.New("the registry's disk is gone"))
}

// A first mount that is cut, or fails, is made anew.
func TestFillInterrupted(t *testing.T) {
	img := t.TempDir()
	if err := os.Mkdir(img+"/a", 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, img+"/a/f", "whole")
	m := machine(t, broken{folder(img)})
	r := m.volume(t, "a")
	if _, err := m.Mount(t.Context(), blog, []*v1.Mount{mount("a")}, image.Image{}); err == nil || !strings.Contains(err.Error(), "registry's disk") {
		t.Fatal(err)
	}
	m.take(t, blog)
	// Cut in the middle: a draft with half of it.
	dir := m.dirOf("cut.1")
	if err := mountFS(lvm.Device(r.LV), dir, false); err != nil {
		t.Fatal(err)
	}
	if entries, _ := filepath.Glob(dir + "/data*"); entries != nil {
		t.Errorf("the failure left %q", entries)
	}
	if err := os.MkdirAll(dir+"/data.new/stray", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unmountFS(dir); err != nil {
		t.Fatal(err)
	}
	m = start(t, m.opts.Store, folder(img))
	got := m.give(t, blog, mount("a"))
	expectFile(t, got+"/f", "whole")
	if entries, err := os.ReadDir(got); err != nil || len(entries) != 1 {
		t.Errorf("found %v, %v", entries, err)
	}
	if _, err := os.Stat(filepath.Dir(got) + "/data.new"); err == nil {
		t.Error("the draft is left")
	}
	if r, _ := m.record("a"); r.Fresh {
		t.Error("it counts as fresh still")
	}
}

// An image that does not fit is refused with what to do, and leaves nothing.
func TestFillTooLarge(t *testing.T) {
	img := t.TempDir()
	if err := errors.Join(os.Mkdir(img+"/a", 0o755), os.WriteFile(img+"/a/f", make([]byte, 40*mib), 0o644)); err != nil {
		t.Fatal(err)
	}
	m := machine(t, folder(img))
	m.volume(t, "a")
	_, err := m.Mount(t.Context(), blog, []*v1.Mount{mount("a")}, image.Image{})
	if err == nil || !strings.Contains(err.Error(), "make it larger") {
		t.Error(err)
	}
	m.declare(t, "a", 128*mib)
	m.step(t, "a")
	if st, err := os.Stat(m.give(t, blog, mount("a")) + "/f"); err != nil || st.Size() != 40*mib {
		t.Error(st, err)
	}
}

// A microVM is given the device, ready, and nothing of it is mounted here.
func TestMicroVM(t *testing.T) {
	img := t.TempDir()
	if err := os.Mkdir(img+"/a", 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, img+"/a/f", "of the image")
	m := machine(t, folder(img))
	r := m.volume(t, "a")
	all, err := m.Mount(t.Context(), shop, []*v1.Mount{{Volume: "a", Path: "/a", ReadOnly: true}}, image.Image{})
	want := []Mounted{{Volume: "a", Source: lvm.Device(r.LV), Folder: "data", Path: "/a", ReadOnly: true}}
	if diff := cmp.Diff(want, all); err != nil || diff != "" {
		t.Fatal(err, diff)
	}
	if all, err := mountings(m.dir); err != nil || len(all) > 0 {
		t.Errorf("mounted here: %v, %v", all, err)
	}
	if s, err := ext4.ReadSuper(all[0].Source); err != nil || s.NeedsRecovery || s.Errors {
		t.Errorf("handed over as %+v, %v", s, err)
	}
	// As QEMU has it; the kernel keeps everybody else off.
	f, err := os.OpenFile(lvm.Device(r.LV), os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	m.waits(t, blog, "a", `which workload "shop" holds`)
	m.take(t, shop)
	m.freed = nil
	m.waits(t, blog, "a", "has not let go of yet") // QEMU has not ended yet
	if again, err := m.reconcile(t.Context(), "a"); err != nil || again <= 0 {
		t.Errorf("looks again in %v, %v", again, err)
	}
	f.Close()
	m.step(t, "a")
	if !m.freedOnce("a") {
		t.Error("nobody was told that the kernel let go of it")
	}
	// The same bytes in a container.
	expectFile(t, m.give(t, blog, mount("a"))+"/f", "of the image")
	// From the container's hands to a VM: unmounted on the way.
	m.give(t, Claimant{Workload: "blog", VM: true}, mount("a"))
	if all, err := mountings(m.dir); err != nil || len(all) > 0 {
		t.Errorf("mounted here: %v, %v", all, err)
	}
}

// Damage holds a workload, and nothing ever formats.
func TestDamaged(t *testing.T) {
	m := machine(t, folder(t.TempDir()))
	r := m.volume(t, "a")
	put(t, m.give(t, blog, mount("a"))+"/f", "mine")
	m.take(t, blog)
	good := overwrite(t, r.LV, nil)
	zeros := make([]byte, len(good))
	overwrite(t, r.LV, zeros)
	for _, c := range []Claimant{blog, {Workload: "blog", VM: true}} {
		m.waits(t, c, "a", `waits for volume "a", which is damaged: `)
		m.waits(t, c, "a", "restore a snapshot of it (capsulectl volume snapshots a;")
	}
	m.step(t, "a")
	m.expectPhase(t, "a", v1.VolumePhase_VOLUME_PHASE_FAILED, "damaged: ")
	if warnings, err := m.admit(t, workloadObject("Container", "blog", mount("a"))); err != nil || len(warnings["blog"]) != 1 {
		t.Errorf("warned of %q, %v", warnings, err)
	}
	m = start(t, m.opts.Store, folder(t.TempDir())) // nor does the next start repair by guessing
	m.step(t, "a")
	m.waits(t, blog, "a", "which is damaged")
	if now := overwrite(t, r.LV, good); !bytes.Equal(now, zeros) {
		t.Error("something was written to the damaged volume")
	}
	expectFile(t, m.give(t, blog, mount("a"))+"/f", "mine")
	m.step(t, "a")
	m.expectPhase(t, "a", v1.VolumePhase_VOLUME_PHASE_IN_USE, "")
}

// overwrite puts b at the head of a device and returns what was there; nil only
// reads.
func overwrite(t *testing.T, lv string, b []byte) []byte {
	t.Helper()
	f, err := os.OpenFile(lvm.Device(lv), os.O_RDWR|unix.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before := make([]byte, 64<<10)
	if _, err := io.ReadFull(f, before); err != nil {
		t.Fatal(err)
	}
	if b != nil {
		if _, err := f.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
	}
	return before
}

// What e2fsck repairs without risk is repaired before the mount.
func TestUnclean(t *testing.T) {
	m := machine(t, folder(t.TempDir()))
	r := m.volume(t, "a")
	dir := m.give(t, blog, mount("a"))
	put(t, dir+"/f", "mine")
	if err := syncFS(dir); err != nil {
		t.Fatal(err)
	}
	image := copyDevice(t, r.LV) // as power was cut
	m.take(t, blog)
	f, err := os.OpenFile(lvm.Device(r.LV), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(image); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	if s, err := ext4.ReadSuper(lvm.Device(r.LV)); err != nil || !s.NeedsRecovery {
		t.Fatalf("not as after a cut: %+v, %v", s, err)
	}
	device := m.give(t, Claimant{Workload: "blog", VM: true}, mount("a"))
	if s, err := ext4.ReadSuper(device); err != nil || s.NeedsRecovery {
		t.Errorf("handed over with a journal to replay: %+v, %v", s, err)
	}
	expectFile(t, m.give(t, blog, mount("a"))+"/f", "mine")
}

func copyDevice(t *testing.T, lv string) []byte {
	t.Helper()
	b, err := os.ReadFile(lvm.Device(lv))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// An error makes a volume read-only: its workload is stopped, the volume checked.
func TestReadOnly(t *testing.T) {
	m := machine(t, folder(t.TempDir()))
	r := m.volume(t, "a")
	dir := m.give(t, blog, mount("a"))
	put(t, dir+"/f", "mine")
	if err := syncFS(dir); err != nil {
		t.Fatal(err)
	}
	device, err := filepath.EvalSymlinks(lvm.Device(r.LV))
	if err != nil {
		t.Fatal(err)
	}
	number, err := numberOf(device)
	if err != nil {
		t.Fatal(err)
	}
	link, err := os.Readlink("/sys/dev/block/" + number)
	if err != nil {
		t.Fatal(err)
	}
	put(t, "/sys/fs/ext4/"+filepath.Base(link)+"/trigger_fs_error", "of a test")
	if err := os.WriteFile(dir+"/g", nil, 0o644); !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EIO) {
		t.Fatalf("still writable: %v", err)
	}
	for { // the kernel notes it soon
		broken, err := m.brokenHere("a", r)
		if err != nil {
			t.Fatal(err)
		}
		if broken {
			break
		}
		if err := await.Pause(t.Context(), 100*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	m.step(t, "a")
	m.expectPhase(t, "a", v1.VolumePhase_VOLUME_PHASE_FAILED, "became read-only after an error")
	if want := []string{`blog: volume "a" became read-only after an error; it is checked before the next start`}; !cmp.Equal(want, m.held) {
		t.Errorf("held %q", m.held)
	}
	dir = m.give(t, blog, mount("a")) // it keeps its claim while it is stopped
	put(t, dir+"/g", "again")
	expectFile(t, dir+"/f", "mine")
	m.step(t, "a")
	m.expectPhase(t, "a", v1.VolumePhase_VOLUME_PHASE_IN_USE, "")
	if s, err := ext4.ReadSuper(lvm.Device(r.LV)); err != nil || s.Errors {
		t.Errorf("the error is still noted: %+v, %v", s, err)
	}
}

// A logical volume that is gone is never made again.
func TestLost(t *testing.T) {
	m := machine(t, folder(t.TempDir()))
	r := m.volume(t, "a")
	if err := lvm.RemoveThin(t.Context(), r.LV); err != nil {
		t.Fatal(err)
	}
	m = start(t, m.opts.Store, folder(t.TempDir()))
	m.step(t, "a")
	m.expectPhase(t, "a", v1.VolumePhase_VOLUME_PHASE_FAILED, "its logical volume "+r.LV+" is missing")
	m.waits(t, blog, "a", "which is lost: its logical volume")
	expectThin(t)
	m.take(t, blog)
	if err := m.opts.Store.Delete(manifest.KindVolume, "a"); err != nil {
		t.Fatal(err)
	}
	m.step(t, "a")
	if _, ok := m.record("a"); ok {
		t.Error("it can't be deleted")
	}
}

// Growth while a workload writes.
func TestGrow(t *testing.T) {
	m := machine(t, folder(t.TempDir()))
	m.volume(t, "a")
	dir := m.give(t, blog, mount("a"))
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := os.WriteFile(fmt.Sprintf("%s/%d", dir, i%20), make([]byte, 100<<10), 0o644); err != nil {
				t.Error(err)
				return
			}
		}
	})
	before := room(t, dir)
	m.declare(t, "a", 96*mib)
	r := m.step(t, "a")
	close(stop)
	writer.Wait()
	if after := room(t, dir); r.Size != 96*mib || after < before+56*mib {
		t.Errorf("size %d, room %d, before %d", r.Size, after, before)
	}
	m.step(t, "a")
	if s := m.status(t, "a"); s.Size != 96*mib || s.Phase != v1.VolumePhase_VOLUME_PHASE_IN_USE {
		t.Errorf("status %v", s)
	}
	m.take(t, blog)
	// Not mounted, then given to a microVM: it is as large.
	m.declare(t, "a", 128*mib)
	m.step(t, "a")
	device := m.give(t, shop, mount("a"))
	if s, err := ext4.ReadSuper(device); err != nil || s.SizeBytes != 128*mib {
		t.Errorf("handed over as %+v, %v", s, err)
	}
	// While a microVM has it, that is told.
	m.declare(t, "a", 160*mib)
	m.step(t, "a")
	if !slices.Contains(m.grown, "shop a") {
		t.Errorf("told %q", m.grown)
	}
	// Cut between the logical volume and what is kept of it.
	if err := lvm.ExtendThin(t.Context(), r.LV, 192*mib); err != nil {
		t.Fatal(err)
	}
	m.take(t, shop)
	m.declare(t, "a", 192*mib)
	if r := m.step(t, "a"); r.Size != 192*mib {
		t.Errorf("size %d", r.Size)
	}
}

// room is what a file system has in all.
func room(t *testing.T, dir string) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Blocks) * st.Bsize
}

// Sizes against the pool are looked at within the apply.
func TestAdmitVolumes(t *testing.T) {
	m := machine(t, folder(t.TempDir()))
	sized := func(name string, size int64) *v1.Object {
		return &v1.Object{
			Meta: &v1.Meta{Kind: manifest.KindVolume, Name: name},
			Kind: &v1.Object_Volume{Volume: &v1.Volume{Spec: &v1.VolumeSpec{Size: size}}},
		}
	}
	if warnings, err := m.admit(t, sized("a", 5<<30), sized("b", 5<<30)); err != nil || len(warnings) > 0 {
		t.Errorf("as much as may be promised: %q, %v", warnings, err)
	}
	if _, err := m.admit(t, sized("c", smallest)); err == nil || !strings.Contains(err.Error(), `volume "c"`) {
		t.Errorf("more than may be promised: %v", err)
	}
	if _, err := m.admit(t, sized("a", 6<<30)); err == nil {
		t.Error("growth beyond what may be promised")
	}
	if _, err := m.admit(t, sized("a", 5<<30)); err != nil {
		t.Errorf("the same again: %v", err)
	}
}

// The whole manager at work, by events alone.
func TestRun(t *testing.T) {
	m := machine(t, folder(t.TempDir()))
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() { _ = m.Run(ctx) })
	defer run.Wait()
	defer cancel()
	changes, err := m.opts.Store.Watch(ctx, manifest.KindVolume, "")
	if err != nil {
		t.Fatal(err)
	}
	wait := func(what string, done func(store.Change) bool) {
		t.Helper()
		limit := time.After(10 * time.Minute) // for several commands of lvm
		for {
			select {
			case c, ok := <-changes:
				if !ok {
					t.Fatal("the watch ended before " + what)
				}
				if c.Object != nil && done(c) {
					return
				}
			case <-limit:
				t.Fatal("no event of " + what)
			}
		}
	}
	phase := func(name string, phase v1.VolumePhase) func(store.Change) bool {
		return func(c store.Change) bool {
			return c.Object.Meta.Name == name && c.Object.GetVolume().GetStatus().GetPhase() == phase
		}
	}
	for _, name := range []string{"a", "b", "c"} {
		m.declare(t, name, smallest)
	}
	ready := map[string]bool{}
	wait("three volumes made", func(c store.Change) bool {
		if c.Object.GetVolume().GetStatus().GetPhase() == v1.VolumePhase_VOLUME_PHASE_READY {
			ready[c.Object.Meta.Name] = true
		}
		return len(ready) == 3
	})
	m.give(t, blog, mount("b"))
	m.Wake("b")
	wait("use", phase("b", v1.VolumePhase_VOLUME_PHASE_IN_USE))
	if err := m.opts.Store.Delete(manifest.KindVolume, "b"); err != nil {
		t.Fatal(err)
	}
	wait("a removal that waits", phase("b", v1.VolumePhase_VOLUME_PHASE_DELETING))
	m.take(t, blog)
	wait("the end of b", func(c store.Change) bool { return c.Deleted && c.Object.Meta.Name == "b" })
}

// A first mount takes nothing of a pool that is nearly full: its workload waits.
func TestFillCrowded(t *testing.T) {
	img := t.TempDir()
	if err := os.Mkdir(img+"/a", 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, img+"/a/f", "of the image")
	m := machine(t, folder(img))
	m.volume(t, "a")
	m.declare(t, "big", poolSize)
	m.step(t, "big")
	off := false
	dir := m.give(t, Claimant{Workload: "hog"}, &v1.Mount{Volume: "big", Path: "/b", CopyImageContent: &off})
	f, err := os.Create(dir + "/f")
	if err != nil {
		t.Fatal(err)
	}
	if err := fillPool(f); err != nil {
		t.Fatal(err)
	}
	m.waits(t, blog, "a", `waits for volume "a", which its first mount is to fill: no space for that: the pool is`)
	if err := errors.Join(f.Truncate(0), f.Close()); err != nil {
		t.Fatal(err)
	}
	m.untilLevel(t, dir, levelOK)
	expectFile(t, m.give(t, blog, mount("a"))+"/f", "of the image")
}

// fillPool writes until the pool takes nothing new.
func fillPool(f *os.File) error {
	b := bytes.Repeat([]byte{1}, 16*mib)
	for {
		p, err := lvm.ReadPool()
		if err != nil || DefaultLimits.tooFull(p) != nil {
			return err
		}
		if _, err := f.Write(b); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
	}
}
