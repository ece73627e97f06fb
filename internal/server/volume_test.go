package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/store"
)

// shelf answers for the volume manager, which needs a machine's disk: what is
// tested here is what goes over the wire, and the rules of deleting.
type shelf struct {
	mu      sync.Mutex
	holders map[string][]string

	admit   func(tx store.View, objs []*capsulev1.Object) (map[string][]string, error)
	archive []byte        // what Export sends
	broken  error         // how Export ends
	ended   chan struct{} // closed when an endless Export is cancelled
	pool    *capsulev1.Pool
	poolErr error
	unready error
	called  chan string
}

func newShelf() *shelf {
	return &shelf{holders: map[string][]string{}, ended: make(chan struct{}), called: make(chan string, 64), pool: &capsulev1.Pool{Size: 100, Used: 10}}
}

func (s *shelf) Ready(context.Context) error { return s.unready }

func (s *shelf) Admit(tx store.View, objs []*capsulev1.Object) (map[string][]string, error) {
	if s.admit == nil {
		return nil, nil
	}
	return s.admit(tx, objs)
}

func (s *shelf) Holders(volume string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.holders[volume])
}

func (s *shelf) hold(volume string, workloads ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holders[volume] = workloads
}

func (s *shelf) Wake(volume string) { s.called <- "wake " + volume }

func (s *shelf) Snapshot(_ context.Context, volume, name string) (*capsulev1.Snapshot, error) {
	return &capsulev1.Snapshot{Volume: volume, Name: name}, nil
}

func (s *shelf) Snapshots(volume string) ([]*capsulev1.Snapshot, error) {
	return []*capsulev1.Snapshot{{Volume: volume, Name: "first"}}, nil
}

func (s *shelf) DeleteSnapshot(_ context.Context, volume, name string) error {
	return fmt.Errorf("volume %q has no snapshot %q: %w", volume, name, errdefs.ErrNotFound)
}

func (s *shelf) Restore(_ context.Context, volume, _ string) (*capsulev1.Snapshot, error) {
	return nil, fmt.Errorf("volume %q is in use by workload \"web\": %w", volume, errdefs.ErrFailedPrecondition)
}

func (s *shelf) Clone(_ context.Context, volume, snapshot, name string) (*capsulev1.Object, error) {
	return disk(name, 1<<30), nil
}

func (s *shelf) Export(ctx context.Context, volume, _ string, start func(*capsulev1.ExportStart) error, w io.Writer) (*capsulev1.ArchiveEnd, error) {
	if err := start(&capsulev1.ExportStart{Size: 1 << 30, Used: int64(len(s.archive))}); err != nil {
		return nil, err
	}
	if volume == "endless" {
		defer close(s.ended)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if _, err := w.Write(s.archive); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(s.archive)
	return &capsulev1.ArchiveEnd{Sha256: sum[:], Bytes: int64(len(s.archive)), Files: 3}, s.broken
}

func (s *shelf) Import(_ context.Context, target *capsulev1.ImportTarget, r io.Reader, end func() (*capsulev1.ArchiveEnd, error)) (*capsulev1.Object, uint64, error) {
	s.called <- "import"
	sum := sha256.New()
	if target.GetName() != "lazy" {
		if _, err := io.Copy(sum, r); err != nil {
			s.called <- "broken"
			return nil, 0, err
		}
	}
	said, err := end()
	if err != nil {
		return nil, 0, err
	}
	if !bytes.Equal(said.GetSha256(), sum.Sum(nil)) {
		return nil, 0, fmt.Errorf("the archive was damaged on its way: %w", errdefs.ErrDataLoss)
	}
	return disk(target.GetName(), target.GetSize()), said.GetFiles(), nil
}

func (s *shelf) Pool() (*capsulev1.Pool, error) { return s.pool, s.poolErr }

func newVolumeBox(t *testing.T) (*box, *shelf) {
	t.Helper()
	s := newShelf()
	return newBox(t, func(o *Options) { o.Volumes, o.Kinds = s, []string{"Container", "MicroVM"} }), s
}

func disk(name string, size int64) *capsulev1.Object {
	return &capsulev1.Object{
		Meta: &capsulev1.Meta{Kind: "Volume", Name: name},
		Kind: &capsulev1.Object_Volume{Volume: &capsulev1.Volume{Spec: &capsulev1.VolumeSpec{Size: size}}},
	}
}

func mounting(name string, volumes ...string) *capsulev1.Object {
	o := web(name)
	for _, v := range volumes {
		o.GetWorkload().Spec.Mounts = append(o.GetWorkload().Spec.Mounts, &capsulev1.Mount{Volume: v, Path: "/" + v})
	}
	return o
}

func TestApplyVolumes(t *testing.T) {
	b, s := newVolumeBox(t)
	s.admit = func(tx store.View, objs []*capsulev1.Object) (map[string][]string, error) {
		warnings := map[string][]string{}
		for _, o := range objs {
			// All of one apply stand there, in whatever order they came.
			for _, m := range o.GetWorkload().GetSpec().GetMounts() {
				if _, err := tx.Get("Volume", m.GetVolume()); err != nil {
					t.Error(err)
				}
				warnings[o.GetMeta().GetUid()] = append(warnings[o.GetMeta().GetUid()], "will mount "+m.GetVolume())
			}
			if old := tx.Old(o); old.GetVolume().GetSpec().GetSize() > o.GetVolume().GetSpec().GetSize() {
				return nil, fmt.Errorf("volume %q can't shrink: %w", o.GetMeta().GetName(), errdefs.ErrInvalidArgument)
			}
		}
		return warnings, nil
	}
	// One file, the workload first, both of one name.
	got, err := b.apply(t, mounting("photos", "photos"), disk("photos", 1e10))
	if err != nil {
		t.Fatal(err)
	}
	workload, volume := got.Results[0], got.Results[1]
	if diff := cmp.Diff([]string{"will mount photos"}, workload.Warnings); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"size 10GB (10000000000 bytes) is rounded up to 10003415040 bytes, whole extents of 4MiB"}, volume.Warnings); diff != "" {
		t.Error(diff)
	}
	if want := "+kind: Volume\n+name: photos\n+size: 9540MiB # 10003415040 bytes\n"; volume.Diff != want {
		t.Errorf("got %s", volume.Diff)
	}
	if !strings.Contains(workload.Diff, "+mounts:\n+  - photos:/photos\n") || !workload.Object.GetWorkload().Spec.Mounts[0].GetCopyImageContent() {
		t.Errorf("got %v", workload)
	}
	if woke := <-s.called; woke != "wake photos" {
		t.Error(woke)
	}
	// The same bytes said otherwise are the same.
	for _, size := range []int64{1e10, 10003415040} {
		if got, err = b.apply(t, disk("photos", size)); err != nil || got.Results[0].Outcome != capsulev1.Outcome_OUTCOME_UNCHANGED {
			t.Errorf("%d: %v, %v", size, got, err)
		}
	}
	// Refused with all that came with it.
	_, err = b.apply(t, web("web"), disk("photos", 1<<30))
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), `volume "photos" can't shrink`) {
		t.Error(err)
	}
	if _, err := b.store.Get("", "web"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	scheduled := disk("photos", 1e10)
	scheduled.GetVolume().Spec.Snapshots = &capsulev1.SnapshotSchedule{Every: durationpb.New(time.Hour)}
	got, err = b.apply(t, scheduled)
	if err != nil || got.Results[0].Diff != "+snapshots:\n+  every: 1h\n+  keep: 7\n" {
		t.Error(got, err)
	}
	client := capsulev1.NewObjectServiceClient(b.dial(t, capsulev1.Role_ROLE_READER))
	if list, err := client.List(limit(t), &capsulev1.ListRequest{Kind: "Volume"}); err != nil || len(list.Objects) != 1 {
		t.Error(list, err)
	}
	if o, err := client.Get(limit(t), &capsulev1.GetRequest{Kind: "Volume", Name: "photos"}); err != nil || o.Object.GetVolume().GetStatus().GetPhase() != capsulev1.VolumePhase_VOLUME_PHASE_PENDING {
		t.Error(o, err)
	}
	if o, err := client.Get(limit(t), &capsulev1.GetRequest{Name: "photos"}); err != nil || o.Object.GetMeta().GetKind() != "Container" {
		t.Error(o, err)
	}
}

func TestWithoutVolumes(t *testing.T) {
	b := newBox(t, nil)
	for _, objs := range [][]*capsulev1.Object{{disk("photos", 1<<30)}, {mounting("web", "photos")}} {
		if _, err := b.apply(t, objs...); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "volumes are not available") {
			t.Error(err)
		}
	}
	client := capsulev1.NewVolumeServiceClient(b.dial(t, capsulev1.Role_ROLE_READER))
	if _, err := client.Pool(limit(t), &capsulev1.PoolRequest{}); status.Code(err) != codes.FailedPrecondition {
		t.Error(err)
	}
}

// What needs volumes waits for them after a start; all else does not.
func TestVolumesThatAreNotReady(t *testing.T) {
	s := newShelf()
	s.unready = fmt.Errorf("volumes are not taken up yet: %w", errdefs.ErrFailedPrecondition)
	b := newBox(t, func(o *Options) { o.Volumes = s })
	for _, objs := range [][]*capsulev1.Object{{disk("photos", 1<<30)}, {mounting("web", "photos")}} {
		if _, err := b.apply(t, objs...); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "not taken up yet") {
			t.Error(err)
		}
	}
	if _, err := b.apply(t, mounting("web")); err != nil {
		t.Error(err)
	}
	client := capsulev1.NewVolumeServiceClient(b.dial(t, capsulev1.Role_ROLE_OPERATOR))
	if _, err := client.Snapshot(limit(t), &capsulev1.SnapshotRequest{Volume: "photos", Name: "a"}); status.Code(err) != codes.FailedPrecondition {
		t.Error(err)
	}
}

// loop plays the loops that follow the store: a stopped workload lets go of its
// volumes, and a volume that is to be deleted goes.
func loop(ctx context.Context, t *testing.T, b *box, s *shelf) {
	changes, err := b.store.Watch(ctx, "", "")
	if err != nil {
		t.Fatal(err)
	}
	for c := range changes {
		meta := c.Object.GetMeta()
		switch {
		case c.Synced || c.Deleted:
		case c.Object.GetWorkload().GetIntent().GetStopped() && len(c.Object.GetWorkload().GetSpec().GetMounts()) > 0:
			volume := c.Object.GetWorkload().Spec.Mounts[0].Volume
			s.hold(volume, slices.DeleteFunc(s.Holders(volume), func(w string) bool { return w == meta.GetName() })...)
			obj, err := b.store.Get("Volume", volume)
			if err == nil {
				err = b.store.PutVolumeStatus(obj.Meta.Uid, &capsulev1.VolumeStatus{Generation: 1, Holders: s.Holders(volume)})
			}
			if err != nil && !errdefs.IsNotFound(err) {
				t.Error(err)
			}
		case c.Object.GetVolume() != nil && meta.GetDeletedAt() != nil:
			if err := b.store.Remove(meta.GetUid()); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestDeleteVolume(t *testing.T) {
	b, s := newVolumeBox(t)
	waiting, stopped, exited := mounting("waiting", "photos"), mounting("stopped", "photos"), mounting("exited", "photos")
	exited.GetWorkload().Spec.Restart = "never"
	got, err := b.apply(t, disk("photos", 1<<30), disk("music", 1<<30), mounting("blog", "photos"), waiting, stopped, exited, mounting("radio", "music"))
	if err != nil {
		t.Fatal(err)
	}
	s.hold("photos", "blog")
	conn, ctx := b.dial(t, capsulev1.Role_ROLE_OPERATOR), limit(t)
	objects, volumes, workloads := capsulev1.NewObjectServiceClient(conn), capsulev1.NewVolumeServiceClient(conn), capsulev1.NewWorkloadServiceClient(conn)
	if _, err := workloads.Stop(ctx, &capsulev1.StopRequest{Name: "stopped"}); err != nil {
		t.Fatal(err)
	}
	if err := b.store.PutStatus(got.Results[5].Object.Meta.Uid, &capsulev1.WorkloadStatus{Generation: 1, Phase: capsulev1.Phase_PHASE_EXITED}); err != nil {
		t.Fatal(err)
	}
	want := `volume "photos" is in use by workloads "blog", "waiting": stop that first, or delete with --force, which does`
	_, generic := objects.Delete(ctx, &capsulev1.DeleteRequest{Kind: "Volume", Name: "photos"})
	_, own := volumes.Delete(ctx, &capsulev1.VolumeServiceDeleteRequest{Name: "photos"})
	for _, err := range []error{generic, own} {
		if s := status.Convert(err); s.Code() != codes.FailedPrecondition || s.Message() != want {
			t.Error(err)
		}
	}
	if o, err := b.store.Get("Volume", "photos"); err != nil || o.Meta.DeletedAt != nil {
		t.Error(o, err)
	}

	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { loop(ctx, t, b, s) })
	defer running.Wait()
	defer cancel()
	forced, err := volumes.Delete(ctx, &capsulev1.VolumeServiceDeleteRequest{Name: "photos", Force: true})
	if err != nil || !slices.Equal(forced.Stopped, []string{"blog", "waiting"}) {
		t.Error(forced, err)
	}
	if _, err := b.store.Get("Volume", "photos"); !errdefs.IsNotFound(err) {
		t.Errorf("it answered before the volume was gone: %v", err)
	}
	for name, want := range map[string]bool{"blog": true, "waiting": true, "stopped": true, "exited": false, "radio": false} {
		if o, err := b.store.Get("", name); err != nil || o.GetWorkload().GetIntent().GetStopped() != want {
			t.Errorf("%s: %v, %v", name, o, err)
		}
	}
	// A workload's end is not its volume's.
	if _, err := objects.Delete(ctx, &capsulev1.DeleteRequest{Name: "radio"}); err != nil {
		t.Error(err)
	}
	if _, err := b.store.Get("Volume", "music"); err != nil {
		t.Error(err)
	}
	if _, err := volumes.Delete(ctx, &capsulev1.VolumeServiceDeleteRequest{Name: "music"}); err != nil {
		t.Error(err)
	}
	for _, force := range []bool{false, true} {
		if _, err := volumes.Delete(ctx, &capsulev1.VolumeServiceDeleteRequest{Name: "music", Force: force}); status.Code(err) != codes.NotFound {
			t.Error(err)
		}
	}
}

// late is a context whose time is up once its channel closes, and not before.
type late struct {
	context.Context
	up chan struct{}
}

func (l late) Done() <-chan struct{} { return l.up }

func (l late) Err() error {
	select {
	case <-l.up:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// lateOnce gives a context whose time is up once an object has come so far.
func (b *box) lateOnce(t *testing.T, name string, far func(*capsulev1.Object) bool) context.Context {
	t.Helper()
	changes, err := b.store.Watch(t.Context(), "", name)
	if err != nil {
		t.Fatal(err)
	}
	l := late{t.Context(), make(chan struct{})}
	go func() {
		defer close(l.up)
		for c := range changes {
			if !c.Synced && far(c.Object) {
				return
			}
		}
	}()
	return l
}

// What does not let go, or does not go, is told with its name.
func TestDeleteVolumeTakesTooLong(t *testing.T) {
	b, s := newVolumeBox(t)
	if _, err := b.apply(t, disk("photos", 1<<30), mounting("blog", "photos")); err != nil {
		t.Fatal(err)
	}
	s.hold("photos", "blog", "ghost")
	stopped := b.lateOnce(t, "blog", func(o *capsulev1.Object) bool { return o.GetWorkload().GetIntent().GetStopped() })
	_, err := newVolumes(Options{Store: b.store, Volumes: s}).Delete(stopped, &capsulev1.VolumeServiceDeleteRequest{Name: "photos", Force: true})
	want := `volume "photos" is not deleted: workloads "blog", "ghost" did not let go of it within 2m0s; stopped for it: workload "blog": unavailable`
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	s.hold("photos")
	obj, err := b.store.Get("Volume", "photos")
	if err != nil || obj.Meta.DeletedAt != nil {
		t.Fatal(obj, err)
	}
	if err := b.store.PutVolumeStatus(obj.Meta.Uid, &capsulev1.VolumeStatus{Message: "no lvm"}); err != nil {
		t.Fatal(err)
	}
	asked := b.lateOnce(t, "photos", func(o *capsulev1.Object) bool { return o.GetMeta().GetDeletedAt() != nil })
	_, err = newVolumes(Options{Store: b.store, Volumes: s}).Delete(asked, &capsulev1.VolumeServiceDeleteRequest{Name: "photos"})
	if want := `volume "photos" is being deleted, which takes longer than 2m0s: no lvm: unavailable`; err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
}

func TestVolumeCalls(t *testing.T) {
	b, s := newVolumeBox(t)
	conn, ctx := b.dial(t, capsulev1.Role_ROLE_ADMIN), limit(t)
	client := capsulev1.NewVolumeServiceClient(conn)
	made, err := client.Snapshot(ctx, &capsulev1.SnapshotRequest{Volume: "photos"})
	if err != nil || made.Snapshot.Volume != "photos" {
		t.Error(made, err)
	}
	if list, err := client.ListSnapshots(ctx, &capsulev1.ListSnapshotsRequest{Volume: "photos"}); err != nil || list.Snapshots[0].Name != "first" {
		t.Error(list, err)
	}
	if cloned, err := client.Clone(ctx, &capsulev1.CloneRequest{Volume: "photos", Name: "twin"}); err != nil || cloned.Object.Meta.Name != "twin" {
		t.Error(cloned, err)
	}
	if set, err := client.SetPool(ctx, &capsulev1.SetPoolRequest{OvercommitMax: 400}); err != nil || set.Pool.OvercommitMax != 400 {
		t.Error(set, err)
	}
	info := func() *capsulev1.InfoResponse {
		got, err := capsulev1.NewCapsuleServiceClient(conn).Info(ctx, &capsulev1.InfoRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if pool, err := client.Pool(ctx, &capsulev1.PoolRequest{}); err != nil || !proto.Equal(pool.Pool, info().Pool) || pool.Pool.Size != 100 {
		t.Error(pool, err)
	}
	s.pool, s.poolErr = nil, errors.New("no such device")
	if got := info(); got.Pool != nil || got.Name == "" {
		t.Error(got)
	}
	for name, c := range map[string]struct {
		do   func() error
		code codes.Code
		want string
	}{
		"snapshot's name": {func() error {
			_, err := client.Snapshot(ctx, &capsulev1.SnapshotRequest{Volume: "photos", Name: "A b"})
			return err
		}, codes.InvalidArgument, `snapshot name "A b" must be lower-case`},
		"clone's name": {func() error {
			_, err := client.Clone(ctx, &capsulev1.CloneRequest{Volume: "photos", Name: "../x"})
			return err
		}, codes.InvalidArgument, `name "../x" must be`},
		"no clone's name": {func() error { _, err := client.Clone(ctx, &capsulev1.CloneRequest{Volume: "photos"}); return err }, codes.InvalidArgument, `name is missing`},
		"restore in use":  {func() error { _, err := client.Restore(ctx, &capsulev1.RestoreRequest{Volume: "photos"}); return err }, codes.FailedPrecondition, `in use by workload "web"`},
		"unknown snapshot": {func() error {
			_, err := client.DeleteSnapshot(ctx, &capsulev1.DeleteSnapshotRequest{Volume: "photos", Name: "x"})
			return err
		}, codes.NotFound, `volume "photos" has no snapshot "x"`},
	} {
		if s := status.Convert(c.do()); s.Code() != c.code || !strings.Contains(s.Message(), c.want) {
			t.Errorf("%s: %v", name, s)
		}
	}
}

func TestExport(t *testing.T) {
	b, s := newVolumeBox(t)
	s.archive = bytes.Repeat([]byte("0123456789abcdef"), 200_000) // several messages
	client := capsulev1.NewVolumeServiceClient(b.dial(t, capsulev1.Role_ROLE_OPERATOR))
	receive := func() (got []byte, parts []string, err error) {
		stream, err := client.Export(limit(t), &capsulev1.ExportRequest{Volume: "photos"})
		if err != nil {
			t.Fatal(err)
		}
		for {
			msg, err := stream.Recv()
			if err != nil {
				return got, parts, err
			}
			name := fmt.Sprintf("%T", msg.Part)
			if len(parts) == 0 || parts[len(parts)-1] != name {
				parts = append(parts, name)
			}
			if len(msg.GetData()) > archiveChunk {
				t.Errorf("a message of %d bytes", len(msg.GetData()))
			}
			got = append(got, msg.GetData()...)
		}
	}
	got, parts, err := receive()
	if !errors.Is(err, io.EOF) || !bytes.Equal(got, s.archive) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if diff := cmp.Diff([]string{"*capsulev1.ExportResponse_Start", "*capsulev1.ExportResponse_Data", "*capsulev1.ExportResponse_End"}, parts); diff != "" {
		t.Error(diff)
	}
	s.broken = fmt.Errorf("read file: %w", errdefs.ErrDataLoss)
	if _, parts, err := receive(); status.Code(err) != codes.DataLoss || slices.Contains(parts, "*capsulev1.ExportResponse_End") {
		t.Errorf("an export that broke off looks whole: %q, %v", parts, err)
	}
	// A client that is gone ends it.
	ctx, cancel := context.WithCancel(limit(t))
	stream, err := client.Export(ctx, &capsulev1.ExportRequest{Volume: "endless"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case <-s.ended:
	case <-limit(t).Done():
		t.Error("goes on without its client")
	}
}

func TestImport(t *testing.T) {
	b, s := newVolumeBox(t)
	client := capsulev1.NewVolumeServiceClient(b.dial(t, capsulev1.Role_ROLE_OPERATOR))
	target := func(name string, size int64) *capsulev1.ImportRequest {
		return &capsulev1.ImportRequest{Part: &capsulev1.ImportRequest_Target{Target: &capsulev1.ImportTarget{Name: name, Size: size}}}
	}
	data := func(text string) *capsulev1.ImportRequest {
		return &capsulev1.ImportRequest{Part: &capsulev1.ImportRequest_Data{Data: []byte(text)}}
	}
	end := func(text string) *capsulev1.ImportRequest {
		sum := sha256.Sum256([]byte(text))
		return &capsulev1.ImportRequest{Part: &capsulev1.ImportRequest_End{End: &capsulev1.ArchiveEnd{Sha256: sum[:], Files: 5}}}
	}
	send := func(msgs ...*capsulev1.ImportRequest) (*capsulev1.ImportResponse, error) {
		stream, err := client.Import(limit(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range msgs {
			if err := stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
		}
		return stream.CloseAndRecv()
	}
	got, err := send(target("photos", 1e10), data("hello "), data(""), data("world"), end("hello world"))
	if err != nil || got.Files != 5 || got.Object.GetVolume().Spec.Size != 10003415040 {
		t.Error(got, err)
	}
	for name, c := range map[string]struct {
		msgs []*capsulev1.ImportRequest
		code codes.Code
		want string
	}{
		"nothing":            {nil, codes.InvalidArgument, "must begin with its target"},
		"no target":          {[]*capsulev1.ImportRequest{data("x")}, codes.InvalidArgument, "must begin with its target"},
		"bad name":           {[]*capsulev1.ImportRequest{target("A", 0)}, codes.InvalidArgument, `name "A" must be`},
		"too small":          {[]*capsulev1.ImportRequest{target("a", 1)}, codes.InvalidArgument, "size must be within 32MiB and 16TiB, found 1 bytes"},
		"negative":           {[]*capsulev1.ImportRequest{target("a", -1)}, codes.InvalidArgument, "size must be within"},
		"cut short":          {[]*capsulev1.ImportRequest{target("a", 0), data("hello")}, codes.InvalidArgument, "the archive was cut short"},
		"cut before all":     {[]*capsulev1.ImportRequest{target("a", 0)}, codes.InvalidArgument, "the archive was cut short"},
		"another target":     {[]*capsulev1.ImportRequest{target("a", 0), target("b", 0)}, codes.InvalidArgument, "one target"},
		"an empty message":   {[]*capsulev1.ImportRequest{target("a", 0), {}}, codes.InvalidArgument, "is empty"},
		"damaged":            {[]*capsulev1.ImportRequest{target("a", 0), data("hallo"), end("hello")}, codes.DataLoss, "damaged"},
		"more than was read": {[]*capsulev1.ImportRequest{target("lazy", 0), data("hello"), end("")}, codes.InvalidArgument, "goes on after its end"},
	} {
		if _, err := send(c.msgs...); status.Code(err) != c.code || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A client that is gone is no end of its archive.
	for len(s.called) > 0 {
		<-s.called
	}
	ctx, cancel := context.WithCancel(limit(t))
	defer cancel()
	stream, err := client.Import(ctx)
	if err == nil {
		err = errors.Join(stream.Send(target("a", 0)), stream.Send(data("hello")))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"import", "broken"} {
		select {
		case did := <-s.called:
			if did != want {
				t.Errorf("%s, want %s", did, want)
			}
			cancel()
		case <-limit(t).Done():
			t.Fatal("waits for a client that is gone")
		}
	}
}

func TestArchivesAreBounded(t *testing.T) {
	b, _ := newVolumeBox(t)
	client := capsulev1.NewVolumeServiceClient(b.dial(t, capsulev1.Role_ROLE_OPERATOR))
	ctx, cancel := context.WithCancel(limit(t))
	defer cancel()
	begin := func() capsulev1.VolumeService_ImportClient {
		stream, err := client.Import(ctx)
		if err == nil {
			err = stream.Send(&capsulev1.ImportRequest{Part: &capsulev1.ImportRequest_Target{Target: &capsulev1.ImportTarget{Name: "lazy"}}})
		}
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		return stream
	}
	// Who sends nothing holds no place.
	for range archivesMax + 1 {
		if _, err := client.Import(ctx); err != nil {
			t.Fatal(err)
		}
	}
	var last capsulev1.VolumeService_ImportClient
	for range archivesMax {
		last = begin()
	}
	// Places are taken as calls arrive; one too many is refused at once.
	var refused error
	for refused == nil {
		stream := begin()
		got := make(chan error, 1)
		go func() { _, err := stream.CloseAndRecv(); got <- err }()
		if err := <-got; status.Code(err) == codes.Unavailable {
			refused = err
		}
	}
	if !strings.Contains(refused.Error(), "4 exports and imports are under way") {
		t.Error(refused)
	}
	if _, err := last.CloseAndRecv(); status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
	if _, err := client.Import(ctx); err != nil {
		t.Error(err)
	}
}
