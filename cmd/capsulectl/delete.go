package main

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

// DeleteOptions of "delete" and "workload delete".
type DeleteOptions struct {
	Files   []string
	Wait    bool
	Timeout time.Duration
}

func newDeleteCommand(a *app) *cobra.Command {
	var o DeleteOptions
	cmd := &cobra.Command{
		Use:   "delete -f FILE|DIR|- | KIND NAME | KIND/NAME",
		Short: "Remove workloads, volumes and secrets from the capsule",
		Long: `Removes what the manifests name, or one object. A workload is stopped first, with
its stop signal and grace; its volumes stay. Volumes that the manifests name are
removed with their data and snapshots, after the workloads are gone, and so are
secrets; one that a workload names stays. --wait waits until nothing is left.`,
		Example: `  capsulectl delete -f web.yaml
  capsulectl delete container web --wait`,
		Args: cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 0) == (len(o.Files) == 0) {
				return usage(cmd, errors.New("name one object, or manifests with -f"))
			}
			return runDelete(cmd.Context(), a, o, args)
		},
	}
	cmd.Flags().StringArrayVarP(&o.Files, "file", "f", nil, "manifests that name what to remove (repeatable)")
	waitFlags(cmd, &o.Wait, &o.Timeout, "wait until nothing is left")
	return cmd
}

func waitFlags(cmd *cobra.Command, wait *bool, timeout *time.Duration, text string) {
	cmd.Flags().BoolVar(wait, "wait", false, text)
	cmd.Flags().DurationVar(timeout, "timeout", waitDefault, "bound of --wait")
}

func runDelete(ctx context.Context, a *app, o DeleteOptions, args []string) error {
	if len(o.Files) == 0 {
		kind, name, err := kindAndName(args)
		if err != nil {
			return err
		}
		if name == "" && kind == manifest.KindCapsule {
			name = manifest.CapsuleName
		}
		if name == "" {
			return &failure{exitUsage, errors.New("no name given"), "capsulectl delete KIND NAME"}
		}
		return deleteObjects(ctx, a, o, []*capsulev1.Meta{{Kind: kind, Name: name}})
	}
	objects, err := a.readManifests(o.Files)
	if err != nil {
		return err
	}
	var metas []*capsulev1.Meta
	for _, object := range objects {
		metas = append(metas, object.GetMeta())
	}
	return deleteObjects(ctx, a, o, metas)
}

// deleteObjects goes on after one that is absent or can't be removed. Volumes and
// secrets come last: none can be removed while a workload uses it.
func deleteObjects(ctx context.Context, a *app, o DeleteOptions, metas []*capsulev1.Meta) error {
	named := func(m *capsulev1.Meta) bool {
		return m.GetKind() == manifest.KindVolume || m.GetKind() == manifest.KindSecret
	}
	used := slices.DeleteFunc(slices.Clone(metas), func(m *capsulev1.Meta) bool { return !named(m) })
	workloads, errs := deleteEach(ctx, a, slices.DeleteFunc(metas, named))
	if len(workloads) > 0 && (o.Wait || len(used) > 0) {
		if err := a.wait(ctx, o.Timeout, workloads, untilGone); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	gone, more := deleteEach(ctx, a, used)
	errs = append(errs, more...)
	if o.Wait && len(gone) > 0 {
		errs = append(errs, a.wait(ctx, o.Timeout, gone, untilGone))
	}
	return errors.Join(errs...)
}

func deleteEach(ctx context.Context, a *app, metas []*capsulev1.Meta) (deleted []target, errs []error) {
	for _, m := range metas {
		object, err := deleteObject(ctx, a, m)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		a.ui.printf("%s deleted\n", nameOf(object.GetMeta()))
		deleted = append(deleted, targetOf(object))
	}
	return deleted, errs
}

func deleteObject(ctx context.Context, a *app, m *capsulev1.Meta) (*capsulev1.Object, error) {
	found, err := fetchObject(ctx, a, m.GetKind(), m.GetName())
	if err != nil {
		return nil, err
	}
	_, err = call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.DeleteResponse, error) {
		return c.objects.Delete(ctx, &capsulev1.DeleteRequest{Kind: m.GetKind(), Name: m.GetName()})
	})
	return found, err
}
