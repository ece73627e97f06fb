package drivertest

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	v1 "capsule/api/capsule/v1"
	"capsule/internal/image"
	"capsule/internal/imagetest"
	"capsule/internal/logs"
	"capsule/internal/store"
	"capsule/internal/volume"
	"capsule/internal/workload"
)

// lent has the real loop lend real volumes to workloads.
func (s *suite) lent(t *testing.T) {
	if s.Pool == nil {
		t.Skip("SKIPPED, no pool for volumes: run it with test/vmexec")
	}
	s.Pool(t)
	st, err := store.Open(filepath.Join(t.TempDir(), "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	l := &lending{suite: s, store: st, images: map[string]image.Image{}}
	l.start(t)
	defer func() { l.stop(t) }()
	t.Run("VOL-02 image content once", l.content)
	t.Run("VOL-07 one at a time", l.oneAtATime)
	t.Run("VOL-06 grow under a writer", l.grow)
	t.Run("back to a snapshot", l.restore)
	t.Run("read-only after an error", l.failed)
	t.Run("nothing is left", l.nothingLeft)
}

// lending is a daemon's part that has to do with volumes.
type lending struct {
	*suite
	store  *store.Store
	images map[string]image.Image // of the store, by name
	loop   *workload.Loop
	keeper *volume.Manager
	stop   func(t *testing.T)
}

// start begins as a daemon does, also after one that was killed.
func (l *lending) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	l.keeper = volume.New(volume.Options{Store: l.store, Content: l.Content, Freed: func(name string) { l.loop.Freed(name) }})
	l.loop = workload.NewLoop(workload.LoopOptions{
		Store: l.store, Images: l, Network: surroundings{l.suite}, Volumes: l.keeper,
		Drivers: map[string]workload.Driver{l.Kind: l.driver},
		LogDir:  func(name string) string { return filepath.Join(l.LogRoot, name) },
		Mark:    logs.Mark, DropLog: logs.Remove,
	})
	l.keeper.SetGuests(l.loop)
	if err := l.keeper.Recover(ctx); err != nil {
		cancel()
		t.Fatal(err)
	}
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{l.loop.Run, l.keeper.Run} {
		running.Go(func() {
			if err := run(ctx); err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	l.stop = func(*testing.T) {
		cancel()
		running.Wait()
	}
}

// Get is an image that a test made.
func (l *lending) Get(_ context.Context, ref string) (image.Image, error) {
	if img, ok := l.images[ref]; ok {
		return img, nil
	}
	return image.Image{}, errdefs.ErrNotFound
}

// Pull has nothing to fetch.
func (l *lending) Pull(ctx context.Context, ref string, _ func(done, total int64)) (image.Image, error) {
	return l.Get(ctx, ref)
}

func (l *lending) apply(t *testing.T, obj *v1.Object) {
	t.Helper()
	if _, err := l.store.Apply(t.Context(), []*v1.Object{obj}, false, nil); err != nil {
		t.Fatal(err)
	}
}

// volume declares a volume.
func (l *lending) volume(t *testing.T, name string, sizeBytes int64) {
	t.Helper()
	l.apply(t, &v1.Object{
		Meta: &v1.Meta{Kind: "Volume", Name: name},
		Kind: &v1.Object_Volume{Volume: &v1.Volume{Spec: &v1.VolumeSpec{Size: sizeBytes}}},
	})
	l.keeper.Wake(name)
}

// workload declares a workload that waits, of an image that a test made, with a
// volume at /data.
func (l *lending) workload(t *testing.T, name string, img image.Image, volume string) {
	t.Helper()
	l.images[img.Name] = img
	l.apply(t, &v1.Object{
		Meta: &v1.Meta{Kind: l.Kind, Name: name},
		Kind: &v1.Object_Workload{Workload: &v1.Workload{Spec: &v1.WorkloadSpec{
			Image: img.Name, Args: []string{"sleep", "10h"}, Network: "none",
			Mounts: []*v1.Mount{{Volume: volume, Path: "/data"}},
		}}},
	})
	l.loop.Wake(name)
}

func (l *lending) stopped(t *testing.T, name string, stopped bool) {
	t.Helper()
	_, err := l.store.Mutate(name, "changed", func(o *v1.Object) error {
		o.GetWorkload().Intent = &v1.Intent{Stopped: stopped}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	l.loop.Wake(name)
}

func (l *lending) delete(t *testing.T, kind, name string) {
	t.Helper()
	if err := l.store.Delete(kind, name); err != nil {
		t.Fatal(err)
	}
	l.loop.Wake(name)
	l.keeper.Wake(name)
	l.until(t, kind, name, nil)
}

// until waits for an object to be so, or with nil to be gone.
func (l *lending) until(t *testing.T, kind, name string, fn func(*v1.Object) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	changes, err := l.store.Watch(ctx, kind, name)
	if err != nil {
		t.Fatal(err)
	}
	for {
		obj, err := l.store.Get(kind, name)
		switch {
		case errdefs.IsNotFound(err) && fn == nil:
			return
		case err != nil:
			t.Fatal(err)
		case fn != nil && fn(obj):
			return
		}
		select {
		case <-changes:
		case <-time.After(time.Second): // a slow reader's changes are dropped
		case <-ctx.Done():
			t.Fatalf("%s stays %v", name, obj)
		}
	}
}

// phase waits for the newest generation to stand somewhere, and gives the
// message.
func (l *lending) phase(t *testing.T, name string, phase v1.Phase) (message string) {
	t.Helper()
	l.until(t, l.Kind, name, func(obj *v1.Object) bool {
		status := obj.GetWorkload().GetStatus()
		message = status.GetMessage()
		return status.GetGeneration() == obj.Meta.Generation && status.GetPhase() == phase
	})
	return message
}

// inside runs a command in a workload and gives what it printed.
func (l *lending) inside(t *testing.T, name string, args ...string) string {
	t.Helper()
	id, driver, err := l.loop.Running(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	e := payload(args...)
	e.Stdout, e.Stderr = &out, &errs
	code, err := driver.Exec(t.Context(), id, e)
	if err != nil || code != 0 {
		t.Errorf("%q in %s: code %d, %v, %s", args, name, code, err, errs.String())
	}
	return out.String()
}

// content: a new volume takes over what the image has, with owners and modes. It
// keeps that, whatever image comes then.
func (l *lending) content(t *testing.T) {
	first := l.Image(t, imagetest.PayloadImage(t, nil, imagetest.NewLayer().Owner(1000, 1000).Dir("data", 0o750).File("data/seed", 0o640, "of the first\n")))
	second := l.Image(t, imagetest.PayloadImage(t, nil, imagetest.NewLayer().Dir("data", 0o755).File("data/other", 0o644, "of the second\n")))
	l.volume(t, "photos", 64<<20)
	l.workload(t, "blog", first, "photos")
	l.phase(t, "blog", v1.Phase_PHASE_RUNNING)
	check := func() {
		t.Helper()
		if out := l.inside(t, "blog", "ls", "-r", "/data"); out != "seed\n" { // and no lost+found
			t.Errorf("it holds %q", out)
		}
		folder, file, _ := strings.Cut(l.inside(t, "blog", "stat", "/data", "/data/seed"), "\n")
		if !strings.HasPrefix(folder, "drwxr-x--- 1000:1000") || file != "-rw-r----- 1000:1000 13\n" {
			t.Errorf("%q, %q", folder, file)
		}
	}
	check()
	l.workload(t, "blog", second, "photos")
	l.phase(t, "blog", v1.Phase_PHASE_RUNNING)
	check()
}

// oneAtATime: the second workload waits, also for a daemon that was killed, and
// starts by itself.
func (l *lending) oneAtATime(t *testing.T) {
	l.workload(t, "show", l.base, "photos")
	const why = `waits for volume "photos", which workload "blog" holds`
	if message := l.phase(t, "show", v1.Phase_PHASE_PENDING); !strings.HasPrefix(message, why) {
		t.Errorf("it is held as %q", message)
	}
	l.inside(t, "blog", "write", "/data/note", "by blog")
	l.stop(t)
	l.restart()
	l.start(t)
	if message := l.phase(t, "show", v1.Phase_PHASE_PENDING); !strings.HasPrefix(message, why) {
		t.Errorf("it is held as %q", message)
	}
	if out := l.inside(t, "blog", "cat", "/data/note"); out != "by blog\n" {
		t.Errorf("after a restart of the daemon: %q", out)
	}
	l.delete(t, l.Kind, "blog")
	l.phase(t, "show", v1.Phase_PHASE_RUNNING)
	if out := l.inside(t, "show", "cat", "/data/seed", "/data/note"); out != "of the first\nby blog\n" {
		t.Errorf("the next one finds %q", out)
	}
}

// grow: what did not fit does, without a restart.
func (l *lending) grow(t *testing.T) {
	id, _, err := l.loop.Running(t.Context(), "show")
	if err != nil {
		t.Fatal(err)
	}
	const large = 160 << 20
	l.volume(t, "photos", large)
	l.until(t, "Volume", "photos", func(obj *v1.Object) bool {
		s := obj.GetVolume().GetStatus()
		return s.GetGeneration() == obj.Meta.Generation && s.GetSize() == large
	})
	l.inside(t, "show", "fill", "/data/big", "100", "then", "rm", "/data/big")
	if now, _, err := l.loop.Running(t.Context(), "show"); err != nil || now != id {
		t.Errorf("%v runs, %v ran: %v", now, id, err)
	}
}

// restore: a volume that nothing has mounted becomes what it was.
func (l *lending) restore(t *testing.T) {
	l.inside(t, "show", "write", "/data/note", "before")
	if _, err := l.keeper.Snapshot(t.Context(), "photos", "good"); err != nil {
		t.Fatal(err)
	}
	l.inside(t, "show", "write", "/data/note", "after")
	if _, err := l.keeper.Restore(t.Context(), "photos", "good"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), `"show"`) {
		t.Errorf("restored under a workload: %v", err)
	}
	l.stopped(t, "show", true)
	l.phase(t, "show", v1.Phase_PHASE_STOPPED)
	l.until(t, "Volume", "photos", func(obj *v1.Object) bool { return len(obj.GetVolume().GetStatus().GetHolders()) == 0 })
	if _, err := l.keeper.Restore(t.Context(), "photos", "good"); err != nil {
		t.Fatal(err)
	}
	l.stopped(t, "show", false)
	l.phase(t, "show", v1.Phase_PHASE_RUNNING)
	if out := l.inside(t, "show", "cat", "/data/note"); out != "before\n" {
		t.Errorf("it is %q", out)
	}
}

// failed: a file system that the kernel took writes from, as it does after an
// error, is checked and mounted anew, and its workload is stopped for that.
func (l *lending) failed(t *testing.T) {
	if !l.Folders {
		t.Skip("SKIPPED, the file system is in the guest")
	}
	before := l.started(t, "show")
	if err := unix.Mount("", filepath.Join(volume.Dir, "photos"), "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	l.keeper.Wake("photos")
	l.until(t, l.Kind, "show", func(obj *v1.Object) bool {
		status := obj.GetWorkload().GetStatus()
		return status.GetPhase() == v1.Phase_PHASE_RUNNING && status.GetStartedAt().AsTime().After(before)
	})
	if out := l.inside(t, "show", "write", "/data/again", "written", "then", "cat", "/data/again", "/data/note"); out != "written\nbefore\n" {
		t.Errorf("it is %q", out)
	}
}

// started is when a workload was started last.
func (l *lending) started(t *testing.T, name string) time.Time {
	t.Helper()
	obj, err := l.store.Get(l.Kind, name)
	if err != nil {
		t.Fatal(err)
	}
	return obj.GetWorkload().GetStatus().GetStartedAt().AsTime()
}

// nothingLeft: what is deleted is gone, and the pool is as empty as before.
func (l *lending) nothingLeft(t *testing.T) {
	l.delete(t, l.Kind, "show")
	if holders := l.keeper.Holders("photos"); len(holders) > 0 {
		t.Errorf("held by %q", holders)
	}
	l.delete(t, "Volume", "photos")
	pool, err := l.keeper.Pool()
	if err != nil || pool.Used != 0 || pool.Promised != 0 {
		t.Errorf("the pool is %v, %v", pool, err)
	}
}
