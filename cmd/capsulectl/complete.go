package main

import (
	"context"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/contexts"
)

// completeMax is how long a shell waits for names: whoever presses TAB does not wait
// longer. What is not there by then, or fails, completes to nothing.
const completeMax = time.Second

// lister gives those that an argument may have.
type lister func(ctx context.Context, a *app) []string

// completion is what the arguments of a command may be.
type completion struct {
	names lister
	many  bool // of all arguments, not of the first one only
}

// completions of commands by their paths below capsulectl.
func completions() map[string]completion {
	return map[string]completion{
		"context use": {contextNames, false}, "context delete": {contextNames, false},
		"workload get": {workloadNames, false}, "workload logs": {workloadNames, false}, "workload exec": {workloadNames, false},
		"workload start": {workloadNames, true}, "workload stop": {workloadNames, true}, "workload restart": {workloadNames, true},
		"workload delete": {workloadNames, true}, "workload history": {workloadNames, false}, "workload rollback": {workloadNames, false},
		"volume get": {volumeNames, false}, "volume resize": {volumeNames, false}, "volume delete": {volumeNames, true},
		"volume snapshot": {volumeNames, false}, "volume snapshots": {volumeNames, false}, "volume delete-snapshot": {volumeNames, false},
		"volume restore": {volumeNames, false}, "volume clone": {volumeNames, false}, "volume export": {volumeNames, false},
		"get": {kindNames, false}, "delete": {kindNames, false},
	}
}

// addCompletions tells the shells what arguments may be.
func addCompletions(a *app, root *cobra.Command) {
	args := completions()
	for _, cmd := range all(root) {
		path := strings.TrimPrefix(cmd.CommandPath(), root.Name()+" ")
		if c, ok := args[path]; ok {
			cmd.ValidArgsFunction = complete(a, func(given int) lister {
				switch {
				case c.many || given == 0:
					return c.names
				case path == "get" || path == "delete":
					return objectNames(cmd)
				}
				return nil
			})
		}
	}
	must(root.RegisterFlagCompletionFunc("capsule", complete(a, func(int) lister { return contextNames })))
	must(root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp)))
}

// complete gives the names that begin as what was typed, those given already left out.
// Nothing is ever printed: it would land in somebody's command line.
func complete(a *app, which func(given int) lister) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		list := which(len(args))
		if list == nil {
			return nil, cobra.ShellCompDirectiveDefault
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completeMax)
		defer cancel()
		quiet := &app{ui: &ui{in: strings.NewReader(""), out: io.Discard, err: io.Discard}, capsule: a.capsule, output: formatTable}
		found := make(chan []string, 1)
		go func() { // to open a keychain may take a person
			defer quiet.close()
			found <- list(ctx, quiet)
		}()
		var all []string
		select {
		case all = <-found:
		case <-ctx.Done():
		}
		return slices.DeleteFunc(all, func(name string) bool {
			return !strings.HasPrefix(name, begun) || slices.Contains(args, name)
		}), cobra.ShellCompDirectiveNoFileComp
	}
}

func contextNames(context.Context, *app) []string {
	store, err := contexts.Open("")
	if err != nil {
		return nil
	}
	list, err := store.List()
	if err != nil {
		return nil
	}
	return list
}

func workloadNames(ctx context.Context, a *app) []string {
	return declared(ctx, a, func(o *capsulev1.Object) bool { return o.GetWorkload() != nil })
}

func volumeNames(ctx context.Context, a *app) []string {
	return declared(ctx, a, func(o *capsulev1.Object) bool { return o.GetVolume() != nil })
}

// kindNames are what "get" takes first.
func kindNames(context.Context, *app) []string {
	list := []string{"workload"}
	for _, kind := range manifest.Kinds() {
		list = append(list, strings.ToLower(kind))
	}
	slices.Sort(list)
	return list
}

// objectNames are those of the kind that was given first.
func objectNames(cmd *cobra.Command) lister {
	kind := strings.TrimSuffix(strings.ToLower(cmd.Flags().Arg(0)), "s")
	return func(ctx context.Context, a *app) []string {
		return declared(ctx, a, func(o *capsulev1.Object) bool {
			return strings.ToLower(o.GetMeta().GetKind()) == kind || (kind == "workload" && o.GetWorkload() != nil)
		})
	}
}

// declared are the names of objects on the one capsule that is meant; none when it does
// not answer at once.
func declared(ctx context.Context, a *app, is func(*capsulev1.Object) bool) []string {
	if a.many() {
		return nil
	}
	objects, err := fetchObjects(ctx, a, "")
	if err != nil {
		return nil
	}
	var list []string
	for _, o := range objects {
		if is(o) {
			list = append(list, o.GetMeta().GetName())
		}
	}
	return list
}
