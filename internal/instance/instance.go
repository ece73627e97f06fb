// Package instance keeps the records of workloads' instances in containerd: one
// container record each, whatever its kind, with labels that tell whose it is
// and what became of it. They are all that a driver remembers, so a new driver
// carries on where the last one ended. The package runs nothing.
//
// A record refers to the snapshot of its own name, and through it to the layers
// of its image: while it exists, the garbage collector keeps both.
package instance

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"capsule/api/manifest"
	"capsule/internal/workload"
)

// Kinds of instances.
const (
	Container = manifest.KindContainer
	MicroVM   = manifest.KindMicroVM
)

// Records are those of one kind.
type Records struct {
	client      *containerd.Client
	kind        string
	snapshotter string
	busy        locks
}

// Open gives the records of a kind in the client's default namespace, with
// their snapshots in the named snapshotter, by default erofs.
func Open(client *containerd.Client, kind, snapshotter string) *Records {
	if snapshotter == "" {
		snapshotter = "erofs"
	}
	return &Records{client: client, kind: kind, snapshotter: snapshotter, busy: locks{held: map[string]*lock{}}}
}

// Snapshots of the records and their images.
func (r *Records) Snapshots() snapshots.Snapshotter { return r.client.SnapshotService(r.snapshotter) }

// List returns every record of the kind. One that names no kind was made before
// there were several, and is a container's.
func (r *Records) List(ctx context.Context) ([]containers.Container, error) {
	of := "!=" + MicroVM // also what names none
	if r.kind == MicroVM {
		of = "==" + MicroVM
	}
	all, err := r.client.ContainerService().List(ctx, fmt.Sprintf("labels.%q,labels.%q%s", LabelName, LabelKind, of))
	if err != nil {
		return nil, fmt.Errorf("list instances: %w", err)
	}
	var list []containers.Container
	for _, c := range all {
		if r.ours(c) {
			list = append(list, c)
		}
	}
	return list, nil
}

func (r *Records) ours(c containers.Container) bool {
	kind := c.Labels[LabelKind]
	return kind == r.kind || kind == "" && r.kind == Container
}

// Get returns the record of an instance; the error names the workload.
func (r *Records) Get(ctx context.Context, id workload.ID) (containers.Container, error) {
	c, err := r.client.ContainerService().Get(ctx, RecordID(id))
	if errdefs.IsNotFound(err) || err == nil && !r.ours(c) {
		return containers.Container{}, fmt.Errorf("workload %q has no instance of generation %d: %w", id.Name, id.Generation, errdefs.ErrNotFound)
	}
	if err != nil {
		return containers.Container{}, fmt.Errorf("load workload %q: %w", id.Name, err)
	}
	return c, nil
}

// Create writes the record of an instance whose snapshot exists; one that is
// there already is left as it is. The caller sets the runtime and the spec, and
// may add labels of its own.
func (r *Records) Create(ctx context.Context, in workload.Instance, c containers.Container) error {
	own := c.Labels
	c.ID = RecordID(in.ID)
	c.Labels = r.labels(in)
	maps.Copy(c.Labels, own)
	c.Image = in.Image.Name
	c.Snapshotter, c.SnapshotKey = r.snapshotter, c.ID
	_, err := r.client.ContainerService().Create(ctx, c)
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// SetLabels changes labels; an empty value removes one.
func (r *Records) SetLabels(ctx context.Context, recordID string, change map[string]string) error {
	store := r.client.ContainerService()
	c, err := store.Get(ctx, recordID)
	if err != nil {
		return err
	}
	for key, value := range change {
		if value == "" {
			delete(c.Labels, key)
		} else {
			c.Labels[key] = value
		}
	}
	_, err = store.Update(ctx, c, "labels")
	return err
}

// Started notes a start in place of how the last one ended.
func (r *Records) Started(ctx context.Context, recordID string, at time.Time, logDir string) error {
	return r.SetLabels(ctx, recordID, map[string]string{
		LabelStarted: at.UTC().Format(time.RFC3339Nano), LabelEnd: "", LabelNote: "", LabelLogDir: logDir,
	})
}

// Ended notes how an instance ended.
func (r *Records) Ended(ctx context.Context, recordID string, how Ending) error {
	return r.SetLabels(ctx, recordID, map[string]string{LabelEnd: how.String(), LabelNote: clip(how.Note)})
}

// Delete removes an instance's record and its snapshot; absent is success.
func (r *Records) Delete(ctx context.Context, id workload.ID) error {
	// Without the record nothing refers to the snapshot: should we be killed
	// here, the garbage collector takes it.
	if err := r.client.ContainerService().Delete(ctx, RecordID(id)); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if err := r.Snapshots().Remove(ctx, RecordID(id)); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// Lock keeps changes of one instance apart.
func (r *Records) Lock(recordID string) (unlock func()) { return r.busy.lock(recordID) }

// TryLock gives nil when the instance is being changed.
func (r *Records) TryLock(recordID string) (unlock func()) { return r.busy.try(recordID) }

// locks are one for each name in use.
type locks struct {
	mu   sync.Mutex
	held map[string]*lock
}

type lock struct {
	sync.Mutex
	users int
}

func (l *locks) lock(id string) (unlock func()) {
	k := l.use(id)
	k.Lock()
	return func() { k.Unlock(); l.leave(id, k) }
}

func (l *locks) try(id string) (unlock func()) {
	k := l.use(id)
	if !k.TryLock() {
		l.leave(id, k)
		return nil
	}
	return func() { k.Unlock(); l.leave(id, k) }
}

func (l *locks) use(id string) *lock {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.held[id]
	if k == nil {
		k = &lock{}
		l.held[id] = k
	}
	k.users++
	return k
}

func (l *locks) leave(id string, k *lock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.users--; k.users == 0 {
		delete(l.held, id)
	}
}
