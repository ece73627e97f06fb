package volume

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/image"
	"capsule/internal/store"
)

// managed is a manager with a store of its own and what it told others.
type managed struct {
	*Manager

	mu    sync.Mutex
	freed []string
	held  []string // workload: reason
	grown []string // workload volume
}

func newStore(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// open is a manager of what the store holds, as after a restart of the daemon,
// but without a look at logical volumes.
func open(t *testing.T, s *store.Store, content Content) *managed {
	t.Helper()
	m := prepare(t, s, content)
	var err error
	if m.state, err = readState(m.bucket); err != nil {
		t.Fatal(err)
	}
	m.recovered = true
	return m
}

// prepare is a manager before Recover.
func prepare(t *testing.T, s *store.Store, content Content) *managed {
	t.Helper()
	m := &managed{}
	m.Manager = New(Options{Store: s, Content: content, Guests: m, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Freed: func(volume string) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.freed = append(m.freed, volume)
	}})
	return m
}

func (m *managed) freedOnce(volume string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Contains(m.freed, volume)
}

func (m *managed) Freeze(context.Context, string, time.Duration) (func(), error) {
	return func() {}, nil
}

func (m *managed) Grown(_ context.Context, workload, volume string, _ int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.grown = append(m.grown, workload+" "+volume)
	return nil
}

func (m *managed) Hold(_ context.Context, workload, reason string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held = append(m.held, workload+": "+reason)
	return nil
}

// declare applies a volume of that size.
func (m *managed) declare(t *testing.T, name string, size int64) *v1.Object {
	t.Helper()
	results, err := m.opts.Store.Apply(t.Context(), []*v1.Object{{
		Meta: &v1.Meta{Kind: manifest.KindVolume, Name: name},
		Kind: &v1.Object_Volume{Volume: &v1.Volume{Spec: &v1.VolumeSpec{Size: size}}},
	}}, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	return results[0].Object
}

// kept declares a volume and keeps a record of it, as if it were made.
func (m *managed) kept(t *testing.T, name string) {
	t.Helper()
	obj := m.declare(t, name, 64<<20)
	err := m.change(func(c *change) error {
		return c.putVolume(name, record{UID: obj.Meta.Uid, LV: newLV(prefixVolume, name), Size: 64 << 20})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// folder stands for the image store, which needs containerd: every image has what
// is in it.
type folder string

func (f folder) View(_ context.Context, _ image.Image, look func(root string) error) error {
	return look(string(f))
}
