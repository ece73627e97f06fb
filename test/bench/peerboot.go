package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/lab"
)

const peersBootMethod = `Seconds since the kernel's start, as under Boot: 1 GiB, one processor, ` + "`-icount shift=0`" + `, not the first
start of this disk. A capsule is able to run a container when its API and containerd answer, Docker when systemd
has docker.service as active, which the daemon says itself once it serves, and Podman, which has no daemon, when
systemd begins to start services (basic.target).`

// bootTimes are since the kernel's start.
type bootTimes struct{ init, able time.Duration }

func (b *bench) peersBoot(ctx context.Context) error {
	ours, err := b.capsuleBoot(ctx)
	if err != nil {
		return err
	}
	theirs, err := each(ctx, func(ctx context.Context, p peer) (t bootTimes, err error) {
		r, err := b.runPeer(ctx, p, peerMachine{memory: peerMemory, icount: true, scenario: "boot"})
		if err != nil {
			return t, err
		}
		if _, err := r.span("first"); err != nil { // it is as able as it says
			return t, err
		}
		t.init, t.able, err = r.able()
		return t, err
	})
	if err != nil {
		return err
	}
	var c comparison
	c.add("process 1 runs", "%.2f s", ours.init.Seconds(), column(theirs, func(t bootTimes) float64 { return t.init.Seconds() }))
	c.add("**able to run a container**", "%.2f s", ours.able.Seconds(), column(theirs, func(t bootTimes) float64 { return t.able.Seconds() }))
	return b.tell("peers-boot", &c)
}

// runPeer starts a peer that was prepared, on a disk that is thrown away.
func (b *bench) runPeer(ctx context.Context, p peer, m peerMachine) (record, error) {
	d, err := b.prepared(ctx, p)
	if err != nil {
		return record{}, err
	}
	m.peer, m.debian = p, d
	return m.run(ctx, nil)
}

// capsuleBoot is the second start of a capsule.
func (b *bench) capsuleBoot(ctx context.Context) (t bootTimes, err error) {
	m, err := lab.Create(ctx, b.options(peerOptions("peers-boot", peerMemory, true)))
	if err != nil {
		return t, err
	}
	defer b.discard(ctx, m)
	var told []string
	for range 2 {
		if told, err = b.oneBoot(ctx, m); err != nil {
			return t, err
		}
	}
	for i, stage := range stages {
		seconds, err := strconv.ParseFloat(told[i], 64)
		if err != nil {
			return t, fmt.Errorf("%s: %w", stage.label, err)
		}
		at := time.Duration(seconds * float64(time.Second))
		switch stage.label {
		case stageInit:
			t.init = at
		case stageAPI, stageContainerd:
			t.able = max(t.able, at)
		}
	}
	return t, nil
}

const peersStartMethod = `Six containers one after the other, the image in the cache, as under Start of a container: 1 GiB, one processor,
` + "`-icount shift=0`" + `, no published ports, each engine's usual network. From order to start is between the engine's own
stamps: when it took the container to be, and when its program was started. The whole command is
` + "`docker run -d`" + ` and ` + "`podman run -d`" + ` as typed on the machine, and ` + "`capsulectl apply --wait`" + ` on another computer, which is
this one, by the capsule's clock: a connection with TLS and its two ways are in it, and this computer's load.`

const peerStarts = 6

// startTimes of containers, the first since the machine's start and the middle of the
// others.
type startTimes struct{ order, command [2]time.Duration }

func (b *bench) peersStart(ctx context.Context) error {
	ours, err := b.capsuleStarts(ctx)
	if err != nil {
		return err
	}
	theirs, err := each(ctx, func(ctx context.Context, p peer) (startTimes, error) {
		r, err := b.runPeer(ctx, p, peerMachine{memory: peerMemory, icount: true, scenario: "start"})
		if err != nil {
			return startTimes{}, err
		}
		return r.starts()
	})
	if err != nil {
		return err
	}
	var c comparison
	for i, which := range []string{"the first since the machine's start", "**the middle of the next five**"} {
		c.add("from order to start, "+which, "%.2f s", ours.order[i].Seconds(), column(theirs, func(t startTimes) float64 { return t.order[i].Seconds() }))
	}
	for i, which := range []string{"the first", "the middle of the next five"} {
		c.add("the whole command, "+which, "%.2f s", ours.command[i].Seconds(), column(theirs, func(t startTimes) float64 { return t.command[i].Seconds() }))
	}
	return b.tell("peers-start", &c)
}

// firstAndMiddle of what was measured in turn; there are at least two.
func firstAndMiddle(all []time.Duration) [2]time.Duration {
	rest := slices.Sorted(slices.Values(all[1:]))
	return [2]time.Duration{all[0], rest[len(rest)/2]}
}

func (r record) starts() (t startTimes, err error) {
	var order, command []time.Duration
	for i := range peerStarts {
		name := fmt.Sprintf("c-%d", i)
		took, err := r.span(name)
		if err != nil {
			return t, err
		}
		told, err := r.containers(name)
		if err != nil {
			return t, err
		}
		if len(told) != 1 || !told[0].running {
			return t, fmt.Errorf("container %q does not run; %s", name, r.tail())
		}
		order, command = append(order, told[0].started.Sub(told[0].created)), append(command, took)
	}
	return startTimes{firstAndMiddle(order), firstAndMiddle(command)}, nil
}

func (b *bench) capsuleStarts(ctx context.Context) (t startTimes, err error) {
	c, err := b.withImage(ctx, peerOptions("peers-start", peerMemory, true))
	defer b.end(ctx, c)
	if err != nil {
		return t, err
	}
	var order, command []time.Duration
	for i := range peerStarts {
		name := fmt.Sprintf("c-%d", i)
		took, err := b.timedApply(ctx, c, name, manifestOf(name, ""))
		if err != nil {
			return t, err
		}
		all, err := c.containers(ctx)
		if err != nil {
			return t, err
		}
		begin, err := b.runcStart(c.machine, name)
		if err != nil {
			return t, err
		}
		order, command = append(order, all[name].started.Sub(all[name].created)+begin), append(command, took)
	}
	return startTimes{firstAndMiddle(order), firstAndMiddle(command)}, nil
}

// runcStart is how long runc's start took: the capsule's stamp is from before it.
func (b *bench) runcStart(m *lab.Machine, name string) (time.Duration, error) {
	log, err := b.ctl(m, "capsule", "logs", "capsuled")
	if err != nil {
		return 0, err
	}
	parts, err := split(log, name)
	if err != nil {
		return 0, err
	}
	return parts[len(parts)-1], nil
}

// timedApply applies manifests and waits; the time is by the capsule's clock.
func (b *bench) timedApply(ctx context.Context, c *capsule, name, manifests string) (time.Duration, error) {
	before, err1 := c.info(ctx)
	err2 := b.applyText(c.machine, name, manifests)
	after, err3 := c.info(ctx)
	return after.GetTime().AsTime().Sub(before.GetTime().AsTime()), errors.Join(err1, err2, err3)
}

// earliest and latest of some containers' stamps.
func spanOf(all map[string]container) time.Duration {
	var created, started []time.Time
	for _, c := range all {
		created, started = append(created, c.created), append(started, c.started)
	}
	byTime := func(a, b time.Time) int { return cmp.Compare(a.UnixNano(), b.UnixNano()) }
	return slices.MaxFunc(started, byTime).Sub(slices.MinFunc(created, byTime))
}

// running counts those that run.
func running(all map[string]container) (n int) {
	for _, c := range all {
		if c.running {
			n++
		}
	}
	return n
}

// fromObjects gives workloads as containers.
func fromObjects(objects []*capsulev1.Object) map[string]container {
	all := map[string]container{}
	for _, o := range objects {
		st := o.GetWorkload().GetStatus()
		c := container{created: o.GetMeta().GetCreatedAt().AsTime(), running: st.GetPhase() == capsulev1.Phase_PHASE_RUNNING}
		if st.GetStartedAt() != nil {
			c.started = st.GetStartedAt().AsTime()
		}
		if st.GetFinishedAt() != nil {
			c.finished = st.GetFinishedAt().AsTime()
		}
		all[o.GetMeta().GetName()] = c
	}
	return all
}
