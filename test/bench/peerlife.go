package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/await"
)

const peersDaemonMethod = `Five containers that are to run always, 1 GiB, one processor, ` + "`-icount shift=0`" + `. What stands above them is ended:
` + "`capsulectl capsule restart-service`" + `, which kills, ` + "`systemctl restart docker`" + ` and SIGKILL to dockerd or containerd; Podman has no
daemon, so that systemd executes itself anew (` + "`systemctl daemon-reexec`" + `). A container was away from the stamp of its end to
that of its start. Live-restore is an option of Docker that is off by default.`

// ending is what the end of an engine did to the containers.
type ending struct {
	anew    float64 // containers that were started again
	lost    float64 // those that do not run any more
	away    float64 // the longest, seconds
	answers float64 // until the engine did again, seconds
}

var (
	noEnding = ending{none, none, none, none}
	// endings, and how the peers tell of them; "" has nothing that is like it.
	endings = []struct {
		what, capsule string
		peer          [len(peers)]string
	}{
		{"restart", "capsuled", [...]string{"restart", "restart"}},
		{"SIGKILL", "capsuled", [...]string{"kill", ""}},
		{"restart, live-restore", "capsuled", [...]string{"live-restart", ""}},
		{"SIGKILL, live-restore", "capsuled", [...]string{"live-kill", ""}},
		{"SIGKILL to containerd", "containerd", [...]string{"containerd", ""}},
	}
)

const daemonContainers = 5

func (b *bench) peersDaemon(ctx context.Context) error {
	ours, err := b.capsuleEndings(ctx)
	if err != nil {
		return err
	}
	theirs, err := each(ctx, func(ctx context.Context, p peer) (map[string]ending, error) {
		r, err := b.runPeer(ctx, p, peerMachine{memory: peerMemory, icount: true, scenario: "daemon"})
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(peers[:], func(o peer) bool { return o.title == p.title })
		all := map[string]ending{"": noEnding}
		for _, e := range endings {
			if what := e.peer[i]; what != "" {
				if all[what], err = r.ending(what); err != nil {
					return nil, err
				}
			}
		}
		return all, nil
	})
	if err != nil {
		return err
	}
	var c comparison
	for _, e := range endings {
		var told [len(peers)]ending
		for i := range peers {
			told[i] = theirs[i][e.peer[i]]
		}
		c.add(e.what+": **containers started anew, of 5**", "%.0f", ours[e.capsule].anew, column(told, func(e ending) float64 { return e.anew }))
		c.add(e.what+": containers lost", "%.0f", ours[e.capsule].lost, column(told, func(e ending) float64 { return e.lost }))
		c.add(e.what+": the longest away", "%.2f s", ours[e.capsule].away, column(told, func(e ending) float64 { return e.away }))
		c.add(e.what+": the engine answers after", "%.2f s", ours[e.capsule].answers, column(told, func(e ending) float64 { return e.answers }))
	}
	return b.tell("peers-daemon", &c)
}

// compare tells what happened to containers between two looks.
func compare(before, after map[string]container) (e ending, err error) {
	if len(before) == 0 || len(before) != len(after) {
		return e, fmt.Errorf("%d containers before, %d after", len(before), len(after))
	}
	for name, was := range before {
		is := after[name]
		switch {
		case !was.running: // lost before
		case !is.running:
			e.lost++
		case !is.started.Equal(was.started):
			e.anew++
			if is.finished.Before(was.started) {
				e.away = none // its end was not written down
			}
			e.away = max(e.away, is.started.Sub(is.finished).Seconds())
		}
	}
	return e, nil
}

// ending reads what a peer told of one.
func (r record) ending(what string) (e ending, err error) {
	from := slices.IndexFunc(r.marks, func(m mark) bool { return m.kind == "event" && m.fields["what"] == what })
	if from < 0 {
		return e, fmt.Errorf("it tells of no end %q; %s", what, r.tail())
	}
	part := record{marks: r.marks[from:], console: r.console}
	if to := slices.IndexFunc(part.marks[1:], func(m mark) bool { return m.kind == "event" }); to >= 0 {
		part.marks = part.marks[:to+1]
	}
	before, after := map[string]container{}, map[string]container{}
	for i := range daemonContainers {
		name := fmt.Sprintf("c-%d", i+1)
		looks, err := part.containers(name)
		if err != nil {
			return e, err
		}
		if len(looks) != 2 {
			return e, fmt.Errorf("end %q: %d looks at container %q, want 2; %s", what, len(looks), name, r.tail())
		}
		before[name], after[name] = looks[0], looks[1]
	}
	if e, err = compare(before, after); err != nil {
		return e, fmt.Errorf("end %q: %w", what, err)
	}
	took, err := part.span(what)
	e.answers = took.Seconds()
	return e, err
}

func (b *bench) capsuleEndings(ctx context.Context) (map[string]ending, error) {
	c, err := b.withImage(ctx, peerOptions("peers-daemon", peerMemory, true))
	defer b.end(ctx, c)
	if err != nil {
		return nil, err
	}
	for i := range daemonContainers {
		name := fmt.Sprintf("c-%d", i+1)
		if err := b.applyText(c.machine, name, manifestOf(name, "")); err != nil {
			return nil, err
		}
	}
	all := map[string]ending{}
	for _, service := range []string{"capsuled", "containerd"} {
		if all[service], err = b.capsuleEnding(ctx, c, service); err != nil {
			return nil, fmt.Errorf("end of %s: %w", service, err)
		}
	}
	return all, nil
}

// capsuleEnding kills a service. That of containerd is over when another container was
// started and is gone: the API answers all the time.
func (b *bench) capsuleEnding(ctx context.Context, c *capsule, service string) (e ending, err error) {
	before, err := c.containers(ctx)
	if err != nil {
		return e, err
	}
	from, err := c.info(ctx)
	if err != nil {
		return e, err
	}
	if _, err := b.ctl(c.machine, "capsule", "restart-service", service); err != nil {
		return e, err
	}
	to, err := c.daemonAfter(ctx, from.GetDaemonStarts(), service == "capsuled")
	if err != nil {
		return e, err
	}
	answers := to.GetTime().AsTime().Sub(from.GetTime().AsTime()).Seconds()
	if service != "capsuled" {
		answers = none
	}
	if err := errors.Join(await.Pause(ctx, settleEvery), b.applyText(c.machine, "proof", manifestOf("proof", ""))); err != nil {
		return e, err
	}
	if _, err := b.ctl(c.machine, "workload", "delete", "proof", "--wait"); err != nil {
		return e, err
	}
	after, err := c.containers(ctx)
	if err != nil {
		return e, err
	}
	e, err = compare(before, after)
	e.answers = answers
	return e, err
}

// daemonAfter waits until an API answers; another daemon's, if that is asked for.
func (c *capsule) daemonAfter(ctx context.Context, starts uint32, another bool) (*capsulev1.InfoResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, backMax)
	defer cancel()
	for {
		info, err := c.anew(ctx)
		if err == nil && (!another || info.GetDaemonStarts() != starts) {
			return info, nil
		}
		if late := await.Pause(ctx, lookEvery); late != nil {
			return nil, errors.Join(late, err)
		}
	}
}

// anew asks over a new connection.
func (c *capsule) anew(ctx context.Context) (*capsulev1.InfoResponse, error) {
	next, err := dialCapsule(c.machine)
	if err != nil {
		return nil, err
	}
	_ = c.conn.Close() // it is from before
	c.conn = next.conn
	return infoOf(ctx, c.conn)
}

const peersRebootMethod = `A container that is to run always, with a published port: ` + "`--restart=always`" + `, a Quadlet unit, a manifest. 1 GiB, one
processor, ` + "`-icount shift=0`" + `. The restart is ordered, ` + "`systemctl reboot`" + ` or ` + "`capsulectl capsule reboot`" + `; the way down
ends when the kernel is asked to restart. The way up is from the kernel's start to the stamp of the program's start.
Firmware and boot loader are between the two, and count on neither side.`

// way is down and up again.
type way struct{ down, up time.Duration }

func (b *bench) peersReboot(ctx context.Context) error {
	ours, err := b.capsuleReboot(ctx)
	if err != nil {
		return err
	}
	theirs, err := each(ctx, b.peerReboot)
	if err != nil {
		return err
	}
	var c comparison
	c.add("from order to the kernel's end", "%.2f s", ours.down.Seconds(), column(theirs, func(w way) float64 { return w.down.Seconds() }))
	c.add("from the kernel's start to the service", "%.2f s", ours.up.Seconds(), column(theirs, func(w way) float64 { return w.up.Seconds() }))
	c.add("**both**", "%.2f s", (ours.down + ours.up).Seconds(), column(theirs, func(w way) float64 { return (w.down + w.up).Seconds() }))
	return b.tell("peers-reboot", &c)
}

// ownDisk gives a peer a copy of its prepared disk.
func (b *bench) ownDisk(ctx context.Context, p peer, name string) (peerMachine, error) {
	m := peerMachine{peer: p, memory: peerMemory, icount: true, kept: true}
	d, err := b.prepared(ctx, p)
	if err != nil {
		return m, err
	}
	m.debian = d
	m.Disk = filepath.Join(b.dir, name+"-"+p.title+".img")
	return m, copyDisk(ctx, m.Disk, d.Disk)
}

func (b *bench) peerReboot(ctx context.Context, p peer) (w way, err error) {
	m, err := b.ownDisk(ctx, p, "reboot")
	if err != nil {
		return w, err
	}
	m.scenario = "reboot"
	before, err := m.run(ctx, nil)
	if err != nil {
		return w, err
	}
	if w.down, err = before.wayDown(); err != nil {
		return w, err
	}
	m.scenario = "back"
	after, err := m.run(ctx, nil)
	if err != nil {
		return w, err
	}
	w.up, err = after.serviceUp("web")
	return w, err
}

// wayDown is from the order to the kernel's last line.
func (r record) wayDown() (time.Duration, error) {
	ordered, err := r.first("ordered")
	if err != nil {
		return 0, err
	}
	down, err := stamp(r.console, restartLine)
	return down - ordered.at, err
}

// serviceUp is from the kernel's start to a container's, which runs.
func (r record) serviceUp(name string) (time.Duration, error) {
	looks, err := r.containers(name)
	if err != nil {
		return 0, err
	}
	if len(looks) == 0 || !looks[len(looks)-1].running {
		return 0, fmt.Errorf("container %q does not run; %s", name, r.tail())
	}
	return r.sinceKernel(looks[len(looks)-1].started)
}

// Lines of the capsule's process 1 at the beginning and the end of its way down.
var (
	downBegins = regexp.MustCompile(`capsule +([0-9.]+)s restart\r?\n`)
	downEnds   = regexp.MustCompile(`capsule +([0-9.]+)s restart after `)
)

const peerWeb = "ports:\n  - 8080:8080\n"

func (b *bench) capsuleReboot(ctx context.Context) (w way, err error) {
	c, err := b.withImage(ctx, peerOptions("peers-reboot", peerMemory, true))
	defer b.end(ctx, c)
	if err != nil {
		return w, err
	}
	if err := b.applyText(c.machine, "web", manifestOf("web", peerWeb)); err != nil {
		return w, err
	}
	if err := await.Pause(ctx, settleEvery); err != nil {
		return w, err
	}
	before, err := c.info(ctx)
	if err != nil {
		return w, err
	}
	from := consoleBytes(c.machine)
	if _, err := b.ctl(c.machine, "capsule", "reboot"); err != nil {
		return w, err
	}
	text, err := waitConsole(ctx, c.machine, from, downEnds)
	if err != nil {
		return w, err
	}
	begin, err1 := stamp(text, downBegins)
	end, err2 := stamp(text, downEnds)
	if err := errors.Join(err1, err2); err != nil {
		return w, err
	}
	w.down = end - begin
	after, err := c.restarted(ctx, before)
	if err != nil {
		return w, err
	}
	w.up, err = c.serviceUp(ctx, after, "web")
	return w, err
}

// serviceUp waits until a container runs that was started since the machine was.
func (c *capsule) serviceUp(ctx context.Context, start *capsulev1.InfoResponse, name string) (time.Duration, error) {
	booted := start.GetBootedAt().AsTime()
	all, err := c.runs(ctx, booted, name)
	if err != nil {
		return 0, err
	}
	if !all[name].runsSince(booted) {
		return 0, fmt.Errorf("container %q does not run since the machine started: %+v", name, all[name])
	}
	return all[name].started.Sub(booted), nil
}

const peersCutMethod = `The same container, with a published port, runs; then another one is ordered, and at the moment at which the command
ends, which says that it runs, QEMU gets SIGKILL: what was not on the disk by then is lost. Then the next start, three
times. 1 GiB, one processor, ` + "`-icount shift=0`" + `. The way up is that of the restart above.`

const peerCuts = 3

// cuts is what came of them.
type cuts struct {
	back float64 // the container with the port
	kept float64 // the one that was acknowledged last
	up   []time.Duration
}

func (b *bench) peersCut(ctx context.Context) error {
	ours, err := b.capsuleCuts(ctx)
	if err != nil {
		return err
	}
	theirs, err := each(ctx, b.peerCuts)
	if err != nil {
		return err
	}
	var c comparison
	c.add("cuts after which the service came back by itself, of 3", "%.0f", ours.back, column(theirs, func(c cuts) float64 { return c.back }))
	c.add("cuts after which the container that was ordered last runs, of 3", "%.0f", ours.kept, column(theirs, func(c cuts) float64 { return c.kept }))
	c.add("**from the kernel's start to the service**, the middle", "%.2f s", ours.middle(), column(theirs, cuts.middle))
	return b.tell("peers-cut", &c)
}

// middle of the ways up in seconds, none if there was no way up.
func (c cuts) middle() float64 {
	if len(c.up) == 0 {
		return none
	}
	return slices.Sorted(slices.Values(c.up))[len(c.up)/2].Seconds()
}

// late names the container that is ordered just before a cut.
func late(n int) string { return fmt.Sprintf("late-%d", n) }

func (b *bench) peerCuts(ctx context.Context, p peer) (c cuts, err error) {
	m, err := b.ownDisk(ctx, p, "cut")
	if err != nil {
		return c, err
	}
	m.scenario = "cut"
	cut := func(m mark) bool { return m.kind == "acknowledged" }
	for n := range peerCuts + 1 {
		switch n {
		case 0:
			m.words = " new=web"
		case peerCuts:
			m.words, cut = " names=web,"+late(n), nil
		default:
			m.words = " names=web," + late(n) + " new=" + late(n+1)
		}
		r, err := m.run(ctx, cut)
		if err != nil {
			return c, err
		}
		if n == 0 {
			continue
		}
		if err := c.add(r, late(n)); err != nil {
			return c, err
		}
	}
	return c, nil
}

// add counts what a start after a cut told.
func (c *cuts) add(r record, last string) error {
	looks, err := r.containers("web")
	if err != nil {
		return err
	}
	if len(looks) > 0 && looks[0].running {
		up, err := r.serviceUp("web")
		if err != nil {
			return err
		}
		c.back, c.up = c.back+1, append(c.up, up)
	}
	if looks, err = r.containers(last); err != nil {
		return err
	}
	if len(looks) > 0 && looks[0].running {
		c.kept++
	}
	return nil
}

func (b *bench) capsuleCuts(ctx context.Context) (told cuts, err error) {
	c, err := b.withImage(ctx, peerOptions("peers-cut", peerMemory, true))
	defer func() { b.end(ctx, c) }()
	if err != nil {
		return told, err
	}
	if err := b.applyText(c.machine, "web", manifestOf("web", peerWeb)); err != nil {
		return told, err
	}
	if err := await.Pause(ctx, settleEvery); err != nil {
		return told, err
	}
	for n := range peerCuts {
		name := late(n + 1)
		if err := b.applyText(c.machine, name, manifestOf(name, "")); err != nil {
			return told, err
		}
		if err := c.machine.Kill(ctx); err != nil {
			return told, err
		}
		if err := told.addCapsule(ctx, c, name); err != nil {
			return told, err
		}
	}
	return told, nil
}

// addCapsule starts a capsule after a cut and counts.
func (c *cuts) addCapsule(ctx context.Context, box *capsule, last string) error {
	if err := errors.Join(box.machine.Start(ctx), box.machine.WaitReady(ctx)); err != nil {
		return err
	}
	start, err := box.anew(ctx)
	if err != nil {
		return err
	}
	booted := start.GetBootedAt().AsTime()
	all, err := box.runs(ctx, booted, "web", last)
	if err != nil {
		return err
	}
	if all["web"].runsSince(booted) {
		c.back, c.up = c.back+1, append(c.up, all["web"].started.Sub(booted))
	}
	if all[last].runsSince(booted) {
		c.kept++
	}
	return nil
}
