package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"capsule/internal/await"
	"capsule/internal/mdns"
	"capsule/internal/state"
)

// Bounds of looking for the machine that a capsule was restored from.
const (
	twinEvery = 10 * time.Minute
	twinMax   = 3 * time.Second // of one look
)

// watchTwin tells when the machine that this capsule was restored from is on the network
// too: nobody can tell the two apart by what they prove. Other capsules have no twin.
func (d *daemon) watchTwin(ctx context.Context) {
	if r, err := state.ReadRestored(permDir); err != nil || r == nil {
		return
	}
	told := netip.Addr{}
	for await.Pause(ctx, twinEvery) == nil {
		at := d.twin(ctx)
		if at.IsValid() && at != told {
			slog.Warn("another machine says to be this capsule", "address", at)
			d.note("twin", fmt.Sprintf("another machine at %s says to be this capsule, as the one does that it was restored from: switch that off, and erase its disk", at))
		}
		told = at
	}
}

// twin is where another machine says to have our CA. Our own answers are heard too.
func (d *daemon) twin(ctx context.Context) netip.Addr {
	ctx, cancel := context.WithTimeout(ctx, twinMax)
	defer cancel()
	ours, found := d.machine.id.Fingerprint(), netip.Addr{}
	err := mdns.Discover(ctx, func(f mdns.Found) {
		if f.Fingerprint == ours && !found.IsValid() {
			found = elsewhere(f.Addresses, d.machine.uplink().Addresses)
		}
	})
	if err != nil {
		slog.Error("look for the machine that this capsule was restored from", "error", err)
	}
	return found
}

// elsewhere is the first IPv4 address that is none of ours: those of IPv6 come and go.
func elsewhere(said []netip.Addr, ours []netip.Prefix) netip.Addr {
	for _, a := range said {
		mine := slices.ContainsFunc(ours, func(p netip.Prefix) bool { return p.Addr() == a })
		if a.Is4() && !mine {
			return a
		}
	}
	return netip.Addr{}
}
