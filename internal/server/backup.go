package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/backup"
	"capsule/internal/state"
)

// Backups is what of a capsule's state the API needs.
type Backups interface {
	Write(ctx context.Context, w io.Writer, o state.Order) error
	Restored() (*state.Restored, error)
	Waiting() ([]string, error)
	Fill(ctx context.Context, v *capsulev1.BackupVolume, next func() (*capsulev1.BackupChunk, error)) error
}

// Stage keeps a backup that is to be installed.
type Stage interface {
	Take(r io.Reader, reclaim bool) (*state.Staged, error)
}

// Limits of backups.
const (
	backupsMax  = 1 // at once
	fillsMax    = 2 // volumes at once
	backupPiece = 256 << 10
)

type backups struct {
	capsulev1.UnimplementedBackupServiceServer
	Options
	writing chan struct{} // one for each backup under way
	filling chan struct{}
}

func newBackups(o Options) *backups {
	return &backups{Options: o, writing: make(chan struct{}, backupsMax), filling: make(chan struct{}, fillsMax)}
}

// source is what is backed up, once volumes can be.
func (s *backups) source(ctx context.Context) (Backups, error) {
	if s.Backups == nil {
		return nil, fmt.Errorf("backups are not available in this mode: %w", errdefs.ErrFailedPrecondition)
	}
	_, err := s.manager(ctx)
	return s.Backups, err
}

// Backup ends with the backup's own end, or it was cut short.
func (s *backups) Backup(stream capsulev1.BackupService_BackupServer) error {
	source, err := s.source(stream.Context())
	if err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	start := first.GetStart()
	if start == nil || len(start.GetBase()) > 0 && !backup.IsID(start.GetBase()) {
		return fmt.Errorf("a backup must begin with what it is to have: %w", errdefs.ErrInvalidArgument)
	}
	done, err := place(s.writing, "another backup")
	if err != nil {
		return err
	}
	defer done()
	out := bufio.NewWriterSize(backupWriter{stream}, backupPiece)
	if err := source.Write(stream.Context(), out, state.Order{Volumes: start.GetVolumes(), Base: start.GetBase(), Known: known(stream)}); err != nil {
		return err
	}
	return out.Flush()
}

// known are the chunks that the caller has.
func known(stream capsulev1.BackupService_BackupServer) *backup.Known {
	return &backup.Known{Receive: func() (*capsulev1.BackupKnown, error) {
		req, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if req.GetKnown() == nil {
			return nil, fmt.Errorf("a backup has one start: %w", errdefs.ErrInvalidArgument)
		}
		return req.GetKnown(), nil
	}}
}

type backupWriter struct {
	stream capsulev1.BackupService_BackupServer
}

func (w backupWriter) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		part := p[done:min(done+backupPiece, len(p))]
		if err := w.stream.Send(&capsulev1.BackupResponse{Data: part}); err != nil {
			return done, err
		}
		done += len(part)
	}
	return len(p), nil
}

// StageRestore keeps what it's given until it's given another.
func (s *backups) StageRestore(stream capsulev1.BackupService_StageRestoreServer) error {
	first, err := stream.Recv()
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if s.Stage == nil {
		return fmt.Errorf("this capsule runs from its own disk: a machine that is started from a stick can be restored: %w", errdefs.ErrFailedPrecondition)
	}
	if first.GetStart() == nil {
		return fmt.Errorf("a restore must begin with its start: %w", errdefs.ErrInvalidArgument)
	}
	in := &chunks{next: func() ([]byte, error) {
		req, err := stream.Recv()
		if err == nil && req.GetStart() != nil {
			err = fmt.Errorf("a restore has one start: %w", errdefs.ErrInvalidArgument)
		}
		return req.GetData(), err
	}}
	staged, err := s.Stage.Take(in, first.GetStart().GetReclaim())
	if err != nil {
		return err
	}
	return stream.SendAndClose(&capsulev1.StageRestoreResponse{Digest: staged.Digest})
}

// RestoreStatus is also for who wants to know whether this is the restored capsule, or
// the one of before.
func (s *backups) RestoreStatus(ctx context.Context, _ *capsulev1.RestoreStatusRequest) (*capsulev1.RestoreStatusResponse, error) {
	source, err := s.source(ctx)
	if err != nil {
		return nil, err
	}
	resp := &capsulev1.RestoreStatusResponse{}
	r, err := source.Restored()
	if err != nil {
		return nil, err
	}
	if r != nil {
		resp.Id, resp.CreatedAt = r.ID, timestamppb.New(r.CreatedAt)
	}
	resp.Waiting, err = source.Waiting()
	return resp, err
}

// FillVolume answers when the volume is there.
func (s *backups) FillVolume(stream grpc.ClientStreamingServer[capsulev1.FillVolumeRequest, capsulev1.FillVolumeResponse]) error {
	source, err := s.source(stream.Context())
	if err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if first.GetVolume() == nil {
		return fmt.Errorf("a volume to fill must come first: %w", errdefs.ErrInvalidArgument)
	}
	if err := manifest.CheckName(first.GetVolume().GetName()); err != nil {
		return err
	}
	done, err := place(s.filling, "the filling of other volumes")
	if err != nil {
		return err
	}
	defer done()
	if err := source.Fill(stream.Context(), first.GetVolume(), fillChunks(stream.Recv)); err != nil {
		return err
	}
	return stream.SendAndClose(&capsulev1.FillVolumeResponse{})
}

// fillChunks gives what a client sends up to its end. One that closes its side before
// was cut off somewhere.
func fillChunks(receive func() (*capsulev1.FillVolumeRequest, error)) func() (*capsulev1.BackupChunk, error) {
	came := uint64(0)
	return func() (*capsulev1.BackupChunk, error) {
		req, err := receive()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("the data was cut short; nothing of it is kept: %w", errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return nil, err
		}
		if end := req.GetFilled(); end != nil {
			if end.GetChunks() != came {
				return nil, fmt.Errorf("%d chunks came, and %d were sent; nothing of them is kept: %w", came, end.GetChunks(), errdefs.ErrInvalidArgument)
			}
			return nil, io.EOF
		}
		if req.GetChunk() == nil {
			return nil, fmt.Errorf("a message of the data is empty: %w", errdefs.ErrInvalidArgument)
		}
		came++
		return req.GetChunk(), nil
	}
}
