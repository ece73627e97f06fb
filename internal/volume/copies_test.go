package volume

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/await"
	"capsule/internal/ext4"
	"capsule/internal/lvm"
	"capsule/internal/lvm/lvmtest"
)

// These run in a machine of the image's kernel (test/vmexec), with a volume group.

// guests are workloads whose freezing is looked at.
type guests struct {
	*managed
	frozen []string
	thawed int
	err    error
	during func() // while frozen
}

func (g *guests) Freeze(_ context.Context, workload string, _ time.Duration) (func(), error) {
	if g.err != nil {
		return nil, g.err
	}
	g.frozen = append(g.frozen, workload)
	if g.during != nil {
		g.during()
	}
	return func() { g.thawed++ }, nil
}

func (m *managed) snap(t *testing.T, volume, name string) *v1.Snapshot {
	t.Helper()
	s, err := m.Snapshot(t.Context(), volume, name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (m *managed) snapNames(t *testing.T, volume string) []string {
	t.Helper()
	all, err := m.Snapshots(volume)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range all {
		names = append(names, s.Name)
	}
	return names
}

// clean expects that nothing but what is meant is left.
func (m *managed) expectLVs(t *testing.T) {
	t.Helper()
	s := m.known()
	var want []string
	for _, r := range s.volumes {
		want = append(want, r.LV)
	}
	for _, snaps := range s.snapshots {
		for _, snap := range snaps {
			want = append(want, snap.LV)
		}
	}
	expectThin(t, want...)
	if len(s.intents) > 0 || len(m.underway) > 0 {
		t.Errorf("intents %v, under way %v", s.intents, m.underway)
	}
}

func TestSnapshotAndRestore(t *testing.T) {
	m := machine(t, folder(t.TempDir()))
	m.volume(t, "a")
	dir := m.give(t, blog, mount("a"))
	put(t, dir+"/f", "one")
	before := time.Now()
	s := m.snap(t, "a", "first")
	if at := s.CreatedAt.AsTime(); s.Size != smallest || s.Used <= 0 || s.Scheduled || at.Before(before) || at.After(time.Now()) {
		t.Errorf("snapshot %v", s)
	}
	put(t, dir+"/f", "two")
	if _, err := m.Snapshot(t.Context(), "a", "first"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("again: %v", err)
	}
	if _, err := m.Restore(t.Context(), "a", "first"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "capsulectl workload stop blog") {
		t.Errorf("restore in use: %v", err)
	}
	for _, err := range []error{
		errOf(m.Snapshot(t.Context(), "none", "s")), errOf(m.Restore(t.Context(), "a", "none")), m.DeleteSnapshot(t.Context(), "a", "none"),
		errOf(m.Clone(t.Context(), "a", "none", "b")), errOf(m.Snapshots("none")),
	} {
		if !errdefs.IsNotFound(err) {
			t.Errorf("what does not exist: %v", err)
		}
	}
	if err := errOf(m.Snapshot(t.Context(), "a", "../x")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad name: %v", err)
	}
	m.take(t, blog)
	m.declareSized(t, "a", 64*mib) // grown since the snapshot
	kept, err := m.Restore(t.Context(), "a", "first")
	if err != nil || !strings.HasPrefix(kept.Name, "before-restore-20") {
		t.Fatal(kept, err)
	}
	m.expectLVs(t)
	dir = m.give(t, blog, mount("a"))
	expectFile(t, dir+"/f", "one")
	if got := room(t, dir); got < 50*mib {
		t.Errorf("restored to %d bytes", got)
	}
	put(t, dir+"/f", "three")
	m.take(t, blog)
	if _, err := m.Restore(t.Context(), "a", kept.Name); err != nil {
		t.Fatal(err)
	}
	expectFile(t, m.give(t, blog, mount("a"))+"/f", "two")
	m.take(t, blog)
	names := m.snapNames(t, "a")
	if len(names) != 3 || names[0] != "first" || names[1] != kept.Name {
		t.Errorf("snapshots %q", names)
	}
	m.step(t, "a")
	if st := m.status(t, "a"); st.Snapshots != 3 || st.LastSnapshotAt == nil {
		t.Errorf("status %v", st)
	}
	for _, name := range names {
		if err := m.DeleteSnapshot(t.Context(), "a", name); err != nil {
			t.Error(err)
		}
	}
	m.expectLVs(t)
	expectFile(t, m.give(t, blog, mount("a"))+"/f", "two")
	// What snapshots there are goes with the volume.
	m.snap(t, "a", "")
	m.take(t, blog)
	if err := m.opts.Store.Delete(manifest.KindVolume, "a"); err != nil {
		t.Fatal(err)
	}
	m.step(t, "a")
	expectThin(t)
}

func errOf[T any](_ T, err error) error { return err }

func (m *managed) declareSized(t *testing.T, name string, size int64) {
	t.Helper()
	m.declare(t, name, size)
	m.step(t, name)
}

// A microVM that has the volume holds still for it, and nothing is kept of what
// was taken while it could write.
func TestSnapshotOfGuest(t *testing.T) {
	m := machine(t, folder(t.TempDir()))
	g := &guests{managed: m}
	m.SetGuests(g)
	m.volume(t, "a")
	m.give(t, shop, mount("a"))
	m.snap(t, "a", "s")
	if !slices.Equal(g.frozen, []string{"shop"}) || g.thawed != 1 {
		t.Errorf("frozen %q, thawed %d", g.frozen, g.thawed)
	}
	if _, err := m.Clone(t.Context(), "a", "", "b"); err != nil || len(g.frozen) != 2 || g.thawed != 2 {
		t.Errorf("clone: frozen %q, thawed %d, %v", g.frozen, g.thawed, err)
	}
	if _, err := m.Clone(t.Context(), "a", "s", "c"); err != nil || len(g.frozen) != 2 {
		t.Errorf("clone of a snapshot: frozen %q, %v", g.frozen, err)
	}
	g.err = errors.New("the guest does not answer")
	if _, err := m.Snapshot(t.Context(), "a", "t"); !errors.Is(err, g.err) || !strings.Contains(err.Error(), `"shop"`) {
		t.Errorf("error %v", err)
	}
	if _, err := m.Export(t.Context(), "a", "", func(*v1.ExportStart) error { return nil }, io.Discard); !errors.Is(err, g.err) {
		t.Errorf("export: %v", err)
	}
	m.expectLVs(t)
}

func TestClone(t *testing.T) {
	m := machine(t, folder(t.TempDir()))
	m.volume(t, "a")
	if _, err := m.Clone(t.Context(), "a", "", "empty"); err != nil {
		t.Fatal(err)
	}
	dir := m.give(t, blog, mount("a"))
	put(t, dir+"/f", "one")
	m.snap(t, "a", "s")
	put(t, dir+"/f", "two")
	obj, err := m.Clone(t.Context(), "a", "", "now")
	if err != nil || obj.GetMeta().GetName() != "now" || obj.GetVolume().GetSpec().GetSize() != smallest {
		t.Fatal(obj, err)
	}
	if _, err := m.Clone(t.Context(), "a", "s", "then"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "now"} {
		if _, err := m.Clone(t.Context(), "a", "", name); !errdefs.IsAlreadyExists(err) {
			t.Errorf("over %q: %v", name, err)
		}
	}
	if err := errOf(m.Clone(t.Context(), "a", "", "../b")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad name: %v", err)
	}
	m.expectLVs(t)
	for _, name := range []string{"empty", "now", "then"} {
		if r := m.step(t, name); r.UID == "" {
			t.Errorf("%s has no owner", name)
		}
		m.expectPhase(t, name, v1.VolumePhase_VOLUME_PHASE_READY, "")
	}
	// All three beside the origin, though they have the same file system.
	other := func(name, text string) {
		t.Helper()
		got := m.give(t, Claimant{Workload: "of-" + name}, mount(name))
		if text == "" {
			expectEmpty(t, got)
			return
		}
		expectFile(t, got+"/f", text)
		put(t, got+"/f", "own")
	}
	other("empty", "")
	other("now", "two")
	other("then", "one")
	expectFile(t, dir+"/f", "two")
	m = start(t, m.opts.Store, folder(t.TempDir())) // all are acknowledged
	if names := m.keys(t.Context()); len(names) != 4 {
		t.Errorf("kept %q", names)
	}
}

// someTree is content of all kinds in a mounted volume.
func someTree(t *testing.T, dir string) {
	t.Helper()
	put(t, dir+"/f", "photo")
	err := errors.Join(
		os.Mkdir(dir+"/sub", 0o2750), os.Symlink("../f", dir+"/sub/ln"), os.Link(dir+"/f", dir+"/sub/hard"),
		unix.Mknod(dir+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), unix.Mkfifo(dir+"/fifo", 0o600),
		unix.Setxattr(dir+"/f", "user.tag", []byte("x"), 0), unix.Setxattr(dir+"/f", "trusted.t", []byte("y"), 0),
		os.WriteFile(dir+"/zeros", make([]byte, 8*mib), 0o600), os.Chown(dir, 1000, 1001), os.Chmod(dir, 0o710),
		os.WriteFile(dir+"/noise", noise(4*mib), 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
}

func noise(n int) []byte {
	b := make([]byte, n)
	x := uint32(7)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

func (m *managed) export(t *testing.T, volume, snapshot string) ([]byte, *v1.ArchiveEnd) {
	t.Helper()
	var b bytes.Buffer
	end, err := m.Export(t.Context(), volume, snapshot, func(s *v1.ExportStart) error {
		if s.Size != smallest || s.Used <= 0 || s.Used > s.Size {
			t.Errorf("start %v", s)
		}
		return nil
	}, &b)
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), end
}

func (m *managed) take2(t *testing.T, name string, size int64, b []byte, end *v1.ArchiveEnd) error {
	t.Helper()
	_, _, err := m.Import(t.Context(), &v1.ImportTarget{Name: name, Size: size}, bytes.NewReader(b), func() (*v1.ArchiveEnd, error) { return end, nil })
	return err
}

func TestExportImport(t *testing.T) {
	m := machine(t, folder(t.TempDir()))
	m.volume(t, "a")
	empty, emptyEnd := m.export(t, "a", "")
	dir := m.give(t, blog, mount("a"))
	someTree(t, dir)
	m.snap(t, "a", "s")
	put(t, dir+"/f", "later")
	b, end := m.export(t, "a", "") // while it is mounted
	old, oldEnd := m.export(t, "a", "s")
	m.expectLVs(t)
	if all, err := mountings(m.dir); err != nil || len(all) != 1 {
		t.Errorf("mounted %v, %v", all, err)
	}
	for _, tc := range []struct {
		name string
		size int64
		b    []byte
		end  *v1.ArchiveEnd
		text string
	}{{"now", 0, b, end, "later"}, {"then", 64 * mib, old, oldEnd, "photo"}, {"empty", 0, empty, emptyEnd, ""}} {
		if err := m.take2(t, tc.name, tc.size, tc.b, tc.end); err != nil {
			t.Fatal(err)
		}
		r := m.step(t, tc.name)
		if want := max(tc.size, smallest); r.Size != want || r.UID == "" || r.Fresh {
			t.Errorf("record %+v", r)
		}
		got := m.give(t, Claimant{Workload: "of-" + tc.name}, mount(tc.name))
		if tc.text == "" {
			expectEmpty(t, got)
			continue
		}
		expectFile(t, got+"/f", tc.text)
		expectFile(t, got+"/sub/hard", tc.text)
		expectFile(t, got+"/noise", string(noise(4*mib)))
		var st, null unix.Stat_t
		tag := make([]byte, 8)
		n, err := unix.Getxattr(got+"/f", "trusted.t", tag)
		if err := errors.Join(err, unix.Stat(got, &st), unix.Stat(got+"/null", &null)); err != nil {
			t.Fatal(err)
		}
		if string(tag[:n]) != "y" || st.Uid != 1000 || st.Gid != 1001 || st.Mode&0o7777 != 0o710 || null.Rdev != unix.Mkdev(1, 3) {
			t.Errorf("attribute %q, folder %+v, device %+v", tag[:n], st, null)
		}
		if err := unix.Stat(got+"/zeros", &st); err != nil || st.Size != 8*mib || st.Blocks*512 > mib {
			t.Errorf("file of zeros: %+v, %v", st, err)
		}
	}
	if err := m.take2(t, "now", 0, b, end); !errdefs.IsAlreadyExists(err) {
		t.Errorf("over a volume: %v", err)
	}
	m.expectLVs(t)
}

// Whatever goes wrong, nothing is left of an import, and it says what.
func TestImportFails(t *testing.T) {
	m := machine(t, folder(t.TempDir()))
	m.volume(t, "a")
	someTree(t, m.give(t, blog, mount("a")))
	b, end := m.export(t, "a", "")
	gone := errors.New("the other end hung up")
	flipped := bytes.Clone(b)
	flipped[len(b)/2] ^= 4
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	ok := func() (*v1.ArchiveEnd, error) { return end, nil }
	slow := map[string]bool{"cut at its last byte": true, "changed": true, "connection lost at the end": true}
	for _, tc := range []struct {
		name   string
		ctx    context.Context
		target *v1.ImportTarget
		r      io.Reader
		end    func() (*v1.ArchiveEnd, error)
		is     func(error) bool
		says   string
	}{
		{"cut in the middle", t.Context(), &v1.ImportTarget{Name: "b"}, bytes.NewReader(b[:len(b)/2]), ok, errdefs.IsInvalidArgument, "damaged or cut short"},
		{"cut at its last byte", t.Context(), &v1.ImportTarget{Name: "b"}, bytes.NewReader(b[:len(b)-1]), ok, errdefs.IsInvalidArgument, "damaged or cut short"},
		{"changed", t.Context(), &v1.ImportTarget{Name: "b"}, bytes.NewReader(flipped), ok, nil, ""},
		{"connection lost", t.Context(), &v1.ImportTarget{Name: "b"}, io.MultiReader(bytes.NewReader(b[:len(b)/2]), &failing{gone}), ok,
			func(err error) bool { return errors.Is(err, gone) }, "did not arrive whole"},
		{"connection lost at the end", t.Context(), &v1.ImportTarget{Name: "b"}, bytes.NewReader(b), func() (*v1.ArchiveEnd, error) { return nil, gone },
			func(err error) bool { return errors.Is(err, gone) }, "did not arrive whole"},
		{"other checksum", t.Context(), &v1.ImportTarget{Name: "b"}, bytes.NewReader(b), func() (*v1.ArchiveEnd, error) { return &v1.ArchiveEnd{Bytes: end.Bytes}, nil },
			errdefs.IsDataLoss, "send it again"},
		{"given up", cancelled, &v1.ImportTarget{Name: "b"}, bytes.NewReader(b), ok, func(err error) bool { return errors.Is(err, context.Canceled) }, ""},
		{"no archive", t.Context(), &v1.ImportTarget{Name: "b"}, strings.NewReader("hello"), ok, errdefs.IsInvalidArgument, "damaged"},
		{"too large", t.Context(), &v1.ImportTarget{Name: "b", Size: 32 * mib}, bytes.NewReader(packedNoise(t, 40*mib)), ok, errdefs.IsResourceExhausted, "does not fit in 32.0 MiB"},
		{"no size", t.Context(), &v1.ImportTarget{Name: "b"}, bytes.NewReader(packedNoise(t, 10)), ok, errdefs.IsInvalidArgument, "give the size"},
		{"small", t.Context(), &v1.ImportTarget{Name: "b", Size: 1}, bytes.NewReader(b), ok, errdefs.IsInvalidArgument, "size must be within"},
		{"more than may be promised", t.Context(), &v1.ImportTarget{Name: "b", Size: 1 << 40}, bytes.NewReader(b), ok, errdefs.IsResourceExhausted, "would promise"},
		{"name", t.Context(), &v1.ImportTarget{Name: "../b"}, bytes.NewReader(b), ok, errdefs.IsInvalidArgument, "name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if testing.Short() && slow[tc.name] {
				t.Skip("SKIPPED, TestArchiveDamaged looks at archives like it, without a volume")
			}
			_, _, err := m.Import(tc.ctx, tc.target, tc.r, tc.end)
			if err == nil || tc.is != nil && !tc.is(err) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error %v, want %q", err, tc.says)
			}
			m.expectLVs(t)
			if _, err := m.opts.Store.Get(manifest.KindVolume, "b"); !errdefs.IsNotFound(err) {
				t.Errorf("there is an object: %v", err)
			}
		})
	}
	if all, err := mountings(m.dir); err != nil || len(all) != 1 {
		t.Errorf("mounted %v, %v", all, err)
	}
	if err := m.take2(t, "b", 0, b, end); err != nil { // the same archive is good
		t.Error(err)
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

// A volume that somebody declares while its import runs is theirs.
func TestImportOvertaken(t *testing.T) {
	m := machine(t, folder(t.TempDir()))
	m.volume(t, "a")
	b, end := m.export(t, "a", "")
	_, _, err := m.Import(t.Context(), &v1.ImportTarget{Name: "b"}, bytes.NewReader(b), func() (*v1.ArchiveEnd, error) {
		if err := m.take2(t, "b", 0, b, end); !errdefs.IsAlreadyExists(err) {
			t.Errorf("two imports of one name: %v", err)
		}
		m.volume(t, "b")
		return end, nil
	})
	if !errdefs.IsAlreadyExists(err) {
		t.Errorf("error %v", err)
	}
	m.expectLVs(t)
	if r := m.step(t, "b"); !r.Fresh {
		t.Error("it has the content of the import")
	}
}

// What is being exported stays, and can be read by two.
func TestExportInUse(t *testing.T) {
	m := machine(t, folder(t.TempDir()))
	m.volume(t, "a")
	someTree(t, m.give(t, blog, mount("a")))
	m.snap(t, "a", "s")
	var inner bytes.Buffer
	start := func(*v1.ExportStart) error {
		if err := m.DeleteSnapshot(t.Context(), "a", "s"); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("deleted while it is read: %v", err)
		}
		_, err := m.Export(t.Context(), "a", "s", func(*v1.ExportStart) error { return nil }, &inner)
		return err
	}
	var outer bytes.Buffer
	if _, err := m.Export(t.Context(), "a", "s", start, &outer); err != nil || inner.Len() == 0 || outer.Len() < inner.Len()/2 {
		t.Errorf("%d and %d bytes, %v", inner.Len(), outer.Len(), err)
	}
	// The reader goes away.
	if _, err := m.Export(t.Context(), "a", "", func(*v1.ExportStart) error { return nil }, &cutWriter{left: 1000}); !errors.Is(err, errNoReader) {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := m.Export(ctx, "a", "s", func(*v1.ExportStart) error { cancel(); return nil }, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	m.expectLVs(t)
	if err := m.DeleteSnapshot(t.Context(), "a", "s"); err != nil {
		t.Error(err)
	}
	m.expectLVs(t)
}

// A snapshot of a volume that a power cut left with a journal is read right.
func TestExportUnclean(t *testing.T) {
	m := machine(t, folder(t.TempDir()))
	r := m.volume(t, "a")
	dir := m.give(t, blog, mount("a"))
	put(t, dir+"/f", "mine")
	if err := syncFS(dir); err != nil {
		t.Fatal(err)
	}
	image := copyDevice(t, r.LV)
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
	b, end := m.export(t, "a", "")
	if err := m.take2(t, "b", 0, b, end); err != nil {
		t.Fatal(err)
	}
	expectFile(t, m.give(t, blog, mount("b"))+"/f", "mine")
}

// The daemon is killed at each step of what is done here.
func TestCopiesCut(t *testing.T) {
	m := machine(t, folder(t.TempDir()))
	r := m.volume(t, "a")
	put(t, m.give(t, blog, mount("a"))+"/f", "mine")
	m.snap(t, "a", "s")
	snap, _ := m.snapshot("a", "s")
	if _, _, err := m.exportable(t.Context(), "a", ""); err != nil { // and never done
		t.Fatal(err)
	}
	if _, _, err := m.exportable(t.Context(), "a", "s"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.begin(intent{LV: "snap-a.000001", Purpose: purposeSnapshot, Volume: "a"}), lvm.Snapshot(t.Context(), r.LV, "snap-a.000001"),
		m.begin(intent{LV: "vol-b.000001", Purpose: purposeImport, Volume: "b"}), m.makeEmpty(t.Context(), "b", record{LV: "vol-b.000001", Size: smallest}),
		m.begin(intent{LV: "vol-a.000001", Purpose: purposeRestore, Volume: "a"}), lvm.Clone(t.Context(), snap.LV, "vol-a.000001")); err != nil {
		t.Fatal(err)
	}
	m.run(t, "blog")
	m = start(t, m.opts.Store, folder(t.TempDir()))
	m.expectLVs(t)
	if names := m.snapNames(t, "a"); !slices.Equal(names, []string{"s"}) {
		t.Errorf("snapshots %q", names)
	}
	if all, err := mountings(m.dir); err != nil || len(all) != 1 {
		t.Errorf("mounted %v, %v", all, err)
	}
	expectFile(t, filepath.Join(m.dir, "a", "data", "f"), "mine")
	if err := m.DeleteSnapshot(t.Context(), "a", "s"); err != nil {
		t.Error(err)
	}
}

// scheduled declares a volume with a schedule.
func (m *managed) scheduled(t *testing.T, name string, every time.Duration, keep uint32) {
	t.Helper()
	obj := &v1.Object{Meta: &v1.Meta{Kind: manifest.KindVolume, Name: name}, Kind: &v1.Object_Volume{Volume: &v1.Volume{
		Spec: &v1.VolumeSpec{Size: smallest, Snapshots: &v1.SnapshotSchedule{Every: durationpb.New(every), Keep: keep}},
	}}}
	if _, err := m.opts.Store.Apply(t.Context(), []*v1.Object{obj}, false, nil); err != nil {
		t.Fatal(err)
	}
	m.step(t, name)
}

func (m *managed) lastScheduled(t *testing.T, volume string, at time.Time) {
	t.Helper()
	err := m.change(func(c *change) error {
		r := c.volumes[volume]
		r.Scheduled = at
		return c.putVolume(volume, r)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (m *managed) schedule(t *testing.T, volume string) time.Duration {
	t.Helper()
	again, err := m.keepSchedule(t.Context(), volume)
	if err != nil {
		t.Error(err)
	}
	return again
}

// nearlyHour is an hour without what a busy machine takes for a few commands of lvm.
const nearlyHour = 50 * time.Minute

func TestSchedule(t *testing.T) {
	m := machine(t, folder(t.TempDir()))
	m.scheduled(t, "a", time.Hour, 2)
	if again := m.schedule(t, "a"); again != 0 || len(m.snapNames(t, "a")) > 0 {
		t.Error("a snapshot of nothing") // nobody has mounted it yet
	}
	put(t, m.give(t, blog, mount("a"))+"/f", "one")
	if again := m.schedule(t, "a"); again < nearlyHour || again > time.Hour {
		t.Errorf("looks again in %s", again)
	}
	m.snap(t, "a", "mine")
	var names []string
	for i := range 4 { // off for a week each time
		m.lastScheduled(t, "a", time.Now().Add(-7*24*time.Hour))
		if again := m.schedule(t, "a"); again != time.Hour {
			t.Errorf("looks again in %s", again)
		}
		if again := m.schedule(t, "a"); again < nearlyHour {
			t.Errorf("twice: again in %s", again)
		}
		names = m.snapNames(t, "a")
		if want := 1 + min(i+1, 2); len(names) != want || names[0] != "mine" {
			t.Errorf("after %d: %q", i+1, names)
		}
	}
	// The last was made when the clock was in another year.
	m.lastScheduled(t, "a", time.Now().Add(365*24*time.Hour))
	if again := m.schedule(t, "a"); again != time.Hour {
		t.Errorf("looks again in %s", again)
	}
	if now := m.snapNames(t, "a"); len(now) != 3 || now[1] != names[2] {
		t.Errorf("%q, before %q", now, names)
	}
	m.scheduled(t, "a", time.Hour, 1)
	m.schedule(t, "a")
	if now := m.snapNames(t, "a"); len(now) != 2 || now[0] != "mine" {
		t.Errorf("%q", now)
	}
	// It can't be held: told once.
	m.take(t, blog)
	m.give(t, shop, mount("a"))
	g := &guests{managed: m, err: errors.New("no answer")}
	m.SetGuests(g)
	m.lastScheduled(t, "a", time.Time{}.Add(time.Hour))
	for range 3 {
		if _, err := m.keepSchedule(t.Context(), "a"); !errors.Is(err, g.err) {
			t.Error(err)
		}
	}
	g.err = nil
	m.schedule(t, "a")
	page, err := m.opts.Store.Events(0, 1000, nil)
	if err != nil {
		t.Fatal(err)
	}
	var skipped int
	for _, e := range page.Events {
		if e.Type == "snapshot-skipped" {
			skipped++
		}
	}
	if skipped != 1 {
		t.Errorf("%d events of skipped snapshots", skipped)
	}
	m.expectLVs(t)
}

// The pool fills up: told at 80 %, refused at 90 %, and all is well again when
// files are deleted.
func TestPoolFills(t *testing.T) {
	const size = 256 * mib
	lvmtest.Pool(t, size)
	m := start(t, newStore(t), folder(t.TempDir()))
	m.declareSized(t, "a", 512*mib)
	m.declareSized(t, "b", smallest)
	dir := m.give(t, blog, mount("a"))
	fill := func(percent int64) {
		t.Helper()
		p, err := lvm.ReadPool()
		if err != nil {
			t.Fatal(err)
		}
		put(t, dir+"/fill-"+amount(percent), string(noise(int(p.DataSize*percent/100-p.DataUsed))))
		if err := syncFS(dir); err != nil {
			t.Fatal(err)
		}
		m.lookAtPool(t.Context())
	}
	expect := func(l v1.PoolLevel, event string) {
		t.Helper()
		p, err := m.Pool()
		if err != nil || p.Level != l || p.Size != size || p.Promised != 512*mib+smallest || p.OvercommitMax != 1000 {
			t.Errorf("pool %v, %v; want %v", p, err, l)
		}
		page, err := m.opts.Store.Events(0, 1000, nil)
		if err != nil || len(page.Events) == 0 {
			t.Fatal(err)
		}
		if last := page.Events[len(page.Events)-1]; last.Type != event || last.Kind != "Pool" || !strings.Contains(last.Message, "%") {
			t.Errorf("last event %v, want %s", last, event)
		}
	}
	m.lookAtPool(t.Context())
	fill(84)
	expect(levelWarn, "pool-warn")
	m.snap(t, "b", "s") // still possible
	if _, err := m.Clone(t.Context(), "b", "", "c"); err != nil {
		t.Error(err)
	}
	if err := m.opts.Store.Delete(manifest.KindVolume, "c"); err != nil {
		t.Error(err)
	}
	m.step(t, "c")
	b, end := m.export(t, "b", "")
	fill(92)
	expect(levelCritical, "pool-critical")
	for what, err := range map[string]error{
		"snapshot": errOf(m.Snapshot(t.Context(), "b", "t")), "clone": errOf(m.Clone(t.Context(), "b", "", "d")),
		"restore": errOf(m.Restore(t.Context(), "b", "s")), "import": m.take2(t, "d", 0, b, end),
	} {
		if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "% full") && !strings.Contains(err.Error(), "%") {
			t.Errorf("%s: %v", what, err)
		}
	}
	m.export(t, "b", "s") // to have it elsewhere
	m.export(t, "b", "")
	for _, name := range []string{"fill-84 B", "fill-92 B"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	m.untilLevel(t, dir, levelOK)
	expect(levelOK, "pool-ok")
	if _, err := m.Restore(t.Context(), "b", "s"); err != nil {
		t.Error(err)
	}
	m.expectLVs(t)
	m.SetLimits(Limits{Warn: 80, Critical: 90, Overcommit: 300})
	if p, err := m.Pool(); err != nil || p.OvercommitMax != 300 {
		t.Error(p, err)
	}
	if _, err := m.Clone(t.Context(), "b", "", "e"); err != nil {
		t.Error(err)
	}
	m.SetLimits(Limits{Warn: 80, Critical: 90, Overcommit: 200})
	if _, err := m.Clone(t.Context(), "b", "", "f"); !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "would promise") {
		t.Errorf("more than is allowed: %v", err)
	}
}

// An import stops before the pool is full.
func TestImportFillsPool(t *testing.T) {
	lvmtest.Pool(t, 256*mib)
	m := start(t, newStore(t), folder(t.TempDir()))
	b := packedNoise(t, 400*mib)
	_, _, err := m.Import(t.Context(), &v1.ImportTarget{Name: "a", Size: 1 << 30}, bytes.NewReader(b), func() (*v1.ArchiveEnd, error) {
		return nil, errors.New("never asked")
	})
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "the pool is") {
		t.Errorf("error %v", err)
	}
	p, err := lvm.ReadPool()
	if err != nil || p.Mode != lvm.ModeWrite || percent(p.DataUsed, p.DataSize) > 5 {
		t.Errorf("pool %+v, %v", p, err)
	}
	m.expectLVs(t)
}

// Metadata that fills up is extended.
func TestExtendMetadata(t *testing.T) {
	defer lvmtest.Changed()
	lvmtest.PoolWithMetadata(t, poolSize, 4*mib)
	m := start(t, newStore(t), folder(t.TempDir()))
	m.readReserve(t.Context())
	if m.guard.reserve.Load() <= 0 {
		t.Error("no reserve")
	}
	p, err := lvm.ReadPool()
	if err != nil {
		t.Fatal(err)
	}
	if p.MetadataUsed = p.MetadataSize * 75 / 100; m.extendMetadata(t.Context(), p) {
		t.Error("extended early")
	}
	p.MetadataUsed = p.MetadataSize * 85 / 100
	if !m.extendMetadata(t.Context(), p) {
		t.Error("not extended")
	}
	if now, err := lvm.ReadPool(); err != nil || now.MetadataSize <= p.MetadataSize {
		t.Errorf("metadata of %d, before %d, %v", now.MetadataSize, p.MetadataSize, err)
	}
}

// The kernel of a microVM notes an error in its volume: it is stopped.
func TestErrorInGuest(t *testing.T) {
	m := machine(t, folder(t.TempDir()))
	r := m.volume(t, "a")
	device := m.give(t, shop, mount("a"))
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_EXCL, 0) // as QEMU has it
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m.lookAtGuests(t.Context())
	if len(m.held) > 0 {
		t.Errorf("held %q", m.held)
	}
	state := []byte{0}
	if _, err := f.ReadAt(state, 1024+0x3a); err != nil { // s_state
		t.Fatal(err)
	}
	state[0] |= 2 // EXT4_ERROR_FS
	if _, err := f.WriteAt(state, 1024+0x3a); err != nil {
		t.Fatal(err)
	}
	m.lookAtGuests(t.Context())
	if want := []string{`shop: the file system of volume "a" had an error; it is checked before the next start`}; !cmp.Equal(want, m.held) {
		t.Errorf("held %q, record %+v", m.held, r)
	}
}

// untilLevel waits until the file system at dir has given space back to the pool,
// which it does some time after a file is gone.
func (m *managed) untilLevel(t *testing.T, dir string, want v1.PoolLevel) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	for m.guard.level != want {
		if err := errors.Join(syncFS(dir), await.Pause(ctx, 100*time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		m.lookAtPool(ctx)
	}
}

// A pool that is full: what needs space fails, the rest goes on and can be saved,
// and it recovers by itself.
func TestPoolFull(t *testing.T) {
	lvmtest.Pool(t, 256*mib)
	m := start(t, newStore(t), folder(t.TempDir()))
	m.volume(t, "a")
	dir := m.give(t, blog, mount("a"))
	put(t, dir+"/f", "mine")
	m.snap(t, "a", "s")
	if err := lvm.CreateThin(t.Context(), "hog", 512*mib); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(lvm.Device("hog"), os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	block, err := unix.Mmap(-1, 0, mib, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(block) }()
	copy(block, noise(mib))
	for err == nil {
		_, err = f.Write(block)
	}
	if f.Close(); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the pool took 512 MiB, or: %v", err)
	}
	m.lookAtPool(t.Context())
	if p, err := m.Pool(); err != nil || p.Level != levelFull || !strings.Contains(p.Message, "the pool is full") {
		t.Errorf("pool %v, %v", p, err)
	}
	if err := errOf(m.Snapshot(t.Context(), "a", "t")); !errdefs.IsResourceExhausted(err) {
		t.Errorf("snapshot: %v", err)
	}
	expectFile(t, dir+"/f", "mine")
	m.export(t, "a", "s")
	err = errOf(m.Export(t.Context(), "a", "", func(*v1.ExportStart) error { return nil }, io.Discard))
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "export one of its snapshots") {
		t.Errorf("export: %v", err)
	}
	if err := lvm.RemoveThin(t.Context(), "hog"); err != nil {
		t.Fatal(err)
	}
	m.lookAtPool(t.Context())
	if p, err := m.Pool(); err != nil || p.Level != levelOK || p.Message != "" {
		t.Errorf("pool %v, %v", p, err)
	}
	m.snap(t, "a", "t")
	put(t, dir+"/g", "more")
	if err := syncFS(dir); err != nil {
		t.Error(err)
	}
	m.expectLVs(t)
}
