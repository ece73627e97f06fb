package server

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/installer"
	"capsule/internal/storage"
)

// Disks are those that a capsule uses, and may use.
type Disks interface {
	// Ready waits, right after a start, until it's known which there are.
	Ready(ctx context.Context) error
	List(ctx context.Context) ([]storage.Disk, error)
	Grow(ctx context.Context) (before, now storage.Sizes, err error)
	// Plan adds a disk, or has it replace another one.
	Plan(ctx context.Context, choice installer.Choice, replaces string) (storage.Plan, error)
	// Take goes on when ctx ends.
	Take(ctx context.Context, choice installer.Choice, replaces, planned string, tell func(storage.Progress) error) error
	Keep(ctx context.Context) error
}

type disks struct {
	capsulev1.UnimplementedDiskServiceServer
	Options
}

func (s *disks) ready(ctx context.Context) (Disks, error) {
	if s.Disks == nil {
		return nil, fmt.Errorf("disks are not looked after in this mode: %w", errdefs.ErrFailedPrecondition)
	}
	return s.Disks, s.Disks.Ready(ctx)
}

// ListPoolDisks reads the disks' heads.
func (s *disks) ListPoolDisks(ctx context.Context, _ *capsulev1.ListPoolDisksRequest) (*capsulev1.ListPoolDisksResponse, error) {
	m, err := s.ready(ctx)
	if err != nil {
		return nil, err
	}
	list, err := m.List(ctx)
	if err != nil {
		return nil, err
	}
	resp := &capsulev1.ListPoolDisksResponse{}
	for _, d := range list {
		resp.Disks = append(resp.Disks, poolDisk(d))
	}
	return resp, nil
}

var diskUses = map[storage.Use]capsulev1.DiskUse{
	storage.Unused: capsulev1.DiskUse_DISK_USE_NONE, storage.System: capsulev1.DiskUse_DISK_USE_SYSTEM, storage.Pool: capsulev1.DiskUse_DISK_USE_POOL,
}

var diskStates = map[storage.State]capsulev1.DiskState{
	storage.OK: capsulev1.DiskState_DISK_STATE_OK, storage.Missing: capsulev1.DiskState_DISK_STATE_MISSING,
	storage.Joining: capsulev1.DiskState_DISK_STATE_JOINING, storage.Leaving: capsulev1.DiskState_DISK_STATE_LEAVING,
}

func poolDisk(d storage.Disk) *capsulev1.PoolDisk {
	p := &capsulev1.PoolDisk{
		Disk: diskOf(d.Candidate, d.Unfit), Use: diskUses[d.Use], State: diskStates[d.State], Message: d.Message,
		PoolBytes: uint64(d.PoolBytes), UsedBytes: uint64(d.UsedBytes),
		MovedBytes: uint64(d.MovedBytes), MovingBytes: uint64(d.MovingBytes),
	}
	if !d.Since.IsZero() {
		p.Since = timestamppb.New(d.Since)
	}
	return p
}

func (s *disks) GrowPoolDisks(ctx context.Context, _ *capsulev1.GrowPoolDisksRequest) (*capsulev1.GrowPoolDisksResponse, error) {
	m, err := s.ready(ctx)
	if err != nil {
		return nil, err
	}
	before, now, err := m.Grow(ctx)
	if err != nil {
		return nil, err
	}
	return &capsulev1.GrowPoolDisksResponse{
		PermBefore: uint64(before.Perm), Perm: uint64(now.Perm), PoolBefore: uint64(before.Pool), Pool: uint64(now.Pool),
	}, nil
}

// PlanPoolDisk writes nothing.
func (s *disks) PlanPoolDisk(ctx context.Context, req *capsulev1.PlanPoolDiskRequest) (*capsulev1.PlanPoolDiskResponse, error) {
	m, err := s.ready(ctx)
	if err != nil {
		return nil, err
	}
	plan, err := m.Plan(ctx, installer.Choice{Disk: req.GetDisk(), Erase: req.GetErase()}, req.GetReplaces())
	if err != nil {
		return nil, err
	}
	resp := &capsulev1.PlanPoolDiskResponse{
		Disk: diskOf(plan.Disk, ""), Digest: plan.Digest, MovingBytes: uint64(plan.MovingBytes), UnderWay: plan.UnderWay,
	}
	if plan.Replaced != nil {
		resp.Replaced = diskOf(installer.Candidate{Device: *plan.Replaced}, "")
	}
	return resp, nil
}

// TakePoolDisk goes on when the caller doesn't listen any more.
func (s *disks) TakePoolDisk(req *capsulev1.TakePoolDiskRequest, stream grpc.ServerStreamingServer[capsulev1.TakePoolDiskResponse]) error {
	m, err := s.ready(stream.Context())
	if err != nil {
		return err
	}
	choice := installer.Choice{Disk: req.GetDisk(), Erase: req.GetErase()}
	return m.Take(stream.Context(), choice, req.GetReplaces(), req.GetDigest(), func(p storage.Progress) error {
		return stream.Send(&capsulev1.TakePoolDiskResponse{Step: p.Step, Done: uint64(p.Done), Total: uint64(p.Total), Waits: p.Waits})
	})
}

func (s *disks) KeepPoolDisk(ctx context.Context, _ *capsulev1.KeepPoolDiskRequest) (*capsulev1.KeepPoolDiskResponse, error) {
	m, err := s.ready(ctx)
	if err != nil {
		return nil, err
	}
	return &capsulev1.KeepPoolDiskResponse{}, m.Keep(ctx)
}
