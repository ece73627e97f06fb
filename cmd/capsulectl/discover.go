package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"capsule/internal/contexts"
	"capsule/internal/identity"
	"capsule/internal/mdns"
)

const (
	discoverDefault = 3 * time.Second
	discoverMax     = 5 * time.Minute
)

func newDiscoverCommand(a *app) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "discover", Short: "Show the capsules that answer on this network",
		Long: `Asks on all networks of this machine, by mDNS, and shows each capsule that
answers: whether it is anybody's yet, where it is, which of the contexts here is
for it, and the fingerprint of its CA, which its console shows too.

Anybody on the network can answer. What counts is proven afterwards: by the code
of the console when a capsule is claimed, by its certificate ever after.`,
		Example: `  capsulectl discover
  capsulectl discover --timeout 10s -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if timeout <= 0 || timeout > discoverMax {
				return usage(cmd, fmt.Errorf("timeout %v: want more than 0, and at most %v", timeout, discoverMax))
			}
			return runDiscover(cmd.Context(), a, timeout)
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", discoverDefault, "how long to wait for answers")
	return cmd
}

func runDiscover(ctx context.Context, a *app, timeout time.Duration) error {
	known, err := knownCapsules(a)
	if err != nil {
		return err
	}
	found, err := discover(ctx, timeout)
	if err != nil {
		return err
	}
	if err := a.ui.show(a.output, foundView(found, known)); err != nil || a.output != formatTable {
		return err
	}
	for _, line := range nextSteps(found, known) {
		a.ui.note("%s", line)
	}
	return nil
}

// discover waits for the whole time: nobody knows how many will answer.
func discover(ctx context.Context, timeout time.Duration) ([]mdns.Found, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	type key struct{ id, name, fingerprint string }
	all := map[key]mdns.Found{}
	if err := mdns.Discover(ctx, func(f mdns.Found) { all[key{f.ID, f.Name, f.Fingerprint}] = f }); err != nil {
		return nil, err
	}
	return slices.SortedFunc(maps.Values(all), func(a, b mdns.Found) int {
		return strings.Compare(a.Name+"\x00"+a.ID, b.Name+"\x00"+b.ID)
	}), nil
}

// knownCapsules are the contexts of this machine, by the fingerprint of their CA.
func knownCapsules(a *app) (map[string]string, error) {
	store, err := contexts.Open("")
	if err != nil {
		return nil, err
	}
	names, err := store.List()
	if err != nil {
		return nil, err
	}
	known := map[string]string{}
	for _, name := range names {
		c, err := store.Get(name)
		if err != nil {
			a.ui.warn(err.Error())
			continue
		}
		if ca, err := c.Authority(); err == nil {
			known[identity.Fingerprint(ca)] = name
		}
	}
	return known, nil
}

// foundFacts is a capsule as -o json shows it.
type foundFacts struct {
	Name        string   `json:"name"`
	ID          string   `json:"id"`
	State       string   `json:"state"`
	Host        string   `json:"host"`
	Addresses   []string `json:"addresses"`
	Version     string   `json:"version"`
	Context     string   `json:"context,omitempty"`
	Fingerprint string   `json:"fingerprint"`
}

func foundView(found []mdns.Found, known map[string]string) view {
	v := view{
		columns: []string{"NAME", "STATE", "HOST", "VERSION", "CONTEXT", "FINGERPRINT"},
		empty:   "no capsule answers on this network; one that shows an address on its console can be named by it, as in \"capsulectl claim ADDRESS\"",
	}
	for _, f := range found {
		context := known[f.Fingerprint]
		facts := foundFacts{f.Name, f.ID, f.State, f.Host(), nil, f.Version, context, f.Fingerprint}
		for _, addr := range f.Addresses {
			facts.Addresses = append(facts.Addresses, addr.String())
		}
		v.names = append(v.names, f.Name)
		v.rows = append(v.rows, []string{f.Name, f.State, f.Host(), f.Version, context, f.Fingerprint})
		v.values = append(v.values, facts)
	}
	return v
}

// nextSteps say how to go on with each capsule that has no context here.
func nextSteps(found []mdns.Found, known map[string]string) []string {
	times := map[string]int{}
	for _, f := range found {
		times[strings.ToLower(f.Name)]++
	}
	var lines []string
	for _, f := range found {
		ours := known[f.Fingerprint] != ""
		if ours && f.State != mdns.Installer {
			continue
		}
		name := f.Name
		if times[strings.ToLower(name)] > 1 {
			name = f.Host()
		}
		switch f.State {
		case mdns.Unclaimed:
			lines = append(lines, fmt.Sprintf("%s is nobody's yet: \"capsulectl claim %s\" takes it, with the code on its console", f.Name, name))
		case mdns.Installer:
			line := fmt.Sprintf("%s waits to be installed: \"capsulectl install %s\" goes on", f.Name, name)
			if !ours {
				line += ", with the code on its console"
			}
			lines = append(lines, line)
		case mdns.Claimed:
			lines = append(lines, fmt.Sprintf("%s is somebody's: \"capsulectl access request\" begins to ask one of its admins for access", f.Name))
		}
		if !ours && slices.Contains(slices.Collect(maps.Values(known)), f.Name) {
			lines = append(lines, fmt.Sprintf("warning: this %s is another capsule than the one of the context %s, or was installed anew", f.Name, f.Name))
		}
	}
	return lines
}
