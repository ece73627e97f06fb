package main

import (
	"bytes"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

func TestPace(t *testing.T) {
	for _, c := range []struct {
		done, total int64
		took        time.Duration
		want        string
	}{
		{0, 100, time.Minute, ""},
		{50, 100, time.Millisecond, ""},
		{10 << 20, 30 << 20, 10 * time.Second, "1.0 MiB/s, 20s left"},
		{10 << 20, 0, 10 * time.Second, "1.0 MiB/s"},
		{30 << 20, 30 << 20, 10 * time.Second, "3.0 MiB/s"},
		{999 << 10, 1 << 20, 10 * time.Second, "99.9 KiB/s, 1s left"},
		{1 << 20, 1 << 30, time.Minute, "17.1 KiB/s, 17h03m left"},
		{1 << 20, 1 << 40, time.Minute, "17.1 KiB/s, 728d left"},
	} {
		if got := pace(c.done, c.total, c.took); got != c.want {
			t.Errorf("%d of %d in %v: got %q, want %q", c.done, c.total, c.took, got, c.want)
		}
	}
}

func TestParsePercent(t *testing.T) {
	for text, want := range map[string]string{
		"400%": "400", "100%": "100", "99%": "below 100%", "400": "write 400%", "": "want a percentage", "4x%": "want a percentage",
		"-1%": "want a percentage", "99999999999%": "want a percentage",
	} {
		n, err := parsePercent(text)
		if err != nil && strings.Contains(err.Error(), want) {
			continue
		}
		if err != nil || size(int64(n)) != want+" B" {
			t.Errorf("%q: got %d, %v", text, n, err)
		}
	}
}

// archiveOf is text as "volume export" would pack it, near enough for the meter.
func archiveOf(t *testing.T, text string) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll([]byte(text), nil)
}

func TestArchiveMeter(t *testing.T) {
	whole := archiveOf(t, strings.Repeat("precious ", 100_000))
	broken := bytes.Clone(whole)
	broken[len(broken)-1] ^= 1 // of the checksum
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"whole", whole, ""},
		{"cut", whole[:len(whole)-1], "incomplete"},
		{"cut early", whole[:10], "incomplete"},
		{"cut in its first bytes", whole[:3], "incomplete"},
		{"empty", nil, "empty"},
		{"other", []byte("PK, and no archive of ours"), "no archive of a volume"},
		{"damaged", broken, "damaged"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newArchiveMeter()
			m.Write(c.data) //nolint:errcheck // end tells
			got := ""
			if err := m.end(); err != nil {
				got = err.Error()
			}
			if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if c.want == "" && (m.bytes != int64(len(c.data)) || m.unpacked.Load() != 900_000) {
				t.Errorf("%d bytes, %d unpacked", m.bytes, m.unpacked.Load())
			}
		})
	}
}

func TestArchiveMeterChecks(t *testing.T) {
	data := archiveOf(t, "precious")
	sum := sha256.Sum256(data)
	for _, c := range []struct {
		end  *capsulev1.ArchiveEnd
		want bool
	}{
		{&capsulev1.ArchiveEnd{Sha256: sum[:], Bytes: int64(len(data))}, true},
		{&capsulev1.ArchiveEnd{Sha256: sum[:], Bytes: int64(len(data)) + 1}, false},
		{&capsulev1.ArchiveEnd{Sha256: make([]byte, 32), Bytes: int64(len(data))}, false},
		{&capsulev1.ArchiveEnd{}, false},
	} {
		m := newArchiveMeter()
		m.Write(data) //nolint:errcheck // check tells
		if err := m.check(c.end); (err == nil) != c.want {
			t.Errorf("%v: %v", c.end, err)
		}
		m.pipe.Close()
	}
}

// A file is replaced by a whole archive only, and a broken one leaves nothing.
func TestArchiveFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "photos.tar.zst")
	write := func(text string) *archiveFile {
		f, err := createArchive(&app{ui: &ui{}}, path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(f, text); err != nil {
			t.Fatal(err)
		}
		return f
	}
	if err := write("first").keep(); err != nil {
		t.Fatal(err)
	}
	write("broken").drop()
	if err := os.Symlink(path, filepath.Join(dir, "link")); err == nil {
		path = filepath.Join(dir, "link")
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "first" {
		t.Fatalf("%q, %v", got, err)
	}
	if err := write("second").keep(); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if got, e := os.ReadFile(filepath.Join(dir, "photos.tar.zst")); e != nil || string(got) != "second" || err != nil || len(names) > 2 {
		t.Errorf("%q, %v, %v, %v", got, e, names, err)
	}
	if _, err := createArchive(&app{ui: &ui{}}, dir); err == nil {
		t.Error("a folder was taken")
	}
	if _, err := createArchive(&app{ui: &ui{outTTY: true}}, "-"); err == nil {
		t.Error("a terminal was taken")
	}
}

// Of two exports to one file the one that began last has it.
func TestArchiveFileHasOneWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "photos.tar.zst")
	first, err := createArchive(&app{ui: &ui{}}, path)
	if err != nil {
		t.Fatal(err)
	}
	second, err := createArchive(&app{ui: &ui{}}, path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(second, "second"); err != nil {
		t.Fatal(err)
	}
	if err := first.keep(); err == nil {
		t.Error("the first took what the second wrote")
	}
	if err := second.keep(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "second" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestArchiveFileLeavesDevicesAlone(t *testing.T) {
	if _, err := os.Stat("/dev/null"); err != nil {
		t.Skip("no /dev/null here")
	}
	f, err := createArchive(&app{ui: &ui{}}, "/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	f.drop()
	if info, err := os.Stat("/dev/null"); err != nil || info.Mode().IsRegular() {
		t.Fatal(info, err)
	}
}

func volumeOf(name string, phase capsulev1.VolumePhase, size, used int64, holders ...string) *capsulev1.Object {
	return &capsulev1.Object{
		Meta: &capsulev1.Meta{Kind: manifest.KindVolume, Name: name},
		Kind: &capsulev1.Object_Volume{Volume: &capsulev1.Volume{
			Spec:   &capsulev1.VolumeSpec{Size: size},
			Status: &capsulev1.VolumeStatus{Phase: phase, Size: size, Used: used, Holders: holders},
		}},
	}
}

func TestStorageFacts(t *testing.T) {
	broken := volumeOf("broken", capsulev1.VolumePhase_VOLUME_PHASE_FAILED, 1<<30, 0)
	broken.GetVolume().GetStatus().Message = "its file system wants a check"
	got := storageFacts(&capsulev1.Pool{
		Size: 100 << 30, Used: 85 << 30, MetadataSize: 1 << 30, MetadataUsed: 1 << 29, Promised: 200 << 30, OvercommitMax: 1000,
		Level: capsulev1.PoolLevel_POOL_LEVEL_WARN, Message: "15.0 GiB are left",
	}, []*capsulev1.Object{
		volumeOf("small", capsulev1.VolumePhase_VOLUME_PHASE_READY, 1<<30, 1<<20),
		volumeOf("large", capsulev1.VolumePhase_VOLUME_PHASE_IN_USE, 100<<30, 50<<30, "web", "blog"),
		broken,
	})
	want := [][]string{
		{"pool:", "warn; 85.0 GiB of 100.0 GiB, 85 %; metadata 50 %"},
		{"promised:", "200.0 GiB to volumes, 200 % of the pool's size, at most 1000 %"},
		{"volume broken:", "failed: its file system wants a check; 0 B of 1.0 GiB, 0 %"},
		{"volume large:", "in-use; 50.0 GiB of 100.0 GiB, 50 %; mounted by blog and web"},
		{"volume small:", "ready; 1.0 MiB of 1.0 GiB, 0 %"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if storageFacts(nil, nil) != nil {
		t.Error("a pool that is not known was shown")
	}
}

// What is in the way of "volume create" is told with the way on.
func TestOtherVolume(t *testing.T) {
	old := volumeOf("photos", capsulev1.VolumePhase_VOLUME_PHASE_READY, 1<<30, 0)
	for _, c := range []struct {
		size int64
		want string
	}{
		{1 << 30, ""},
		{1<<30 - 1, ""}, // rounded up
		{2 << 30, "capsulectl volume resize photos 2GiB"},
		{1 << 29, "never shrinks"},
	} {
		hint := ""
		if err := otherVolume(old, volumeOf("photos", 0, c.size, 0)); err != nil {
			hint = err.(*failure).hint //nolint:errorlint // ours
		}
		if (hint == "") != (c.want == "") || !strings.Contains(hint, c.want) {
			t.Errorf("%d: %q", c.size, hint)
		}
	}
	if err := otherVolume(nil, old); err != nil {
		t.Error(err)
	}
}

// Volumes and workloads are waited for apart, though they may have one name.
func TestWaiterTellsKindsApart(t *testing.T) {
	u := &ui{out: io.Discard, err: io.Discard}
	a := &app{ui: u}
	volume := volumeOf("photos", capsulev1.VolumePhase_VOLUME_PHASE_PENDING, 1<<30, 0)
	workload := &capsulev1.Object{
		Meta: &capsulev1.Meta{Kind: "Container", Name: "photos"},
		Kind: &capsulev1.Object_Workload{Workload: &capsulev1.Workload{Status: &capsulev1.WorkloadStatus{Phase: capsulev1.Phase_PHASE_RUNNING}}},
	}
	w := a.newWaiter([]target{targetOf(volume), targetOf(workload)}, untilReady)
	w.seen = map[string]bool{}
	w.take(&capsulev1.WatchResponse{Object: volume})
	w.take(&capsulev1.WatchResponse{Object: workload})
	if len(w.left) != 1 || w.left[`volume "photos"`].name == "" || len(w.errs) > 0 {
		t.Fatal(w.left, w.errs)
	}
	volume.GetVolume().GetStatus().Phase = capsulev1.VolumePhase_VOLUME_PHASE_READY
	w.take(&capsulev1.WatchResponse{Object: volume})
	if len(w.left) != 0 || len(w.done) != 2 || len(w.errs) > 0 {
		t.Fatal(w.left, w.errs)
	}
}
