package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

const peersMemoryMethod = `As under Memory, of the whole machine: 1 GiB, one processor, the image in the cache, no published ports. On each
side sshd or the API waits for an operator, and nothing but the engine and its containers runs.`

func (b *bench) peersMemory(ctx context.Context) error {
	ours, err := b.grown(ctx, peerOptions("peers-memory", peerMemory, false))
	if err != nil {
		return err
	}
	theirs, err := each(ctx, func(ctx context.Context, p peer) (used [3]float64, err error) {
		r, err := b.runPeer(ctx, p, peerMachine{memory: peerMemory, scenario: "memory"})
		if err != nil {
			return used, err
		}
		for i, n := range []string{"0", "1", "5"} {
			if used[i], err = r.used(n); err != nil {
				return used, err
			}
		}
		return used, nil
	})
	if err != nil {
		return err
	}
	var c comparison
	for i, row := range []struct {
		what string
		ours float64
	}{{"**idle, no container**, MiB", ours[0]}, {"1 container, MiB", ours[1]}, {"5 containers, MiB", ours[containers]}} {
		c.add(row.what, "%.1f", row.ours, column(theirs, func(used [3]float64) float64 { return used[i] }))
	}
	c.add("each container after the first, MiB", "%.1f", (ours[containers]-ours[1])/(containers-1),
		column(theirs, func(used [3]float64) float64 { return (used[2] - used[1]) / (containers - 1) }))
	return b.tell("peers-memory", &c)
}

const peersFiftyMethod = `Fifty containers without published ports on 2 GiB and one processor, ` + "`-icount shift=0`" + `: one manifest with fifty
documents, or fifty commands ` + "`run -d`" + ` one after the other. The time is from the stamp of the first order to that of the
last start, by the engine's own stamps. Memory is that of Memory.`

const fifty = 50

// crowd is a machine with fifty containers.
type crowd struct {
	took          time.Duration
	before, after float64 // MiB
	running       float64
}

func (b *bench) peersFifty(ctx context.Context) error {
	ours, err := b.capsuleFifty(ctx)
	if err != nil {
		return err
	}
	theirs, err := each(ctx, func(ctx context.Context, p peer) (crowd, error) {
		r, err := b.runPeer(ctx, p, peerMachine{memory: peerManyMemory, icount: true, scenario: "fifty"})
		if err != nil {
			return crowd{}, err
		}
		return r.crowd()
	})
	if err != nil {
		return err
	}
	var c comparison
	c.add("containers that run in the end, of 50", "%.0f", ours.running, column(theirs, func(c crowd) float64 { return c.running }))
	c.add("**from the first order until all run**", "%.1f s", ours.took.Seconds(), column(theirs, func(c crowd) float64 { return c.took.Seconds() }))
	c.add("used memory, all running, MiB", "%.0f", ours.after, column(theirs, func(c crowd) float64 { return c.after }))
	c.add("of that, each container, MiB", "%.1f", (ours.after-ours.before)/fifty, column(theirs, func(c crowd) float64 { return (c.after - c.before) / fifty }))
	return b.tell("peers-fifty", &c)
}

func (r record) crowd() (c crowd, err error) {
	var errs [4]error
	c.before, errs[0] = r.used("0")
	c.after, errs[1] = r.used(fmt.Sprint(fifty))
	count, err := r.first("running")
	errs[2] = err
	if err == nil {
		c.running, errs[3] = count.number("count")
	}
	if err := errors.Join(errs[:]...); err != nil {
		return c, err
	}
	first, err1 := r.containers("c-1")
	last, err2 := r.containers(fmt.Sprintf("c-%d", fifty))
	if err := errors.Join(err1, err2); err != nil {
		return c, err
	}
	if len(first) != 1 || len(last) != 1 || first[0].created.IsZero() || last[0].started.IsZero() {
		return c, fmt.Errorf("the first or the last container was not started; %s", r.tail())
	}
	c.took = last[0].started.Sub(first[0].created)
	return c, nil
}

func (b *bench) capsuleFifty(ctx context.Context) (r crowd, err error) {
	c, err := b.withImage(ctx, peerOptions("peers-fifty", peerManyMemory, true))
	defer b.end(ctx, c)
	if err != nil {
		return r, err
	}
	if r.before, err = b.settled(ctx, c.machine); err != nil {
		return r, err
	}
	var manifests []string
	for i := range fifty {
		manifests = append(manifests, manifestOf(fmt.Sprintf("c-%d", i+1), ""))
	}
	if err := b.applyText(c.machine, "fifty", strings.Join(manifests, "---\n")); err != nil {
		return r, err
	}
	all, err := c.containers(ctx)
	if err != nil {
		return r, err
	}
	if r.after, err = b.settled(ctx, c.machine); err != nil {
		return r, err
	}
	r.took, r.running = spanOf(all), float64(running(all))
	return r, nil
}
