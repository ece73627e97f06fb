package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	"google.golang.org/protobuf/proto"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/store"
)

// Volumes is what of the volume manager the API needs.
type Volumes interface {
	// Ready waits, right after a start, until volumes can be used.
	Ready(ctx context.Context) error
	// Admit looks at objects that are being applied, in the transaction that does
	// it. Warnings are by the uid of an object.
	Admit(tx store.View, objs []*capsulev1.Object) (warnings map[string][]string, err error)
	// Holders are the workloads that may have a volume mounted.
	Holders(volume string) []string
	// Wake has a volume looked at now.
	Wake(volume string)
	Snapshot(ctx context.Context, volume, name string) (*capsulev1.Snapshot, error)
	// Snapshots of a volume, or of all.
	Snapshots(volume string) ([]*capsulev1.Snapshot, error)
	DeleteSnapshot(ctx context.Context, volume, name string) error
	Restore(ctx context.Context, volume, snapshot string) (*capsulev1.Snapshot, error)
	Clone(ctx context.Context, volume, snapshot, name string) (*capsulev1.Object, error)
	// Export calls start once, before it writes.
	Export(ctx context.Context, volume, snapshot string, start func(*capsulev1.ExportStart) error, w io.Writer) (*capsulev1.ArchiveEnd, error)
	// Import calls end when it has read all of r, for what the client says of it.
	Import(ctx context.Context, target *capsulev1.ImportTarget, r io.Reader, end func() (*capsulev1.ArchiveEnd, error)) (*capsulev1.Object, uint64, error)
	Pool() (*capsulev1.Pool, error)
}

// Limits of exports and imports.
const (
	archivesMax  = 4         // at once: each packs or unpacks on a processor of its own
	archiveChunk = 256 << 10 // bytes of an archive in one message out
)

type volumes struct {
	capsulev1.UnimplementedVolumeServiceServer
	Options
	archives chan struct{} // one for each export and import under way
}

func newVolumes(o Options) *volumes {
	return &volumes{Options: o, archives: make(chan struct{}, archivesMax)}
}

// manager is the volume manager, if there is one to ask, once it is ready.
func (o *Options) manager(ctx context.Context) (Volumes, error) {
	if o.Volumes == nil {
		return nil, fmt.Errorf("volumes are not available in this mode: %w", errdefs.ErrFailedPrecondition)
	}
	return o.Volumes, o.Volumes.Ready(ctx)
}

func (s *volumes) Snapshot(ctx context.Context, req *capsulev1.SnapshotRequest) (*capsulev1.SnapshotResponse, error) {
	m, err := s.manager(ctx)
	if err != nil {
		return nil, err
	}
	if req.GetName() != "" {
		if err := manifest.CheckName(req.GetName()); err != nil {
			return nil, fmt.Errorf("snapshot %w", err)
		}
	}
	made, err := m.Snapshot(ctx, req.GetVolume(), req.GetName())
	return &capsulev1.SnapshotResponse{Snapshot: made}, err
}

func (s *volumes) ListSnapshots(ctx context.Context, req *capsulev1.ListSnapshotsRequest) (*capsulev1.ListSnapshotsResponse, error) {
	m, err := s.manager(ctx)
	if err != nil {
		return nil, err
	}
	list, err := m.Snapshots(req.GetVolume())
	return &capsulev1.ListSnapshotsResponse{Snapshots: list}, err
}

func (s *volumes) DeleteSnapshot(ctx context.Context, req *capsulev1.DeleteSnapshotRequest) (*capsulev1.DeleteSnapshotResponse, error) {
	m, err := s.manager(ctx)
	if err != nil {
		return nil, err
	}
	return &capsulev1.DeleteSnapshotResponse{}, m.DeleteSnapshot(ctx, req.GetVolume(), req.GetName())
}

func (s *volumes) Restore(ctx context.Context, req *capsulev1.RestoreRequest) (*capsulev1.RestoreResponse, error) {
	m, err := s.manager(ctx)
	if err != nil {
		return nil, err
	}
	kept, err := m.Restore(ctx, req.GetVolume(), req.GetSnapshot())
	return &capsulev1.RestoreResponse{Kept: kept}, err
}

func (s *volumes) Clone(ctx context.Context, req *capsulev1.CloneRequest) (*capsulev1.CloneResponse, error) {
	m, err := s.manager(ctx)
	if err != nil {
		return nil, err
	}
	if err := manifest.CheckName(req.GetName()); err != nil {
		return nil, fmt.Errorf("new volume: %w", err)
	}
	made, err := m.Clone(ctx, req.GetVolume(), req.GetSnapshot(), req.GetName())
	return &capsulev1.CloneResponse{Object: made}, err
}

func (s *volumes) Pool(ctx context.Context, _ *capsulev1.PoolRequest) (*capsulev1.PoolResponse, error) {
	m, err := s.manager(ctx)
	if err != nil {
		return nil, err
	}
	pool, err := m.Pool()
	return &capsulev1.PoolResponse{Pool: pool}, err
}

func (s *volumes) SetPool(ctx context.Context, req *capsulev1.SetPoolRequest) (*capsulev1.SetPoolResponse, error) {
	m, err := s.manager(ctx)
	if err != nil {
		return nil, err
	}
	err = s.configure(ctx, func(spec *capsulev1.CapsuleSpec) error {
		if spec.Pool == nil {
			spec.Pool = &capsulev1.PoolLimits{}
		}
		spec.Pool.Overcommit = max(req.GetOvercommitMax(), 1) // zero would be the default
		return nil
	})
	if err != nil {
		return nil, err
	}
	pool, err := m.Pool()
	if pool = proto.CloneOf(pool); pool != nil {
		pool.OvercommitMax = req.GetOvercommitMax() // which holds in a moment
	}
	return &capsulev1.SetPoolResponse{Pool: pool}, err
}

// archive takes one of the places for exports and imports; done gives it back.
func (s *volumes) archive() (done func(), err error) {
	select {
	case s.archives <- struct{}{}:
		return func() { <-s.archives }, nil
	default:
		return nil, fmt.Errorf("%d exports and imports are under way, and no more are made at once; try again when one has ended: %w",
			archivesMax, errdefs.ErrUnavailable)
	}
}

// Export ends with its checksum, or it was cut short.
func (s *volumes) Export(req *capsulev1.ExportRequest, stream capsulev1.VolumeService_ExportServer) error {
	m, err := s.manager(stream.Context())
	if err != nil {
		return err
	}
	done, err := s.archive()
	if err != nil {
		return err
	}
	defer done()
	out := bufio.NewWriterSize(exportWriter{stream}, archiveChunk)
	start := func(start *capsulev1.ExportStart) error {
		return stream.Send(&capsulev1.ExportResponse{Part: &capsulev1.ExportResponse_Start{Start: start}})
	}
	end, err := m.Export(stream.Context(), req.GetVolume(), req.GetSnapshot(), start, out)
	if err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	return stream.Send(&capsulev1.ExportResponse{Part: &capsulev1.ExportResponse_End{End: end}})
}

type exportWriter struct {
	stream capsulev1.VolumeService_ExportServer
}

func (w exportWriter) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		// The message is encoded before Send returns: p may be reused then.
		part := p[done:min(done+archiveChunk, len(p))]
		if err := w.stream.Send(&capsulev1.ExportResponse{Part: &capsulev1.ExportResponse_Data{Data: part}}); err != nil {
			return done, err
		}
		done += len(part)
	}
	return len(p), nil
}

func (s *volumes) Import(stream capsulev1.VolumeService_ImportServer) error {
	m, err := s.manager(stream.Context())
	if err != nil {
		return err
	}
	target, err := importTarget(stream)
	if err != nil {
		return err
	}
	// Not before: who sends nothing holds no place.
	done, err := s.archive()
	if err != nil {
		return err
	}
	defer done()
	in := &upload{stream: stream}
	in.next = in.part
	obj, files, err := m.Import(stream.Context(), target, in, in.finish)
	if err != nil {
		return err
	}
	return stream.SendAndClose(&capsulev1.ImportResponse{Object: obj, Files: files})
}

// importTarget reads the first message, with its size as volumes have them.
func importTarget(stream capsulev1.VolumeService_ImportServer) (*capsulev1.ImportTarget, error) {
	first, err := stream.Recv()
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	target := first.GetTarget()
	if target == nil {
		return nil, fmt.Errorf("an import must begin with its target: %w", errdefs.ErrInvalidArgument)
	}
	if err := manifest.CheckName(target.GetName()); err != nil {
		return nil, fmt.Errorf("new volume: %w", err)
	}
	size := target.GetSize()
	if size == 0 {
		return target, nil
	}
	if size < manifest.VolumeMin || size > manifest.VolumeMax {
		return nil, fmt.Errorf("size must be within %s and %s, found %d bytes: %w",
			manifest.FormatSize(manifest.VolumeMin), manifest.FormatSize(manifest.VolumeMax), size, errdefs.ErrInvalidArgument)
	}
	target.Size = manifest.RoundUp(size)
	return target, nil
}

// upload is an archive that a client sends.
type upload struct {
	chunks
	stream capsulev1.VolumeService_ImportServer
	end    *capsulev1.ArchiveEnd
}

// part is the next of the archive. A client that closes its side before it has
// sent the end was cut off somewhere.
func (u *upload) part() ([]byte, error) {
	if u.end != nil {
		return nil, io.EOF
	}
	msg, err := u.stream.Recv()
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("the archive was cut short: it ended before its checksum; nothing of it is kept: %w", errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, err
	}
	switch part := msg.GetPart().(type) {
	case *capsulev1.ImportRequest_Data:
		return part.Data, nil
	case *capsulev1.ImportRequest_End:
		u.end = part.End
		return nil, io.EOF
	case *capsulev1.ImportRequest_Target:
		return nil, fmt.Errorf("an import has one target: %w", errdefs.ErrInvalidArgument)
	}
	return nil, fmt.Errorf("a message of the import is empty: %w", errdefs.ErrInvalidArgument)
}

// finish gives what the client says of its archive, once all of it is read.
func (u *upload) finish() (*capsulev1.ArchiveEnd, error) {
	n, err := u.Read(make([]byte, 1))
	switch {
	case n > 0:
		return nil, fmt.Errorf("the archive goes on after its end: %w", errdefs.ErrInvalidArgument)
	case err != nil && !errors.Is(err, io.EOF):
		return nil, err
	}
	return u.end, nil
}
