package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/state"
)

// safe has nothing in it, and notes what it's given.
type safe struct {
	filled int
	known  []uint64
}

func (s *safe) Write(_ context.Context, w io.Writer, o state.Order) error {
	for i := range uint64(3) {
		has, err := o.Known.Has("photos", i, []byte{byte(i)})
		if err != nil {
			return err
		}
		if has {
			s.known = append(s.known, i)
		}
	}
	_, err := w.Write(bytes.Repeat([]byte("x"), backupPiece+1))
	return err
}

func (s *safe) Restored() (*state.Restored, error) { return nil, nil }
func (s *safe) Waiting() ([]string, error)         { return []string{"photos"}, nil }

func (s *safe) Fill(_ context.Context, _ *capsulev1.BackupVolume, next func() (*capsulev1.BackupChunk, error)) error {
	for n := 0; ; n++ {
		_, err := next()
		if errors.Is(err, io.EOF) {
			s.filled = n
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func backupClient(t *testing.T) (*safe, capsulev1.BackupServiceClient) {
	t.Helper()
	s := &safe{}
	g := newGuarded(t, capsulev1.Role_ROLE_ADMIN, func(o *Options) { o.Backups, o.Volumes = s, newShelf() })
	return s, capsulev1.NewBackupServiceClient(g.conn)
}

func TestBackup(t *testing.T) {
	s, client := backupClient(t)
	start := &capsulev1.BackupRequest{Part: &capsulev1.BackupRequest_Start{Start: &capsulev1.BackupStart{Base: make([]byte, 16)}}}
	know := func(indexes []uint64, hashes ...[]byte) *capsulev1.BackupRequest {
		return &capsulev1.BackupRequest{Part: &capsulev1.BackupRequest_Known{Known: &capsulev1.BackupKnown{Volume: "photos", Indexes: indexes, Hashes: hashes}}}
	}
	short := &capsulev1.BackupRequest{Part: &capsulev1.BackupRequest_Start{Start: &capsulev1.BackupStart{Base: []byte("short")}}}
	for name, tc := range map[string]struct {
		sent []*capsulev1.BackupRequest
		code codes.Code
	}{
		"whole":              {[]*capsulev1.BackupRequest{start, know([]uint64{0, 1}, []byte{0}, []byte{9}), know([]uint64{2}, []byte{2})}, codes.OK},
		"nothing":            {nil, codes.InvalidArgument},
		"no start":           {[]*capsulev1.BackupRequest{know(nil)}, codes.InvalidArgument},
		"a base of no form":  {[]*capsulev1.BackupRequest{short}, codes.InvalidArgument},
		"two starts":         {[]*capsulev1.BackupRequest{start, start}, codes.InvalidArgument},
		"a chunk, no hashes": {[]*capsulev1.BackupRequest{start, know([]uint64{1})}, codes.InvalidArgument},
	} {
		stream, err := client.Backup(limit(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, req := range tc.sent {
			_ = stream.Send(req) // the answer says why not
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		bytes := 0
		for err == nil {
			var resp *capsulev1.BackupResponse
			resp, err = stream.Recv()
			bytes += len(resp.GetData())
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		if status.Code(err) != tc.code || err == nil && bytes != backupPiece+1 {
			t.Errorf("%s: %v, %d bytes", name, err, bytes)
		}
	}
	if len(s.known) != 2 || s.known[0] != 0 || s.known[1] != 2 {
		t.Errorf("known: %v", s.known)
	}
}

func TestFillVolume(t *testing.T) {
	s, client := backupClient(t)
	volume := &capsulev1.FillVolumeRequest{Part: &capsulev1.FillVolumeRequest_Volume{Volume: &capsulev1.BackupVolume{Name: "photos", Size: 1 << 20}}}
	chunk := &capsulev1.FillVolumeRequest{Part: &capsulev1.FillVolumeRequest_Chunk{Chunk: &capsulev1.BackupChunk{}}}
	end := func(n uint64) *capsulev1.FillVolumeRequest {
		return &capsulev1.FillVolumeRequest{Part: &capsulev1.FillVolumeRequest_Filled{Filled: &capsulev1.BackupFilled{Chunks: n}}}
	}
	named := &capsulev1.FillVolumeRequest{Part: &capsulev1.FillVolumeRequest_Volume{Volume: &capsulev1.BackupVolume{Name: "../photos"}}}
	for name, tc := range map[string]struct {
		sent []*capsulev1.FillVolumeRequest
		code codes.Code
	}{
		"whole":          {[]*capsulev1.FillVolumeRequest{volume, chunk, chunk, end(2)}, codes.OK},
		"cut":            {[]*capsulev1.FillVolumeRequest{volume, chunk}, codes.InvalidArgument},
		"a chunk lost":   {[]*capsulev1.FillVolumeRequest{volume, chunk, end(2)}, codes.InvalidArgument},
		"no volume":      {[]*capsulev1.FillVolumeRequest{chunk}, codes.InvalidArgument},
		"no name of one": {[]*capsulev1.FillVolumeRequest{named}, codes.InvalidArgument},
		"nothing":        {nil, codes.InvalidArgument},
		"two volumes":    {[]*capsulev1.FillVolumeRequest{volume, volume}, codes.InvalidArgument},
	} {
		s.filled = -1
		stream, err := client.FillVolume(limit(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, req := range tc.sent {
			_ = stream.Send(req) // the answer says why not
		}
		if _, err := stream.CloseAndRecv(); status.Code(err) != tc.code || (s.filled == 2) != (err == nil) {
			t.Errorf("%s: %v, %d chunks", name, err, s.filled)
		}
	}
}

// A capsule is not made another one while it runs.
func TestStageRestoreOnCapsule(t *testing.T) {
	_, client := backupClient(t)
	stream, err := client.StageRestore(limit(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.CloseAndRecv(); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("%v", err)
	}
}
