package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"capsule/internal/mdns"
)

// findMax is how long a capsule is looked for on the network.
const findMax = 5 * time.Second

// findByName gives the address of the one capsule of a name.
func findByName(ctx context.Context, name string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, findMax)
	defer cancel()
	found, err := mdns.Find(ctx, name)
	if errdefs.IsNotFound(err) {
		return "", &failure{exitFailed, err, "its console shows its address: \"capsulectl claim ADDRESS\"; \"capsulectl discover\" shows what answers"}
	}
	if errdefs.IsFailedPrecondition(err) {
		return "", &failure{exitFailed, err, "\"capsulectl discover\" shows each with its fingerprint, which is also on its console"}
	}
	if err == nil && found.Host() == "" {
		err = fmt.Errorf("capsule %q answers, but names no address", name)
	}
	return found.Host(), err
}

// Bounds of looking for the capsule of a CA: how long others are waited for that say
// the same of themselves, and how many addresses are tried in all.
const (
	liarsWait = time.Second
	triesMax  = 32
)

// findByCA gives the addresses of all that say to be the capsule with this CA: what
// anybody can say, and only one can prove.
func findByCA(ctx context.Context, fingerprint string) ([]string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var hosts []string
	err := mdns.Discover(ctx, func(f mdns.Found) {
		if f.Fingerprint != fingerprint {
			return
		}
		if len(hosts) == 0 && len(f.Addresses) > 0 {
			time.AfterFunc(liarsWait, cancel)
		}
		hosts = moreHosts(hosts, f)
	})
	return hosts, err
}

// moreHosts adds all that one has said of where it is: whoever copies all that a
// capsule says is taken for the same one, with two addresses.
func moreHosts(hosts []string, f mdns.Found) []string {
	for _, host := range f.Hosts() {
		if len(hosts) < triesMax && !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	return hosts
}
