package server

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/store"
)

// dependencies refuses workloads that would wait for each other for ever. Its
// notes, by uid, name what is waited for and not declared: it may come later.
func dependencies(tx store.View, objs []*capsulev1.Object) (notes map[string][]string, err error) {
	all, err := tx.List("")
	if err != nil {
		return nil, err
	}
	on := map[string][]string{}
	for _, o := range all {
		if o.GetWorkload() != nil && o.GetMeta().GetDeletedAt() == nil {
			on[o.GetMeta().GetName()] = o.GetWorkload().GetSpec().GetDependsOn()
		}
	}
	notes = map[string][]string{}
	for _, o := range objs {
		if o.GetWorkload() == nil {
			continue
		}
		if circle := circleOf(o.GetMeta().GetName(), on); circle != nil {
			return nil, fmt.Errorf("dependsOn of workload %q: none would ever start, as each waits for the next: %s; take one of these out: %w",
				circle[0], strings.Join(circle, " → "), errdefs.ErrInvalidArgument)
		}
		for _, name := range o.GetWorkload().GetSpec().GetDependsOn() {
			if _, declared := on[name]; !declared {
				notes[o.GetMeta().GetUid()] = append(notes[o.GetMeta().GetUid()],
					fmt.Sprintf("it waits for workload %q, which is not declared", name))
			}
		}
	}
	return notes, nil
}

// circleOf is the shortest way from a workload over what it waits for back to
// itself, its name at both ends; nil when there is none.
func circleOf(start string, on map[string][]string) []string {
	came := map[string]string{} // from where each was first reached
	queue := []string{start}
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		for _, next := range on[at] {
			if next == start {
				circle := []string{start}
				for ; at != start; at = came[at] {
					circle = append(circle, at)
				}
				circle = append(circle, start)
				slices.Reverse(circle)
				return circle
			}
			if _, seen := came[next]; !seen {
				came[next] = at
				queue = append(queue, next)
			}
		}
	}
	return nil
}
