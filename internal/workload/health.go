package workload

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	v1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
	"capsule/internal/health"
	"capsule/internal/store"
)

// sentenceMax bounds what a check said in a workload's message, in bytes; all of
// it is in the status beside.
const sentenceMax = 200

// checked is what is known of the health of what runs.
type checked struct {
	Checked bool // it has a check
	Heals   bool // and is to be restarted when unhealthy
	// State is the newest verdict on this very run, and Text the words of the
	// check; unspecified when there was none since the daemon's start.
	State v1.HealthState
	Text  string
}

// observeHealth brings the status up to the newest verdict. Until there is one of
// this run, what was known of it holds; a new run starts.
func (d *decider) observeHealth(run *seen) {
	same := run != nil && d.status.RunningGeneration == run.Generation && d.status.StartedAt.AsTime().Equal(run.StartedAt)
	switch {
	case run == nil && ill(d.status): // its end is judged by it
	case run == nil, !d.Health.Checked:
		d.status.Health, d.status.HealthMessage = v1.HealthState_HEALTH_STATE_UNSPECIFIED, ""
	case d.Health.State != v1.HealthState_HEALTH_STATE_UNSPECIFIED:
		d.status.Health, d.status.HealthMessage = d.Health.State, d.Health.Text
	case !same || d.status.Health == v1.HealthState_HEALTH_STATE_UNSPECIFIED:
		d.status.Health, d.status.HealthMessage = v1.HealthState_HEALTH_STATE_STARTING, ""
	}
}

// sick tells that what runs is to be restarted.
func (d *decider) sick() bool {
	return d.Health.Heals && d.status.Health == v1.HealthState_HEALTH_STATE_UNHEALTHY
}

func (d *decider) heal(run *seen) decision {
	next := d.do(stepStop, run)
	next.Step.Heal = true
	return next
}

// unhealthy is why, in a line: "unhealthy: exit code 1: refused".
func unhealthy(status *v1.WorkloadStatus) string {
	return strings.TrimSuffix("unhealthy: "+firstLine(status.HealthMessage), ": ")
}

// firstLine of what a check said, as far as it fits a sentence.
func firstLine(text string) string {
	text, _, _ = strings.Cut(text, "\n")
	if len(text) > sentenceMax {
		text = strings.ToValidUTF8(text[:sentenceMax], "") + "…"
	}
	return text
}

// healed sets when an older generation that was stopped since it is unhealthy is
// started again; the end of the wanted one is judged by decide.
func (l *Loop) healed(obj *v1.Object, m *memory, d decision) error {
	if d.Step.ID.Generation == obj.Meta.Generation {
		return nil
	}
	m.oldFailures++
	m.oldRetry = time.Now().Add(delay(retryMin, m.oldFailures))
	return nil
}

// checkSpec gives the check of a spec, the image's when it says nothing: "none"
// when there is none, nil when that can't be told now.
func (l *Loop) checkSpec(ctx context.Context, spec *v1.WorkloadSpec) *v1.Health {
	if spec.GetHealth() != nil {
		return proto.CloneOf(spec.GetHealth())
	}
	img, err := l.opts.Images.Get(ctx, spec.GetImage())
	switch {
	case errdefs.IsNotFound(err), err == nil && img.Health == nil:
		return &v1.Health{None: true}
	case err != nil:
		return nil // not known now
	}
	check := proto.CloneOf(img.Health)
	manifest.DefaultHealth(check, spec.GetRestart())
	return check
}

// running gives what runs of an object, and that object's generation.
func running(obj, before *v1.Object, found []seen) (run *seen, of *v1.Object) {
	for i, s := range found {
		if s.State != Running || s.UID != obj.Meta.Uid {
			continue
		}
		switch {
		case before.GetMeta().GetGeneration() == s.Generation:
			of = before
		case s.Generation == obj.Meta.Generation:
			of = obj
		default:
			continue // nothing is known of it
		}
		if run = &found[i]; s.Generation == obj.Meta.Generation {
			break // of several, the one that is to stay
		}
	}
	return run, of
}

// runOf tells a run of an instance from all others.
func runOf(s *seen) string {
	return fmt.Sprintf("%s/%d/%d", s.UID, s.Generation, s.StartedAt.UnixNano())
}

// health gathers what is known of the health of what runs.
func (l *Loop) health(ctx context.Context, obj, before *v1.Object, found []seen) checked {
	run, of := running(obj, before, found)
	if run == nil {
		return checked{}
	}
	declared := l.checkSpec(ctx, of.GetWorkload().GetSpec())
	if _, ok := health.Of(declared); !ok {
		return checked{}
	}
	known := checked{Checked: true, Heals: declared.GetOnFailure() != manifest.OnFailureNone}
	if v, ok := l.prober.Verdict(obj.Meta.Name); ok && v.Run == runOf(run) {
		known.State, known.Text = v.State, v.Text
	}
	return known
}

// watchHealth has what runs checked, and nothing else.
func (l *Loop) watchHealth(ctx context.Context, obj *v1.Object, m *memory, d decision, found []seen) {
	before, err := l.served.get(obj.Meta)
	if err != nil {
		slog.Error("read what is to be checked", "workload", obj.Meta.Name, "error", err)
		return
	}
	run, of := running(obj, before, found)
	if run == nil {
		l.prober.Drop(obj.Meta.Name)
		return
	}
	check, ok := health.Of(l.checkSpec(ctx, of.GetWorkload().GetSpec()))
	if !ok {
		l.prober.Drop(obj.Meta.Name)
		return
	}
	mode := modeOf(of)
	if mode == modeBridge && !m.attached {
		return // until it has an address
	}
	driver, id := l.opts.Drivers[run.Kind], run.ID
	l.prober.Watch(obj.Meta.Name, health.Target{ //nolint:contextcheck // checks go on after this call
		Run: runOf(run), Check: check, Started: run.StartedAt, Before: d.Status.Health,
		Place: health.Place{
			Addresses: addressesOf(mode, m),
			Exec:      Checks(driver, id),
		},
	})
}

// Checks runs the commands of checks in an instance, of whatever kind.
func Checks(driver Driver, id ID) func(ctx context.Context, command []string, out io.Writer) (int, error) {
	return func(ctx context.Context, command []string, out io.Writer) (int, error) {
		return driver.Exec(ctx, id, Exec{Command: command, Stdout: out, Stderr: out})
	}
}

// addressesOf a workload, as the capsule reaches it.
func addressesOf(mode string, m *memory) []netip.Addr {
	switch mode {
	case modeHost:
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	case modeNone:
		return nil
	}
	return m.attachment.Addresses
}

// turned is a change of health that is to be told; what starts says so already.
func turned(old, status *v1.WorkloadStatus) []store.Happening {
	switch {
	case status.GetHealth() == old.GetHealth():
	case status.GetHealth() == v1.HealthState_HEALTH_STATE_HEALTHY:
		return []store.Happening{{Type: "healthy", Text: "healthy"}}
	case status.GetHealth() == v1.HealthState_HEALTH_STATE_UNHEALTHY:
		return []store.Happening{{Type: reasonUnhealthy, Text: unhealthyInFull(status)}}
	}
	return nil
}

// unhealthyInFull has all that the check said, in one line.
func unhealthyInFull(status *v1.WorkloadStatus) string {
	return strings.TrimSuffix("unhealthy: "+strings.Join(strings.Fields(status.HealthMessage), " "), ": ")
}
