//go:build linux && machine

package torture

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/internal/await"
	"capsule/internal/imagetest"
	"capsule/internal/nettest"
	"capsule/test/torture/plan"
)

// A fault is begun and ended; one that is over at once has no end.
type fault struct {
	begin, end func(plan.Fault) error
}

func (b *box) faults() map[string]fault {
	return map[string]fault{
		plan.Daemon:     {begin: func(plan.Fault) error { return b.killDaemon() }},
		plan.Containerd: {begin: func(plan.Fault) error { return b.kill("containerd") }},
		plan.Shim:       {begin: func(plan.Fault) error { return b.killInside(`containerd-shim-runc-v2*" -id "`) }},
		plan.QEMU:       {begin: func(plan.Fault) error { return b.killInside(`qemu-system*" -machine microvm"`) }},
		plan.Perm:       {begin: func(plan.Fault) error { return b.fillPerm() }, end: func(plan.Fault) error { return b.empty() }},
		plan.Pool:       {begin: func(plan.Fault) error { return b.fillPool() }, end: func(plan.Fault) error { return b.empty() }},
		plan.Clock: {
			begin: func(f plan.Fault) error { return b.clock(jumps[int(f.Pick)%len(jumps)], router2) },
			end:   func(plan.Fault) error { return b.clock(0, router) },
		},
		plan.Link:  {begin: b.pull, end: func(plan.Fault) error { return b.link(true) }},
		plan.DHCP:  {begin: b.unlease, end: func(plan.Fault) error { b.give(b.now()[0]); return nil }},
		plan.Power: {begin: func(f plan.Fault) error { return b.power(rtc(f)) }},
		plan.Reset: {begin: func(plan.Fault) error {
			_, err := b.machine.QMP(b.t.Context(), "system_reset", nil)
			return err
		}},
	}
}

// killDaemon kills capsuled serve, and sees that it was started again.
func (b *box) killDaemon() error {
	before, err := b.info()
	if err != nil {
		return err
	}
	if err := b.kill("capsuled"); err != nil && status.Code(err) != codes.Unavailable { // it answers no more
		return err
	}
	return b.until(time.Minute, func() error {
		after, err := b.info()
		if err == nil && after.GetDaemonStarts() <= before.GetDaemonStarts() {
			err = fmt.Errorf("capsuled was started %d times, as before", after.GetDaemonStarts())
		}
		return err
	})
}

func (b *box) kill(service string) error {
	return b.call(callMax, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := capsulev1.NewCapsuleServiceClient(conn).RestartService(ctx, &capsulev1.RestartServiceRequest{Service: service})
		return err
	})
}

// debugMax bounds a debug session.
const debugMax = 2 * time.Minute

// inside runs a line of shell on the capsule.
func (b *box) inside(line string) (string, error) {
	return b.ctl(debugMax, "capsule", "debug", "--", "sh", "-c", line)
}

// killInside kills the processes whose command line has a part like the pattern. Those
// that the line itself is in are spared.
func (b *box) killInside(pattern string) error {
	out, err := b.inside(`: not-these; for p in /proc/[0-9]*; do
line=$(tr '\0' ' ' <$p/cmdline 2>/dev/null) || continue
case "$line" in *not-these*) ;; *` + pattern + `*) kill -9 ${p#/proc/} && echo "killed ${p#/proc/}" ;; esac
done`)
	if err == nil && !strings.Contains(out, "killed ") {
		err = fmt.Errorf("no process like %s was found to kill: %s", pattern, out)
	}
	return err
}

const (
	filler  = "filler"
	ballast = "ballast"
	fillMax = 5 * time.Minute
)

// fillPerm has a container write to its own files until nothing more goes.
func (b *box) fillPerm() error {
	info, err := b.info()
	if err != nil {
		return err
	}
	mebibytes := info.GetPermTotal() >> 20
	return b.fill(fmt.Sprintf("resources:\n  disk: %dMiB\n", mebibytes), "/full", mebibytes, "late")
}

// fillPool has one write to a volume that is larger than the pool.
func (b *box) fillPool() error {
	var pool *capsulev1.Pool
	err := b.call(callMax, func(ctx context.Context, conn *grpc.ClientConn) error {
		answer, err := capsulev1.NewVolumeServiceClient(conn).Pool(ctx, &capsulev1.PoolRequest{})
		pool = answer.GetPool()
		return err
	})
	if err != nil {
		return err
	}
	mebibytes := uint64(pool.GetSize())>>20 + 256 //nolint:gosec // a size
	return b.fill(fmt.Sprintf("mounts:\n  - \"%s:/%s\"\n---\nkind: Volume\nname: %s\nsize: %dMiB\n", ballast, ballast, ballast, mebibytes),
		"/"+ballast+"/full", mebibytes)
}

func (b *box) fill(more, file string, mebibytes uint64, late ...string) error {
	manifest := fmt.Sprintf("kind: Container\nname: %s\nimage: %s\ncommand: [/payload, sleep]\nargs: [10h]\n", filler, imageName)
	if err := b.apply(fillMax, manifest+more, "--wait"); err != nil {
		return err
	}
	args := append([]string{"workload", "exec", filler, "--", "/payload", "fill", file, fmt.Sprint(mebibytes)}, late...)
	out, err := b.ctl(fillMax, args...)
	if err == nil {
		return fmt.Errorf("%d MiB were to fill it, and did not", mebibytes)
	}
	for _, full := range []string{"no space", "quota exceeded", "input/output error", "read-only"} {
		if strings.Contains(out, full) {
			return nil
		}
	}
	return err
}

// empty deletes what filled.
func (b *box) empty() error {
	gone := func(err error) error {
		if status.Code(err) == codes.NotFound {
			return nil
		}
		return err
	}
	return b.until(3*time.Minute, func() error {
		return b.call(callMax, func(ctx context.Context, conn *grpc.ClientConn) error {
			objects, volumes := capsulev1.NewObjectServiceClient(conn), capsulev1.NewVolumeServiceClient(conn)
			if _, err := objects.Delete(ctx, &capsulev1.DeleteRequest{Kind: "Container", Name: filler}); gone(err) != nil {
				return err
			}
			if _, err := volumes.Delete(ctx, &capsulev1.VolumeServiceDeleteRequest{Name: ballast, Force: true}); gone(err) != nil {
				return err
			}
			list, err := objects.List(ctx, &capsulev1.ListRequest{})
			for _, o := range list.GetObjects() {
				if name := o.GetMeta().GetName(); name == filler || name == ballast {
					return fmt.Errorf("%s %q is there yet", o.GetMeta().GetKind(), name)
				}
			}
			return err
		})
	})
}

// jumps of a time server's clock.
var jumps = []time.Duration{time.Hour, 26 * time.Hour, 40 * 24 * time.Hour, 400 * 24 * time.Hour}

// clockOff is how far the capsule's clock may be off, once it was set.
const clockOff = 10 * time.Second

// clock has the time server ahead by so much, and the capsule ask it, by a name that it
// did not ask before.
func (b *box) clock(ahead time.Duration, server string) error {
	b.ntp.Set(ahead)
	if err := b.until(time.Minute, func() error { return b.apply(time.Minute, timeServer(server)) }); err != nil {
		return err
	}
	return b.until(time.Minute, func() error {
		before := b.ntp.Now()
		info, err := b.info()
		if err != nil {
			return err
		}
		if off := imagetest.Beside(before, info.GetTime().AsTime(), b.ntp.Now()); off > clockOff {
			return fmt.Errorf("its clock is %s off", off)
		}
		return nil
	})
}

func timeServer(address string) string { return "kind: Capsule\nntp: [" + address + "]\n" }

// link plugs the cable in, or pulls it out.
func (b *box) link(up bool) error {
	_, err := b.machine.QMP(b.t.Context(), "set_link", map[string]any{"name": "nic0", "up": up})
	return err
}

// pull pulls the cable out, up to four times for a second before it is left out.
func (b *box) pull(f plan.Fault) error {
	for range f.Pick % 5 {
		for _, up := range []bool{false, true} {
			if err := b.link(up); err != nil {
				return err
			}
			if err := await.Pause(b.t.Context(), time.Second); err != nil {
				return err
			}
		}
	}
	return b.link(false)
}

// unlease changes what the router says: it gives another address at the next renewal,
// or refuses that first, or is silent.
func (b *box) unlease(f plan.Fault) error {
	addresses := b.now()
	other := given[(slices.Index(given, addresses[0])+1)%len(given)]
	before := b.dhcp.Count()
	switch f.Pick % 3 {
	case 0:
		b.give(other)
	case 1:
		b.dhcp.Set(func(g *nettest.Grant) { g.NAK = true })
	case 2:
		b.dhcp.Set(func(g *nettest.Grant) { g.Mute = true })
	}
	err := b.until(2*lease, func() error {
		if len(b.dhcp.Requests(before, dhcpv4.MessageTypeRequest)) == 0 {
			return fmt.Errorf("no renewal came")
		}
		return nil
	})
	if f.Pick%3 == 1 {
		b.give(other)
	}
	return err
}

// rtc has one machine of three forget the time while it is off.
func rtc(f plan.Fault) []string {
	if f.Pick%3 == 0 {
		return []string{"-rtc", "base=2000-01-01T00:00:00"}
	}
	return nil
}
