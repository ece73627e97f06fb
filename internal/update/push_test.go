package update

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/bundle"
	"capsule/internal/disk"
)

func first(t testing.TB) *build  { return newBuild(t, "v1.0.0", content(1, testBlocks)) }
func second(t testing.TB) *build { return newBuild(t, "v1.1.0", content(2, testBlocks+20)) }

// installedWhole checks that the other slot has a release, all of it, to start next.
func installedWhole(t *testing.T, w *world, r *build, name string) {
	t.Helper()
	if got := w.read(name); !bytes.Equal(got[:len(r.root())], r.root()) {
		t.Errorf("%s has another root", name)
	}
	e := w.entry(name)
	if e == nil {
		t.Fatalf("%s has no entry", name)
	}
	if e.Version != r.manifest.Version || !e.Counted || e.Left != 3 || !bytes.Equal(w.read("esp"+e.UKI), r.kernel) {
		t.Errorf("entry of %s: %+v", name, e)
	}
}

func TestPush(t *testing.T) {
	t.Parallel()
	w := newWorld(t, first(t))
	m, r := w.settled(w.manager()), second(t)
	before := w.sums()
	b := r.bundle(t, w.key)
	c := clientOf(b)
	var phases []string
	var last *v1.UpdateProgress
	result, err := m.Push(t.Context(), offerOf(t, b), c.fetch, func(p *v1.UpdateProgress) {
		if last == nil || last.Phase != p.Phase {
			phases = append(phases, p.Phase.String()[len("UPDATE_PHASE_"):])
		}
		if p.Done > p.Total || last != nil && last.Phase == p.Phase && last.Done > p.Done {
			t.Errorf("progress goes from %v to %v", last, p)
		}
		last = p
	})
	if err != nil {
		t.Fatal(err)
	}
	if result.Version != "v1.1.0" || result.Slot != disk.SlotB || result.Unchanged || !result.Reboots || w.restarted() != 1 {
		t.Error(result, w.restarted())
	}
	if diff := cmp.Diff([]string{"COMPARE", "WRITE", "VERIFY", "ACTIVATE"}, phases); diff != "" || last.Done != testKernel {
		t.Error(diff, last)
	}
	if h := int64(len(b)) - c.asked; h != int64(len(offerOf(t, b).Header)) {
		t.Errorf("all but %d bytes were asked for", h)
	}
	installedWhole(t, w, r, disk.SlotB)
	after := w.sums()
	for _, name := range []string{"slot_a", "esp/EFI/capsule/first.efi", "esp/loader/entries/capsule-slot_a.conf"} {
		if before[name] != after[name] {
			t.Errorf("%s of the running system was changed", name)
		}
	}
	w.wantHistory(m, "v1.1.0 slot_b from v1.0.0: installed: ")
	if _, _, err := w.push(m, r, nil); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "restarts now") {
		t.Errorf("a push during the restart: %v", err)
	}
}

// Each refusal has its own words, and leaves every byte as it is.
func TestRefusals(t *testing.T) {
	t.Parallel()
	foreign, err := bundle.Generate()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		change  func(*bundle.Manifest)
		world   func(*world, *Manager)
		offer   func(*world, *build, *Offer)
		class   func(error) bool
		say     string
		release func(t testing.TB) *build
	}{
		"recovery":    {world: func(w *world, _ *Manager) { w.recovery = true }, class: errdefs.IsFailedPrecondition, say: "recovery mode"},
		"busy":        {world: func(_ *world, m *Manager) { m.changing.Lock() }, class: errdefs.IsFailedPrecondition, say: "another update is being pushed"},
		"tentative":   {world: func(_ *world, m *Manager) { m.looked, m.tentative = true, newTrial(nil) }, class: errdefs.IsFailedPrecondition, say: "v1.0.0, which runs, is not confirmed yet: confirm it or roll it back first"},
		"no header":   {offer: func(_ *world, _ *build, o *Offer) { o.Header = []byte("#!/bin/sh\n") }, class: errdefs.IsInvalidArgument, say: "bundle"},
		"long header": {offer: func(_ *world, _ *build, o *Offer) { o.Header = append(o.Header, 0) }, class: errdefs.IsInvalidArgument, say: "header"},
		"manifest":    {offer: func(_ *world, _ *build, o *Offer) { o.Header = flipped(o.Header, 17) }, class: errdefs.IsInvalidArgument, say: "manifest"},
		"signature":   {offer: func(_ *world, _ *build, o *Offer) { o.Header = flipped(o.Header, len(o.Header)-1) }, class: errdefs.IsPermissionDenied, say: "bundle was changed after key"},
		"changed": {offer: func(_ *world, _ *build, o *Offer) {
			o.Header = bytes.Replace(o.Header, []byte("v1.1.0"), []byte("v1.2.0"), 1)
		}, class: errdefs.IsPermissionDenied, say: "bundle was changed after key"},
		"unsigned":     {offer: func(_ *world, r *build, o *Offer) { o.Header = offerOf(t, r.bundle(t, nil)).Header }, class: errdefs.IsPermissionDenied, say: "not signed"},
		"foreign key":  {offer: func(_ *world, r *build, o *Offer) { o.Header = offerOf(t, r.bundle(t, foreign)).Header }, class: errdefs.IsPermissionDenied, say: foreign.Public().ID()},
		"product":      {change: func(m *bundle.Manifest) { m.Product = "toaster" }, class: errdefs.IsInvalidArgument, say: `product "toaster"`},
		"architecture": {change: func(m *bundle.Manifest) { m.Architecture = "arm64" }, class: errdefs.IsInvalidArgument, say: `architecture "arm64", and this capsule has "amd64"`},
		"short":        {offer: func(_ *world, _ *build, o *Offer) { o.Size-- }, class: errdefs.IsInvalidArgument, say: "cut off"},
		"half":         {offer: func(_ *world, _ *build, o *Offer) { o.Size /= 2 }, class: errdefs.IsInvalidArgument, say: "cut off"},
		"long":         {offer: func(_ *world, _ *build, o *Offer) { o.Size++ }, class: errdefs.IsInvalidArgument, say: "1 bytes more"},
		"window":       {offer: func(_ *world, _ *build, o *Offer) { o.Window = time.Second }, class: errdefs.IsInvalidArgument, say: "window of 1s: want 1m0s to 24h0m0s"},
		"auto-confirm": {offer: func(_ *world, _ *build, o *Offer) { o.AutoConfirm = WindowDefault }, class: errdefs.IsInvalidArgument, say: "may never come within a window of 10m0s"},
		"older":        {change: func(m *bundle.Manifest) { m.Version = "v0.9.0" }, class: errdefs.IsFailedPrecondition, say: "older than v1.0.0, which runs: --allow-downgrade"},
		"follows":      {change: func(m *bundle.Manifest) { m.Follows = "v1.0.5" }, class: errdefs.IsFailedPrecondition, say: "install v1.0.5 first"},
		"same version": {change: func(m *bundle.Manifest) { m.Version = "v1.0.0" }, class: errdefs.IsFailedPrecondition, say: "runs already, with other content: --force"},
		"rolled back": {world: func(_ *world, m *Manager) {
			_, _ = addRecord(m.Bucket, facts{Version: "v1.1.0", Outcome: rolledBack, Ended: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC), Reason: "it burnt"})
		}, class: errdefs.IsFailedPrecondition, say: "rolled back here on 2030-01-02 (it burnt): --force"},
		"slot": {release: func(t testing.TB) *build { return newBuild(t, "v1.1.0", content(2, testSlot/blockSize)) },
			class: errdefs.IsResourceExhausted, say: "slot_b is too small"},
		"boot partition": {world: func(_ *world, m *Manager) {
			m.Space = func(string) (int64, error) { return testKernel + espSpare - 1, nil }
		}, class: errdefs.IsResourceExhausted, say: "the kernel image needs 1348576 bytes, and it has 1348575"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, first(t))
			m := w.settled(w.manager())
			r := second(t)
			if tc.release != nil {
				r = tc.release(t)
			}
			whole := r.bundle(t, w.key)
			if tc.change != nil {
				tc.change(&r.manifest)
			}
			h, err := bundle.NewHeader(r.manifest, w.key)
			if err != nil {
				t.Fatal(err)
			}
			o := Offer{Header: h.Bytes(), Size: h.Size}
			if tc.offer != nil {
				tc.offer(w, r, &o)
			}
			if tc.world != nil {
				tc.world(w, m)
			}
			before := w.sums()
			c := clientOf(whole)
			_, err = m.Push(t.Context(), o, c.fetch, nil)
			if err == nil || !tc.class(err) || !strings.Contains(err.Error(), tc.say) {
				t.Errorf("got %v, want %q", err, tc.say)
			}
			if diff := cmp.Diff(before, w.sums()); diff != "" || c.asked != 0 || w.restarted() != 0 {
				t.Errorf("%d bytes were asked for, %d restarts, written: %s", c.asked, w.restarted(), diff)
			}
		})
	}
}

func flipped(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}

// What refuses can be told to accept.
func TestForced(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		version string
		allow   func(*Offer)
		record  bool
	}{
		"downgrade":          {"v0.9.0", func(o *Offer) { o.AllowDowngrade = true }, false},
		"same version":       {"v1.0.0", func(o *Offer) { o.Force = true }, false},
		"rolled back before": {"v1.1.0", func(o *Offer) { o.Force = true }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, first(t))
			m := w.manager()
			if tc.record {
				if _, err := addRecord(m.Bucket, facts{Version: tc.version, Outcome: rolledBack}); err != nil {
					t.Fatal(err)
				}
			}
			r := newBuild(t, tc.version, content(2, testBlocks))
			if _, _, err := w.push(m, r, nil); !errdefs.IsFailedPrecondition(err) {
				t.Fatal(err)
			}
			kernel := w.read("esp/EFI/capsule/first.efi")
			w.mustPush(m, r, tc.allow)
			installedWhole(t, w, r, disk.SlotB)
			if !bytes.Equal(kernel, w.read("esp/EFI/capsule/first.efi")) {
				t.Error("the running kernel image was overwritten")
			}
		})
	}
}

func TestSameVersionIsNoUpdate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, first(t))
	m, before := w.manager(), w.sums()
	result, c, err := w.push(m, first(t), nil)
	if err != nil || !result.Unchanged || result.Reboots || result.Version != "v1.0.0" || c.asked != 0 || w.restarted() != 0 {
		t.Error(result, err, c.asked, w.restarted())
	}
	if diff := cmp.Diff(before, w.sums()); diff != "" {
		t.Error(diff)
	}
}

// UPD-02: a root as large as the slot fits; one more block doesn't.
func TestSlotSizes(t *testing.T) {
	t.Parallel()
	r := second(t)
	size := r.manifest.Root.Size
	for name, tc := range map[string]struct {
		slot int64
		fits bool
	}{
		"as large as the slot": {size, true},
		"a byte smaller":       {size + 1, true},
		"a byte larger":        {size - 1, false},
		"a block larger":       {size - blockSize, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, first(t))
			if err := os.Truncate(w.path("slot_b"), tc.slot); err != nil {
				t.Fatal(err)
			}
			before := w.sums()
			_, _, err := w.push(w.manager(), r, nil)
			if tc.fits {
				if err != nil {
					t.Fatal(err)
				}
				installedWhole(t, w, r, disk.SlotB)
				return
			}
			if !errdefs.IsResourceExhausted(err) {
				t.Error(err)
			}
			if diff := cmp.Diff(before, w.sums()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// UPD-04: a damaged bundle never gets an entry, and the running system stays. What
// is found in the tree is found before the first write.
func TestDamagedBundle(t *testing.T) {
	t.Parallel()
	r := second(t)
	rootAt := func(b []byte) int { return len(b) - len(r.root()) }
	for name, tc := range map[string]struct {
		at      func(b []byte) int
		say     string
		written bool
	}{
		"kernel":        {func(b []byte) int { return rootAt(b) - 7 }, "kernel image", true},
		"root":          {func(b []byte) int { return rootAt(b) + 200*blockSize + 5 }, "block 200", true},
		"last block":    {func(b []byte) int { return rootAt(b) + len(r.data) - 1 }, "block 319", true},
		"tree":          {func(b []byte) int { return len(b) - 5*blockSize/2 }, "hash tree", false},
		"top of tree":   {func(b []byte) int { return rootAt(b) + len(r.data) + blockSize }, "hash tree", false},
		"superblock":    {func(b []byte) int { return rootAt(b) + len(r.data) + 20 }, "hash tree", false},
		"salt":          {func(b []byte) int { return rootAt(b) + len(r.data) + 90 }, "hash tree", false},
		"end of a head": {func(b []byte) int { return rootAt(b) + len(r.data) + blockSize - 1 }, "hash tree", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, first(t))
			m := w.settled(w.manager())
			before := w.sums()
			b := r.bundle(t, w.key)
			b = flipped(b, tc.at(b))
			_, err := m.Push(t.Context(), offerOf(t, b), clientOf(b).fetch, nil)
			if !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), tc.say) || !strings.Contains(err.Error(), "bundle is damaged") {
				t.Errorf("got %v, want %q", err, tc.say)
			}
			after := w.sums()
			if tc.written {
				delete(before, "slot_b")
				delete(after, "slot_b")
			}
			if diff := cmp.Diff(before, after); diff != "" || w.restarted() != 0 {
				t.Error(diff, w.restarted())
			}
			w.wantHistory(m)
			w.mustPush(m, r, nil) // the next one is none the worse
			installedWhole(t, w, r, disk.SlotB)
		})
	}
}

// A client that leaves something out, or sends something else, is told.
func TestDishonestClient(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fetch Fetch
		class func(error) bool
	}{
		"nothing": {func(context.Context, []Range, func(int64, []byte) error) error { return nil }, errdefs.IsDataLoss},
		"elsewhere": {func(_ context.Context, r []Range, got func(int64, []byte) error) error {
			return got(r[0].Offset-1, []byte{1})
		}, errdefs.IsInvalidArgument},
		"too much": {func(_ context.Context, r []Range, got func(int64, []byte) error) error {
			return got(r[0].Offset, make([]byte, r[0].Length+1))
		}, errdefs.IsInvalidArgument},
		"zeros": {func(_ context.Context, r []Range, got func(int64, []byte) error) error {
			return got(r[0].Offset, make([]byte, r[0].Length))
		}, errdefs.IsDataLoss},
	} {
		w := newWorld(t, first(t))
		before := w.sums()
		if _, err := w.manager().Push(t.Context(), offerOf(t, second(t).bundle(t, w.key)), tc.fetch, nil); !tc.class(err) {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(before, w.sums()); diff != "" {
			t.Error(name, diff)
		}
	}
}

func TestTwoPushesAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, first(t))
	m, r := w.manager(), second(t)
	b := r.bundle(t, w.key)
	c, tried := clientOf(b), false
	_, err := m.Push(t.Context(), offerOf(t, b), func(ctx context.Context, ranges []Range, got func(int64, []byte) error) error {
		if !tried {
			tried = true
			if _, _, err := w.push(m, r, nil); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "another update is being pushed") {
				t.Error(err)
			}
			if _, err := m.Rollback(ctx); !errdefs.IsFailedPrecondition(err) {
				t.Error(err)
			}
		}
		return c.fetch(ctx, ranges, got)
	}, nil)
	if err != nil || !tried {
		t.Fatal(err, tried)
	}
	installedWhole(t, w, r, disk.SlotB)
}

// A push that broke off goes on where it was: what's there isn't asked for again.
func TestResume(t *testing.T) {
	t.Parallel()
	r := newBuild(t, "v1.1.0", content(2, 3000)) // more than a chunk
	for _, percent := range []int64{10, 50, 99} {
		t.Run(fmt.Sprint(percent), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, first(t))
			if err := os.Truncate(w.path("slot_b"), 16<<20); err != nil {
				t.Fatal(err)
			}
			m, b := w.manager(), r.bundle(t, w.key)
			c := clientOf(b)
			c.breaks = int64(len(b)) * percent / 100
			if _, err := m.Push(t.Context(), offerOf(t, b), c.fetch, nil); !errors.Is(err, errBroken) {
				t.Fatal(err)
			}
			if e := w.entry(disk.SlotB); e != nil || w.restarted() != 0 {
				t.Errorf("half an update has an entry: %v", e)
			}
			m = w.settled(w.restart()) // a cut in between, too
			if w.running != "v1.0.0" {
				t.Fatal(w.running)
			}
			again := w.mustPush(m, r, nil)
			// What came in whole chunks is kept; the kernel image comes anew.
			need := int64(len(b)) - c.breaks/chunkSize*chunkSize + int64(len(r.tree))
			if percent == 99 {
				need = int64(len(r.tree)) + testKernel
			}
			if again.asked > need {
				t.Errorf("asked for %d bytes again, of %d; want at most %d", again.asked, len(b), need)
			}
			installedWhole(t, w, r, disk.SlotB)
		})
	}
}

// What a cancelled push was about to do isn't done.
func TestCancelled(t *testing.T) {
	t.Parallel()
	w := newWorld(t, first(t))
	m, r := w.manager(), second(t)
	b := r.bundle(t, w.key)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := m.Push(ctx, offerOf(t, b), clientOf(b).fetch, func(p *v1.UpdateProgress) {
		if p.Phase == v1.UpdatePhase_UPDATE_PHASE_ACTIVATE {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || w.entry(disk.SlotB) != nil || w.restarted() != 0 {
		t.Error(err, w.entry(disk.SlotB))
	}
	w.settled(w.restart())
	w.wantHistory(w.manager())
}

// A push that ends at any of its steps on the boot partition, before or after the
// step, leaves a system to start, and the next push works.
func TestCutAtEachStep(t *testing.T) {
	t.Parallel()
	cut := errors.New("cut")
	for step, done := 0, false; !done; step++ {
		for _, after := range []bool{false, true} {
			w := newWorld(t, first(t))
			m, r, n := w.settled(w.manager()), second(t), 0
			m.ESP = func(_ disk.Access, fn func(string) error) error {
				defer func() { n++ }()
				if n < step {
					return fn(w.path("esp"))
				}
				if n == step && after {
					return errors.Join(fn(w.path("esp")), cut)
				}
				return cut // the power is off
			}
			_, _, err := w.push(m, r, nil)
			if done = n <= step; done {
				if err != nil {
					t.Error(err)
				}
				break
			}
			if !errors.Is(err, cut) || w.restarted() != 0 {
				t.Errorf("step %d: %v, %d restarts", step, err, w.restarted())
			}
			m = w.settled(w.restart())
			if w.running == "v1.1.0" {
				if _, err := m.Confirm(t.Context()); err != nil || len(w.history(m)) != 1 {
					t.Errorf("step %d: %v, %v", step, err, w.history(m))
				}
				continue
			}
			w.wantHistory(m)
			w.mustPush(m, r, nil)
			installedWhole(t, w, r, disk.SlotB)
		}
		if step > 20 {
			t.Fatal("no end")
		}
	}
}

// An entry of which it isn't sure whether it's there doesn't stay.
func TestEntryThatFailed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, first(t))
	m, writes := w.settled(w.manager()), 0
	m.ESP = func(access disk.Access, fn func(string) error) error {
		err := fn(w.path("esp"))
		if access == disk.Writable {
			if writes++; writes == 2 { // the first makes the slot free
				return errors.Join(err, errBroken)
			}
		}
		return err
	}
	if _, _, err := w.push(m, second(t), nil); !errors.Is(err, errBroken) || w.entry(disk.SlotB) != nil || w.restarted() != 0 {
		t.Error(err, w.entry(disk.SlotB))
	}
	w.wantHistory(m)
}

// Blocks of the running root are taken from there, wherever they are in it.
func TestDelta(t *testing.T) {
	t.Parallel()
	old := content(1, testBlocks)
	// A block in front moves all others; a few are new.
	data := append(content(7, 1), old[:200*blockSize]...)
	data = append(data, content(8, 5)...)
	data = append(data, old[200*blockSize:]...)
	w := newWorld(t, newBuild(t, "v1.0.0", old))
	m, r := w.manager(), newBuild(t, "v1.0.1", data)
	var reused int64
	b := r.bundle(t, w.key)
	c := clientOf(b)
	if _, err := m.Push(t.Context(), offerOf(t, b), c.fetch, func(p *v1.UpdateProgress) { reused = p.Reused }); err != nil {
		t.Fatal(err)
	}
	if want := int64(6*blockSize + len(r.tree) + testKernel); c.asked != want || reused != testBlocks*blockSize {
		t.Errorf("asked for %d bytes, want %d; %d reused", c.asked, want, reused)
	}
	installedWhole(t, w, r, disk.SlotB)
}

// Pieces of the running kernel image are not fetched, and one that is damaged there
// is.
func TestKernelPieces(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		spoil func(w *world, kernel []byte)
		want  int64 // bytes of the kernel image that are asked for
	}{
		{"only the version differs", func(*world, []byte) {}, bundle.PieceSize},
		{"a piece is damaged", func(w *world, kernel []byte) {
			w.write("esp/EFI/capsule/first.efi", flipped(kernel, testKernel-1))
		}, bundle.PieceSize + testKernel%bundle.PieceSize},
		{"the running one is cut off", func(w *world, kernel []byte) {
			w.write("esp/EFI/capsule/first.efi", kernel[:2*bundle.PieceSize+10])
		}, bundle.PieceSize + testKernel%bundle.PieceSize},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			data := content(1, testBlocks)
			first, next := newBuild(t, "v1.0.0", data), newBuild(t, "v1.0.1", data)
			next.kernel = bytes.Clone(first.kernel)
			next.kernel[900]++ // behind the command line
			next.manifest.UKI = bundle.NewPart(next.kernel)
			w := newWorld(t, first)
			tc.spoil(w, first.kernel)
			c := w.mustPush(w.manager(), next, nil)
			if want := int64(len(next.tree)) + tc.want; c.asked != want {
				t.Errorf("asked for %d bytes, want %d", c.asked, want)
			}
			installedWhole(t, w, next, disk.SlotB)
		})
	}
}

// A running slot that lost a block is of no less help with the others.
func TestDeltaFromDamagedSlot(t *testing.T) {
	t.Parallel()
	old := content(1, testBlocks)
	w := newWorld(t, newBuild(t, "v1.0.0", old))
	w.write("slot_a", flipped(w.read("slot_a"), 17*blockSize))
	r := newBuild(t, "v1.0.1", old)
	r.manifest.BuiltUnix++
	c := w.mustPush(w.manager(), r, nil)
	if want := int64(blockSize + len(r.tree) + testKernel); c.asked != want {
		t.Errorf("asked for %d bytes, want %d", c.asked, want)
	}
	installedWhole(t, w, r, disk.SlotB)
}

// The memory of a push is that of the tree and some buffers, whatever the size.
func TestPushMemory(t *testing.T) {
	const blocks, most = 10_000, 16 << 20
	w := newWorld(t, first(t))
	if err := os.Truncate(w.path("slot_b"), blocks*blockSize*2); err != nil {
		t.Fatal(err)
	}
	w.write("bundle", newBuild(t, "v1.1.0", content(2, blocks)).bundle(t, w.key)) // not held on to
	f, err := os.Open(w.path("bundle"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h, err := bundle.ReadHeader(f)
	if err != nil {
		t.Fatal(err)
	}
	m, c := w.manager(), &client{bundle: f, piece: 1 << 20}
	idle, peak := heap(), uint64(0)
	_, err = m.Push(t.Context(), Offer{Header: h.Bytes(), Size: h.Size}, func(ctx context.Context, ranges []Range, got func(int64, []byte) error) error {
		peak = max(peak, heap())
		return c.fetch(ctx, ranges, got)
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d KiB above idle", (peak-idle)>>10)
	if peak-idle > most {
		t.Errorf("a push of %d MiB took %d MiB", blocks*blockSize>>20, (peak-idle)>>20)
	}
}

// heap is what is in use, in bytes.
func heap() uint64 {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}
