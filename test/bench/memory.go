package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"capsule/internal/lab"
)

const memoryMethod = `MemTotal − MemAvailable, which ` + "`capsulectl capsule info`" + ` tells: all that a new program can't have, the
kernel's reserve included. Read when two readings 10 s apart differ by less than 0.5 MiB. The containers are
` + "`examples/web`" + `, a Go program that waits for requests; the share of each holds its own memory, its logger and
its part of the shim that all share. QEMU, one processor.`

const (
	settleEvery = 10 * time.Second
	settleMax   = 3 * time.Minute
	settled     = 0.5 // MiB
	containers  = 5
)

func (b *bench) memory(ctx context.Context) error {
	head("Machine", "Runs", "Used MiB", "Goal")
	idle, err := b.idle(ctx)
	if err != nil {
		return err
	}
	row("512 MiB", "containerd, no container", fmt.Sprintf("%.1f", idle), "≤ 90")
	return b.small(ctx)
}

// idle is the use of a machine that has nothing to do.
func (b *bench) idle(ctx context.Context) (float64, error) {
	m, err := b.up(ctx, lab.Options{Name: "idle", MemoryBytes: 512 * mib, CPUs: 1})
	if m != nil {
		defer b.discard(ctx, m)
	}
	if err != nil {
		return 0, err
	}
	return b.settled(ctx, m)
}

// grown is the use of a machine with no container, with one more each, up to all.
func (b *bench) grown(ctx context.Context, o lab.Options) (used [containers + 1]float64, err error) {
	m, err := b.up(ctx, o)
	if m != nil {
		defer b.discard(ctx, m)
	}
	if err != nil {
		return used, err
	}
	if err := b.push(m); err != nil {
		return used, err
	}
	for i := range used {
		if i > 0 {
			if _, err := b.apply(m, fmt.Sprintf("idle-%d", i)); err != nil {
				return used, err
			}
		}
		if used[i], err = b.settled(ctx, m); err != nil {
			return used, err
		}
	}
	return used, nil
}

// small runs containers on the smallest machine.
func (b *bench) small(ctx context.Context) error {
	used, err := b.grown(ctx, lab.Options{Name: "small", MemoryBytes: 384 * mib, CPUs: 1})
	if err != nil {
		return err
	}
	row("384 MiB", "containerd, one image", fmt.Sprintf("%.1f", used[0]), "")
	row("384 MiB", "1 container", fmt.Sprintf("%.1f", used[1]), "")
	row("384 MiB", fmt.Sprintf("%d containers", containers), fmt.Sprintf("%.1f", used[containers]), "they run")
	row("", "each container after the first", fmt.Sprintf("%.1f", (used[containers]-used[1])/(containers-1)), "≤ 10")
	return nil
}

// settled is what the machine's memory lacks once it changes no more, in MiB.
func (b *bench) settled(ctx context.Context, m *lab.Machine) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, settleMax)
	defer cancel()
	before, err := b.used(m)
	if err != nil {
		return 0, err
	}
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("the used memory does not settle, last %.1f MiB: %w", before, ctx.Err())
		case <-tick.C:
		}
		now, err := b.used(m)
		if err != nil {
			return 0, err
		}
		if d := now - before; d < settled && d > -settled {
			return now, nil
		}
		before = now
	}
}

func (b *bench) used(m *lab.Machine) (float64, error) {
	out, err := b.ctl(m, "capsule", "info", "-o", "json")
	if err != nil {
		return 0, err
	}
	var info struct{ MemoryTotal, MemoryAvailable string }
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		return 0, fmt.Errorf("capsule info: %w", err)
	}
	total, err := strconv.ParseFloat(info.MemoryTotal, 64)
	if err != nil {
		return 0, fmt.Errorf("capsule info: %w", err)
	}
	available, err := strconv.ParseFloat(info.MemoryAvailable, 64)
	return (total - available) / mib, err
}
