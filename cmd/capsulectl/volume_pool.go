package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
)

func newVolumePoolCommand(a *app) *cobra.Command {
	var overcommit string
	cmd := &cobra.Command{
		Use: "pool", Short: "Show the space that all volumes share",
		Long: `Shows the space that all volumes share: what is used of it and of its metadata,
and what the volumes may grow to together, which may be more than there is.

Above 80 % the level is "warn"; above 90 % it is "critical" and nothing is made
that takes space; at 100 % it is "full" and writes that need space fail.

--overcommit-max changes how much may be promised, in percent of the size.`,
		Example: `  capsulectl volume pool
  capsulectl volume pool --overcommit-max 400%`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("overcommit-max") {
				return a.read(cmd.Context(), volumePool)
			}
			percent, err := parsePercent(overcommit)
			if err != nil {
				return usage(cmd, err)
			}
			return runVolumeSetPool(cmd.Context(), a, percent)
		},
	}
	cmd.Flags().StringVar(&overcommit, "overcommit-max", "", "what volumes may promise together, such as 400%")
	return onMany(a, cmd)
}

// parsePercent reads "400%".
func parsePercent(text string) (uint32, error) {
	digits, ok := strings.CutSuffix(text, "%")
	n, err := strconv.ParseUint(digits, 10, 32)
	switch {
	case err != nil:
		return 0, fmt.Errorf("want a percentage such as 400%%, found %q", text)
	case !ok:
		return 0, fmt.Errorf("%q has no unit; write %d%%", text, n)
	case n < 100:
		return 0, fmt.Errorf("%q is below 100%%: the pool's own size can always be promised", text)
	}
	return uint32(n), nil
}

func volumePool(ctx context.Context, a *app) (view, error) {
	answer, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.PoolResponse, error) {
		return c.volumes.Pool(ctx, &capsulev1.PoolRequest{})
	})
	return poolView(answer.GetPool()), err
}

func runVolumeSetPool(ctx context.Context, a *app, percent uint32) error {
	answer, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.SetPoolResponse, error) {
		return c.volumes.SetPool(ctx, &capsulev1.SetPoolRequest{OvercommitMax: percent})
	})
	if err != nil {
		return err
	}
	return a.ui.show(a.output, poolView(answer.GetPool()))
}

func poolView(p *capsulev1.Pool) view {
	return view{single: true, names: []string{"pool"}, values: []any{p}, rows: poolFacts(p), summary: &view{
		columns: []string{"LEVEL", "USED", "METADATA", "PROMISED", "MESSAGE"},
		rows: [][]string{{
			levelNames[p.GetLevel()], share(p.GetUsed(), p.GetSize()), percent(p.GetMetadataUsed(), p.GetMetadataSize()),
			fmt.Sprintf("%s, at most %d %%", percent(p.GetPromised(), p.GetSize()), p.GetOvercommitMax()), p.GetMessage(),
		}},
	}}
}

// levelNames of pools; unknown has none.
var levelNames = map[capsulev1.PoolLevel]string{
	capsulev1.PoolLevel_POOL_LEVEL_OK: "ok", capsulev1.PoolLevel_POOL_LEVEL_WARN: "warn",
	capsulev1.PoolLevel_POOL_LEVEL_CRITICAL: "critical", capsulev1.PoolLevel_POOL_LEVEL_FULL: "full",
}

func poolFacts(p *capsulev1.Pool) [][]string {
	return [][]string{
		{"level:", joinState(levelNames[p.GetLevel()], p.GetMessage())},
		{"used:", share(p.GetUsed(), p.GetSize())},
		{"metadata:", share(p.GetMetadataUsed(), p.GetMetadataSize())},
		{"promised:", promisedText(p)},
		{"reserve:", size(p.GetReserve()) + " of the disk, for emergencies"},
	}
}

func promisedText(p *capsulev1.Pool) string {
	return fmt.Sprintf("%s to volumes, %s of the pool's size, at most %d %%", size(p.GetPromised()), percent(p.GetPromised(), p.GetSize()), p.GetOvercommitMax())
}

// share is a part of a whole, for people.
func share(part, whole int64) string {
	return fmt.Sprintf("%s of %s, %s", size(part), size(whole), percent(part, whole))
}

// percent rounds down, so that only what is full shows 100 %.
func percent(part, whole int64) string {
	if whole <= 0 {
		return "0 %"
	}
	return fmt.Sprintf("%d %%", int64(float64(part)/float64(whole)*100))
}

// storageFacts are the lines of "capsule info" for the pool and each volume,
// what needs the operator first, then the largest.
func storageFacts(p *capsulev1.Pool, volumes []*capsulev1.Object) [][]string {
	if p == nil {
		return nil
	}
	level := ""
	if p.GetLevel() > capsulev1.PoolLevel_POOL_LEVEL_OK { // what is wrong stands above, among the problems
		level = levelNames[p.GetLevel()] + "; "
	}
	facts := [][]string{
		{"pool:", level + share(p.GetUsed(), p.GetSize()) + "; metadata " + percent(p.GetMetadataUsed(), p.GetMetadataSize())},
		{"promised:", promisedText(p)},
	}
	slices.SortStableFunc(volumes, byNeed)
	for _, o := range volumes {
		facts = append(facts, []string{"volume " + o.GetMeta().GetName() + ":", volumeText(o)})
	}
	return facts
}

// byNeed sorts failed volumes first, then by the space that they take.
func byNeed(a, b *capsulev1.Object) int {
	failed := func(o *capsulev1.Object) bool {
		return o.GetVolume().GetStatus().GetPhase() == capsulev1.VolumePhase_VOLUME_PHASE_FAILED
	}
	switch {
	case failed(a) != failed(b) && failed(a):
		return -1
	case failed(a) != failed(b):
		return 1
	}
	return int(min(1, max(-1, b.GetVolume().GetStatus().GetUsed()-a.GetVolume().GetStatus().GetUsed())))
}

// volumeText is a volume in one line.
func volumeText(o *capsulev1.Object) string {
	state, message := volumeState(o)
	text := joinState(state, message) + "; " + share(o.GetVolume().GetStatus().GetUsed(), volumeSize(o))
	if holders := o.GetVolume().GetStatus().GetHolders(); len(holders) > 0 {
		text += "; mounted by " + list(holders)
	}
	return text
}
