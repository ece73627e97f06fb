package main

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

func newGetCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "get [KIND [NAME] | KIND/NAME]",
		Short: "Show what is declared and how it stands",
		Long: `Shows all objects, those of one kind, or one. Kinds are container, microvm,
volume, and workload, which is a container or a microvm.

-o yaml prints manifests that can be applied again; -o json prints all that the
capsule knows.`,
		Example: `  capsulectl get
  capsulectl get container web -o yaml`,
		Args: cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error { return runGet(cmd.Context(), a, args) },
	}
}

func runGet(ctx context.Context, a *app, args []string) error {
	if len(args) == 0 {
		return listAll(ctx, a)
	}
	kind, name, err := kindAndName(args)
	if err != nil {
		return err
	}
	if name == "" {
		return listObjects(ctx, a, kind)
	}
	return getObject(ctx, a, kind, name)
}

// listAll shows all that is declared.
func listAll(ctx context.Context, a *app) error {
	objects, err := fetchObjects(ctx, a, "")
	if err != nil {
		return err
	}
	return showObjects(a, objects, "no workloads and no volumes; \"capsulectl apply -f FILE\" makes some")
}

const noVolumes = "no volumes; \"capsulectl volume create NAME --size SIZE\" makes one"

// listObjects shows all objects of a kind; "" are workloads of either.
func listObjects(ctx context.Context, a *app, kind string) error {
	objects, err := fetchObjects(ctx, a, kind)
	if err != nil {
		return err
	}
	if kind == manifest.KindVolume {
		return showObjects(a, objects, noVolumes)
	}
	objects = slices.DeleteFunc(objects, isVolume)
	return showObjects(a, objects, "no workloads; \"capsulectl apply -f FILE\" makes some")
}

// fetchObjects gives the objects of a kind, or of all.
func fetchObjects(ctx context.Context, a *app, kind string) ([]*capsulev1.Object, error) {
	answer, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.ListResponse, error) {
		return c.objects.List(ctx, &capsulev1.ListRequest{Kind: kind})
	})
	return answer.GetObjects(), err
}

func showObjects(a *app, objects []*capsulev1.Object, empty string) error {
	v, err := objectView(objects, time.Now())
	if err != nil {
		return err
	}
	v.empty = empty
	return a.ui.show(a.output, v)
}

func getObject(ctx context.Context, a *app, kind, name string) error {
	o, err := fetchObject(ctx, a, kind, name)
	if err != nil {
		return err
	}
	v, err := objectView([]*capsulev1.Object{o}, time.Now())
	if err != nil {
		return err
	}
	v.single = true
	return a.ui.show(a.output, v)
}

// fetchObject gives one object; kind "" is a workload of either kind.
func fetchObject(ctx context.Context, a *app, kind, name string) (*capsulev1.Object, error) {
	answer, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.GetResponse, error) {
		return c.objects.Get(ctx, &capsulev1.GetRequest{Kind: kind, Name: name})
	})
	return answer.GetObject(), err
}
