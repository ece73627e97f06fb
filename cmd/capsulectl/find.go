package main

import (
	"context"
	"fmt"
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

// findByCA gives the address that the capsule with this CA answers from, "" when
// none does.
func findByCA(ctx context.Context, fingerprint string) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	host := ""
	err := mdns.Discover(ctx, func(f mdns.Found) {
		if host == "" && f.Fingerprint == fingerprint && f.Host() != "" {
			host = f.Host()
			cancel()
		}
	})
	return host, err
}
