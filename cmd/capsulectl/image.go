package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
)

func newImageCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "image", Aliases: []string{"images"}, Short: "Look after the images on a capsule"}
	cmd.AddCommand(newImageListCommand(a), newImagePushCommand(a), newImagePruneCommand(a))
	return cmd
}

func newImageListCommand(a *app) *cobra.Command {
	return onMany(a, &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the images on the capsule",
		Example: "  capsulectl image list",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.read(cmd.Context(), imageList) },
	})
}

func imageList(ctx context.Context, a *app) (view, error) {
	answer, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.ImageServiceListResponse, error) {
		return c.images.List(ctx, &capsulev1.ImageServiceListRequest{})
	})
	return imageView(answer.GetImages(), "no images"), err
}

func imageView(images []*capsulev1.Image, empty string) view {
	v := view{columns: []string{"NAME", "DIGEST", "SIZE", "AGE", "USED BY"}, empty: empty}
	for _, i := range images {
		names := i.GetNames()
		if len(names) == 0 {
			names = []string{i.GetDigest()}
		}
		v.names, v.values = append(v.names, names...), append(v.values, i)
		v.rows = append(v.rows, []string{
			strings.Join(names, ", "), shortDigest(i.GetDigest()), size(i.GetSize()),
			age(i.GetCreatedAt().AsTime(), time.Now()), strings.Join(i.GetUsedBy(), ", "),
		})
	}
	return v
}

// shortDigest is enough of a digest for people to tell images apart.
func shortDigest(digest string) string {
	const shown = 12
	_, hex, ok := strings.Cut(digest, ":")
	if !ok || len(hex) < shown {
		return digest
	}
	return hex[:shown]
}

func newImagePruneCommand(a *app) *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove images that no workload names",
		Example: "  capsulectl image prune --dry-run",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runImagePrune(cmd.Context(), a, dryRun) },
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show what would be removed")
	return cmd
}

func runImagePrune(ctx context.Context, a *app, dryRun bool) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	// No bound: removing many layers from a slow disk takes its time.
	answer, err := c.images.Prune(ctx, &capsulev1.PruneRequest{DryRun: dryRun})
	if err != nil {
		return err
	}
	if err := a.ui.show(a.output, imageView(answer.GetRemoved(), "")); err != nil {
		return err
	}
	verb := "freed"
	if dryRun {
		verb = "would free"
	}
	a.ui.note("%d images, %s %s", len(answer.GetRemoved()), verb, size(answer.GetFreed()))
	return nil
}
