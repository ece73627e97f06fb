package volume

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	v1 "capsule/api/capsule/v1"
)

// restored is a store with volumes of another machine, of which those named wait.
func restored(t *testing.T, waiting ...string) *managed {
	t.Helper()
	s := newStore(t)
	before := open(t, s, nil)
	for _, name := range []string{"photos", "wiki"} {
		before.kept(t, name)
		err := before.change(func(c *change) error {
			return errors.Join(c.putSnapshot(name, "monday", snapshot{LV: "snap-" + name}), c.putIntent(intent{LV: "gone-" + name, Volume: name}))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Bucket(bucketName).Put(settingsKey, []byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	if err := Await(s, waiting); err != nil {
		t.Fatal(err)
	}
	return open(t, s, nil)
}

// A restored volume waits for its data: nothing is made in its place, and who mounts it
// is told why.
func TestAwaited(t *testing.T) {
	m := restored(t, "photos")
	if s := m.known(); len(s.volumes)+len(s.snapshots)+len(s.intents) > 0 {
		t.Errorf("the other machine's logical volumes are still known: %v", s)
	}
	if _, found, err := m.bucket.Get(settingsKey); !found || err != nil {
		t.Errorf("settings: %v, %v", found, err)
	}
	if _, waiting, err := m.Kept(); err != nil || !slices.Equal(waiting, []string{"photos"}) {
		t.Errorf("%v, %v", waiting, err)
	}
	if _, err := m.reconcile(t.Context(), "photos"); err != nil {
		t.Fatal(err)
	}
	obj, err := m.opts.Store.Get("Volume", "photos")
	if err != nil {
		t.Fatal(err)
	}
	if s := obj.GetVolume().GetStatus(); s.GetPhase() != v1.VolumePhase_VOLUME_PHASE_PENDING || !strings.Contains(s.GetMessage(), "capsulectl capsule restore") {
		t.Errorf("status: %v", s)
	}
	var held *HeldError
	if err := m.Claim(t.Context(), Claimant{Workload: "blog"}, []*v1.Mount{{Volume: "photos"}}); !errors.As(err, &held) || !strings.Contains(held.Error(), "waits for its data") {
		t.Errorf("a workload: %v", err)
	}
	nothing := func() (int64, []byte, error) { return 0, nil, io.EOF }
	for name, tc := range map[string]struct {
		v    Kept
		want func(error) bool
	}{
		"one that does not wait": {Kept{Name: "wiki", Size: 64 << 20}, errdefs.IsFailedPrecondition},
		"one that is not there":  {Kept{Name: "nosuch", Size: 64 << 20}, errdefs.IsNotFound},
		"too small":              {Kept{Name: "photos", Size: 4096}, errdefs.IsInvalidArgument},
		"no whole extents":       {Kept{Name: "photos", Size: 64<<20 + 1}, errdefs.IsInvalidArgument},
	} {
		if err := m.Fill(t.Context(), tc.v, nothing); !tc.want(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whoever deletes a volume that waits gives its data up: declared again it's a new one.
func TestAwaitedGivenUp(t *testing.T) {
	m := restored(t, "photos")
	if err := m.opts.Store.Delete("Volume", "photos"); err != nil {
		t.Fatal(err)
	}
	if _, err := m.reconcile(t.Context(), "photos"); err != nil {
		t.Fatal(err)
	}
	if m.isAwaited("photos") || open(t, m.opts.Store, nil).isAwaited("photos") {
		t.Error("it still waits")
	}
	if _, err := m.opts.Store.Get("Volume", "photos"); !errdefs.IsNotFound(err) {
		t.Errorf("%v", err)
	}
}

// A volume is read while it's written to, and what was read fills one elsewhere.
func TestBlocksAndFill(t *testing.T) {
	content := folder(t.TempDir())
	m := machine(t, content)
	m.volume(t, "photos")
	source := m.give(t, blog, mount("photos"))
	r, _ := m.record("photos")
	if err := os.WriteFile(source+"/mine", []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	var disk []byte
	var v Kept
	err := m.Blocks(t.Context(), "photos", func(now Kept, in io.Reader) (err error) {
		if err := os.WriteFile(source+"/mine", []byte("too late"), 0o644); err != nil {
			return err
		}
		v = now
		disk, err = io.ReadAll(in)
		if now.Size != r.Size || int64(len(disk)) != now.Size {
			t.Errorf("%d bytes of a volume of %d, said to have %d", len(disk), r.Size, now.Size)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	expectThin(t, r.LV)
	failure := errors.New("the client is gone")
	if err := m.Blocks(t.Context(), "photos", func(Kept, io.Reader) error { return failure }); !errors.Is(err, failure) {
		t.Errorf("%v", err)
	}
	expectThin(t, r.LV)
	m.take(t, blog)

	s := newStore(t)
	start(t, s, content).declare(t, "photos", smallest)
	if err := Await(s, []string{"photos"}); err != nil {
		t.Fatal(err)
	}
	there := start(t, s, content)
	there.step(t, "photos")
	there.expectPhase(t, "photos", v1.VolumePhase_VOLUME_PHASE_PENDING, "waits for its data")
	const piece = 256 << 10
	at := 0
	next := func() (int64, []byte, error) {
		for ; at < len(disk); at += piece {
			if part := disk[at : at+piece]; !bytes.Equal(part, make([]byte, piece)) {
				at += piece
				return int64(at - piece), part, nil
			}
		}
		return 0, nil, io.EOF
	}
	broken := func() (int64, []byte, error) {
		if at > 0 {
			return 0, nil, failure
		}
		return next()
	}
	if err := there.Fill(t.Context(), v, broken); !errors.Is(err, failure) || !there.isAwaited("photos") {
		t.Errorf("one that was broken off: %v", err)
	}
	expectThin(t, r.LV)
	at = 0
	if err := there.Fill(t.Context(), v, next); err != nil {
		t.Fatal(err)
	}
	there.step(t, "photos")
	there.expectPhase(t, "photos", v1.VolumePhase_VOLUME_PHASE_READY, "")
	expectFile(t, there.give(t, blog, mount("photos"))+"/mine", "precious")
	there.take(t, blog)
}
