package main

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

func newGetCommand(a *app) *cobra.Command {
	return onMany(a, &cobra.Command{
		Use:   "get [KIND [NAME] | KIND/NAME]",
		Short: "Show what is declared and how it stands",
		Long: `Shows all objects, those of one kind, or one. Kinds are container, microvm,
volume, secret, capsule, which is the machine itself, and workload, which is a
container or a microvm. Of a secret only the names of its values are shown.

-o yaml prints manifests that can be applied again; -o json prints all that the
capsule knows.`,
		Example: `  capsulectl get
  capsulectl get container web -o yaml
  capsulectl get volumes --all`,
		Args: cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error { return runGet(cmd.Context(), a, args) },
	})
}

func runGet(ctx context.Context, a *app, args []string) error {
	if len(args) == 0 {
		return a.read(ctx, listAll)
	}
	kind, name, err := kindAndName(args)
	if err != nil {
		return err
	}
	if name == "" {
		return a.read(ctx, listing(kind))
	}
	return a.read(ctx, getting(kind, name))
}

// listAll reads all that is declared, the machine included, as far as the capsule knows
// of that.
func listAll(ctx context.Context, a *app) (view, error) {
	objects, err := fetchObjects(ctx, a, "")
	if err != nil {
		return view{}, err
	}
	machine, err := fetchObjects(ctx, a, manifest.KindCapsule)
	if err != nil && grpcstatus.Code(err) != codes.InvalidArgument {
		return view{}, err
	}
	objects = append(objects, machine...)
	return listView(objects, "no workloads and no volumes; \"capsulectl apply -f FILE\" makes some")
}

const noVolumes = "no volumes; \"capsulectl volume create NAME --size SIZE\" makes one"

// listing reads all objects of a kind; "" are workloads of either.
func listing(kind string) reading {
	return func(ctx context.Context, a *app) (view, error) {
		objects, err := fetchObjects(ctx, a, kind)
		if err != nil {
			return view{}, err
		}
		if kind == manifest.KindVolume {
			return listView(objects, noVolumes)
		}
		if kind == manifest.KindSecret {
			return listView(objects, "no secrets; \"capsulectl apply -f FILE\" of kind Secret makes some")
		}
		if kind == manifest.KindCapsule {
			return listView(objects, "the machine is as it comes; \"capsulectl apply -f FILE\" of kind Capsule configures it")
		}
		objects = slices.DeleteFunc(objects, func(o *capsulev1.Object) bool { return o.GetWorkload() == nil })
		return listView(objects, "no workloads; \"capsulectl apply -f FILE\" makes some")
	}
}

// fetchObjects gives the objects of a kind, or of all.
func fetchObjects(ctx context.Context, a *app, kind string) ([]*capsulev1.Object, error) {
	answer, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.ListResponse, error) {
		return c.objects.List(ctx, &capsulev1.ListRequest{Kind: kind})
	})
	return answer.GetObjects(), err
}

func listView(objects []*capsulev1.Object, empty string) (view, error) {
	v, err := objectView(objects, time.Now())
	v.empty = empty
	return v, err
}

// getting reads one object.
func getting(kind, name string) reading {
	return func(ctx context.Context, a *app) (view, error) {
		o, err := fetchObject(ctx, a, kind, name)
		if err != nil {
			return view{}, err
		}
		v, err := objectView([]*capsulev1.Object{o}, time.Now())
		v.single = true
		return v, err
	}
}

// fetchObject gives one object; kind "" is a workload of either kind.
func fetchObject(ctx context.Context, a *app, kind, name string) (*capsulev1.Object, error) {
	answer, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.GetResponse, error) {
		return c.objects.Get(ctx, &capsulev1.GetRequest{Kind: kind, Name: name})
	})
	return answer.GetObject(), err
}
