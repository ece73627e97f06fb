package server

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/containerd/errdefs"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/config"
	"capsule/internal/image"
	"capsule/internal/workload"
)

// Images is what of the image store the API needs.
type Images interface {
	List(ctx context.Context) ([]*capsulev1.Image, error)
	Push(ctx context.Context, r io.Reader, name string, progress func(*capsulev1.Progress)) (*capsulev1.PushResult, error)
	// Prune keeps the images of these normalised references.
	Prune(ctx context.Context, used map[string]bool, dryRun bool) (*capsulev1.PruneResponse, error)
}

type images struct {
	capsulev1.UnimplementedImageServiceServer
	Options
}

func (s *images) cache() (Images, error) {
	if s.Images == nil {
		return nil, fmt.Errorf("the image cache is not there in this mode: %w", errdefs.ErrFailedPrecondition)
	}
	return s.Images, nil
}

// users are the workloads that name each image, by normalised reference: in what is
// declared, and in what serves or is gone back to.
func (s *images) users() (map[string][]string, error) {
	st, err := s.state()
	if err != nil {
		return nil, err
	}
	objs, err := st.List("")
	if err != nil {
		return nil, err
	}
	users := map[string][]string{}
	for _, o := range objs {
		if o.GetWorkload() == nil {
			continue
		}
		standing, err := workload.StandingNow(st, o.GetMeta())
		if err != nil {
			return nil, err
		}
		for _, of := range append(standing, o) {
			ref, name := of.GetWorkload().GetSpec().GetImage(), o.GetMeta().GetName()
			if n, err := image.Normalise(ref); err == nil {
				ref = n
			}
			if ref != "" && !slices.Contains(users[ref], name) {
				users[ref] = append(users[ref], name)
			}
		}
	}
	return users, nil
}

func usersOf(i *capsulev1.Image, users map[string][]string) []string {
	var list []string
	for _, name := range i.GetNames() {
		if n, err := image.Normalise(name); err == nil {
			list = append(list, users[n]...)
		}
	}
	return list
}

func (s *images) List(ctx context.Context, _ *capsulev1.ImageServiceListRequest) (*capsulev1.ImageServiceListResponse, error) {
	cache, err := s.cache()
	if err != nil {
		return nil, err
	}
	list, err := cache.List(ctx)
	if err != nil {
		return nil, err
	}
	users, err := s.users()
	if err != nil {
		return nil, err
	}
	for _, i := range list {
		i.UsedBy = usersOf(i, users)
	}
	return &capsulev1.ImageServiceListResponse{Images: list}, nil
}

func (s *images) Push(stream capsulev1.ImageService_PushServer) error {
	cache, err := s.cache()
	if err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.GetOptions() == nil {
		return fmt.Errorf("a push must begin with its options: %w", errdefs.ErrInvalidArgument)
	}
	archive := &chunks{next: func() ([]byte, error) {
		msg, err := stream.Recv()
		if err == nil && msg.GetOptions() != nil {
			err = fmt.Errorf("a push has its options once: %w", errdefs.ErrInvalidArgument)
		}
		return msg.GetData(), err
	}}
	result, err := cache.Push(stream.Context(), archive, first.GetOptions().GetName(), func(p *capsulev1.Progress) {
		// A client that is gone is seen at the next read.
		_ = stream.Send(&capsulev1.PushResponse{Event: &capsulev1.PushResponse_Progress{Progress: p}})
	})
	if err != nil {
		return err
	}
	users, err := s.users()
	if err != nil {
		return err
	}
	for _, i := range result.GetImages() {
		i.UsedBy = usersOf(i, users)
		for _, user := range i.UsedBy { // those that wait for it need not wait longer
			s.wake(user)
		}
	}
	return stream.Send(&capsulev1.PushResponse{Event: &capsulev1.PushResponse_Result{Result: result}})
}

func (s *images) Prune(ctx context.Context, req *capsulev1.PruneRequest) (*capsulev1.PruneResponse, error) {
	cache, err := s.cache()
	if err != nil {
		return nil, err
	}
	users, err := s.users()
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for ref := range users {
		used[ref] = true
	}
	return cache.Prune(ctx, used, req.GetDryRun())
}

func (s *images) book() (*config.Registries, error) {
	if s.Registries == nil {
		return nil, errNoState
	}
	return s.Registries, nil
}

func (s *images) SetRegistry(ctx context.Context, req *capsulev1.SetRegistryRequest) (*capsulev1.SetRegistryResponse, error) {
	book, err := s.book()
	if err != nil {
		return nil, err
	}
	return &capsulev1.SetRegistryResponse{}, book.Set(ctx, req.GetRegistry(), req.GetPassword())
}

func (s *images) ListRegistries(context.Context, *capsulev1.ListRegistriesRequest) (*capsulev1.ListRegistriesResponse, error) {
	book, err := s.book()
	if err != nil {
		return nil, err
	}
	list, err := book.List()
	return &capsulev1.ListRegistriesResponse{Registries: list}, err
}

func (s *images) DeleteRegistry(ctx context.Context, req *capsulev1.DeleteRegistryRequest) (*capsulev1.DeleteRegistryResponse, error) {
	book, err := s.book()
	if err != nil {
		return nil, err
	}
	return &capsulev1.DeleteRegistryResponse{}, book.Delete(ctx, req.GetHost())
}
