package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/run"
)

const rollbackMethod = `Systems that are broken in one way each are pushed to a machine of 1 GiB and two processors. The time is from the
reset that starts the new system to the first answer of the old one, with all tries and restarts between; QEMU
tells of resets. A panic waits 10 s before it restarts. Seconds of this computer, so that its load counts: the
share of a plain restart, from its reset to the first answer, in the same run is what to look at.`

// broken systems, with flags of the image builder.
var broken = []struct {
	why   string
	name  string
	flags []string
	goal  string
}{
	{"kernel panics", "panic", []string{"-append", "rdinit=/absent"}, "≤ 60 s on hardware"},
	{"first stage finds no root", "no-root", []string{"-root-hash", strings.Repeat("0", 64)}, "≤ 60 s on hardware"},
	{"`capsuled serve` exits", "serve-exits", []string{"-move", "usr/bin/capsuled=usr/bin/capsuled.real", "-append", "capsule.fault=serve-exits"}, "≤ 3 min"},
}

func (b *bench) rollback(ctx context.Context) error {
	systems, err := b.brokenSystems(ctx)
	if err != nil {
		return err
	}
	u, err := b.forUpdates(ctx, "rollback")
	defer b.endUpdates(ctx, u)
	if err != nil {
		return err
	}
	head("What is wrong", "starts of the new system", "seconds", "share of a plain restart", "Goal")
	row("nothing: a plain restart", "", wholeSeconds(u.plain.boots()), 1, "")
	for i, s := range systems {
		if _, err := b.ctl(u.Machine, "capsule", "update", "push", "--force", "--wait=false", s.path); err != nil {
			return err
		}
		over, err := u.back(ctx, func(i *capsulev1.InfoResponse) bool { return i.GetVersion() != s.Manifest.Version })
		if err != nil {
			return fmt.Errorf("%s: %w", broken[i].why, err)
		}
		row(broken[i].why, len(over.resets)-1, wholeSeconds(over.boots()),
			fmt.Sprintf("%.1f", over.boots().Seconds()/u.plain.boots().Seconds()), broken[i].goal)
	}
	return nil
}

// brokenSystems makes the bundles, all of one version.
func (b *bench) brokenSystems(ctx context.Context) (systems []*system, err error) {
	built, err := b.built(ctx)
	if err != nil {
		return nil, err
	}
	overlay := filepath.Join(b.dir, "broken")
	const compileMax = 10 * time.Minute
	if _, err := run.Output(ctx, compileMax, "env", "CGO_ENABLED=0", "go", "-C", b.repository, "build", "-trimpath", "-buildvcs=false",
		"-o", filepath.Join(overlay, "usr/bin/capsuled"), "./test/machine/faults/capsuled"); err != nil {
		return nil, err
	}
	for _, k := range broken {
		flags := append(after(built, "broken"), k.flags...)
		if k.name == "serve-exits" {
			flags = append(flags, "-overlay", overlay)
		}
		s, err := b.variant(ctx, k.name, flags...)
		if err != nil {
			return nil, err
		}
		systems = append(systems, s)
	}
	return systems, nil
}
