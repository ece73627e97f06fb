package server

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/installer"
)

// Installer puts a capsule on a disk of this machine.
type Installer interface {
	Disks() []installer.Candidate
	Plan(choice installer.Choice) (installer.Plan, error)
	Install(ctx context.Context, choice installer.Choice, planned string, progress func(installer.Progress)) error
}

type installs struct {
	capsulev1.UnimplementedInstallServiceServer
	Options
}

// ListDisks reads the disks' heads.
func (s *installs) ListDisks(context.Context, *capsulev1.ListDisksRequest) (*capsulev1.ListDisksResponse, error) {
	resp := &capsulev1.ListDisksResponse{}
	for _, c := range s.Installer.Disks() {
		resp.Disks = append(resp.Disks, diskOf(c, installer.Unfit(c)))
	}
	return resp, nil
}

func diskOf(c installer.Candidate, unfit string) *capsulev1.Disk {
	d := &capsulev1.Disk{
		Name: c.Name, Model: c.Model, Serial: c.Serial, Wwn: c.WWN, Bytes: c.Bytes, BlockBytes: uint32(c.Sector),
		Removable: c.Removable, Booted: c.Booted, Unfit: unfit,
	}
	for _, content := range c.Contents {
		d.Contents = append(d.Contents, &capsulev1.DiskContent{Where: content.Where, Kind: content.Kind, Label: content.Label, Bytes: content.Bytes})
	}
	return d
}

// PlanInstall writes nothing.
func (s *installs) PlanInstall(_ context.Context, req *capsulev1.PlanInstallRequest) (*capsulev1.PlanInstallResponse, error) {
	plan, err := s.Installer.Plan(installer.Choice{Disk: req.GetDisk(), Erase: req.GetErase(), Restore: req.GetRestore()})
	if err != nil {
		return nil, err
	}
	return &capsulev1.PlanInstallResponse{Disk: diskOf(plan.Disk, installer.Unfit(plan.Disk)), Digest: plan.Digest, Version: s.Version}, nil
}

// progressEvery is how often a caller hears of an installation.
const progressEvery = 250 * time.Millisecond

// Install goes on for as long as the caller listens.
func (s *installs) Install(req *capsulev1.InstallRequest, stream grpc.ServerStreamingServer[capsulev1.InstallResponse]) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	p := &progress{wake: make(chan struct{}, 1)}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		if err := p.send(ctx, stream.Send); err != nil {
			cancel(err)
		}
	}()
	err := s.Installer.Install(ctx, installer.Choice{Disk: req.GetDisk(), Erase: req.GetErase(), Restore: req.GetRestore()}, req.GetDigest(), p.set)
	p.end()
	<-sent
	return err
}

// progress carries how far the work is to a caller who may be slow: only the latest
// counts, and the work doesn't wait.
type progress struct {
	wake chan struct{} // one waits, at most

	mu    sync.Mutex
	last  installer.Progress
	ended bool
}

func (p *progress) set(now installer.Progress) {
	p.mu.Lock()
	p.last = now
	p.mu.Unlock()
	p.ring()
}

func (p *progress) end() {
	p.mu.Lock()
	p.ended = true
	p.mu.Unlock()
	p.ring()
}

func (p *progress) ring() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *progress) send(ctx context.Context, send func(*capsulev1.InstallResponse) error) error {
	pause := time.NewTicker(progressEvery)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		}
		p.mu.Lock()
		now, ended := p.last, p.ended
		p.mu.Unlock()
		if now.Total > 0 {
			if err := send(&capsulev1.InstallResponse{Step: now.Step, Done: uint64(now.Done), Total: uint64(now.Total)}); err != nil {
				return err
			}
		}
		if ended {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-pause.C:
		}
	}
}
