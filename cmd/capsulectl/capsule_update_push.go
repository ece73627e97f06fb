package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	capsulev1 "capsule/api/capsule/v1"
)

// Limits of a push.
const (
	updateBytes     = 256 << 10       // of the bundle in one message
	updateNeedsMax  = 4096            // messages that ask, ahead of what is sent
	updatePatience  = 2 * time.Minute // of trying again without getting on
	updateAgain     = 250 * time.Millisecond
	updateAgainMax  = 10 * time.Second
	updateTell      = 30 * time.Second // between words about it
	updateReadyWait = 10 * time.Minute // for the new system
)

// UpdatePushOptions of "capsule update push".
type UpdatePushOptions struct {
	Window         time.Duration
	AutoConfirm    time.Duration
	AllowDowngrade bool
	Force          bool
	NoReboot       bool
	Wait           bool
	Timeout        time.Duration
}

func newUpdatePushCommand(a *app) *cobra.Command {
	var o UpdatePushOptions
	cmd := &cobra.Command{
		Use: "push FILE|URL", Short: "Install another version of the system, and start it",
		Long: `Installs a bundle (a release, or what "make bundle" builds) into the slot of the
capsule that does not run, and restarts the capsule with it. Only what the capsule
lacks is sent; of a URL only that is fetched, if its server knows ranges. A push
that was broken off goes on where it stopped, by itself or when it is run again.

The new system is tentative: the capsule goes back to the one before by itself
unless the new one comes up, is healthy, and is confirmed within its window, with
"capsulectl capsule update confirm" or by --auto-confirm.

The command waits until the capsule is back, and fails when it came back with the
old system.`,
		Example: `  capsulectl capsule update push capsule-v1.4.0-amd64.bundle
  capsulectl capsule update push https://releases.lan/capsule-v1.4.0-amd64.bundle --auto-confirm 5m`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range []string{"window", "auto-confirm", "timeout"} {
				if d, err := cmd.Flags().GetDuration(name); cmd.Flags().Changed(name) && (err != nil || d <= 0) {
					return usage(cmd, fmt.Errorf("--%s must be above zero", name))
				}
			}
			return runUpdatePush(cmd.Context(), a, o, args[0])
		},
	}
	flags := cmd.Flags()
	flags.DurationVar(&o.Window, "window", 0, "how long the new system may stay unconfirmed (default 10m)")
	flags.DurationVar(&o.AutoConfirm, "auto-confirm", 0, "let the new system confirm itself once it was healthy for so long (default never)")
	flags.BoolVar(&o.AllowDowngrade, "allow-downgrade", false, "accept a version older than the one that runs")
	flags.BoolVar(&o.Force, "force", false, "accept a version that was rolled back before, or install once more the one that runs")
	flags.BoolVar(&o.NoReboot, "no-reboot", false, "install only; the capsule's next restart starts it")
	flags.BoolVar(&o.Wait, "wait", true, "wait until the capsule is back")
	flags.DurationVar(&o.Timeout, "timeout", updateReadyWait, "bound of --wait")
	return cmd
}

func runUpdatePush(ctx context.Context, a *app, o UpdatePushOptions, from string) error {
	meter := &meter{line: statusLine{ui: a.ui}}
	defer meter.end()
	before, err := fetchUpdateStatus(ctx, a) // a capsule that isn't there is told before all is fetched
	if err != nil {
		return err
	}
	source, err := openBundle(ctx, from, meter)
	if err != nil {
		return err
	}
	defer source.close()
	p := &updatePush{app: a, client: a.client, source: source, meter: meter, offer: o.offer(source), before: before, patience: updatePatience}
	result, err := p.run(ctx)
	meter.end()
	if err != nil {
		return err
	}
	return p.finish(ctx, o, result)
}

func (o UpdatePushOptions) offer(source *bundleSource) *capsulev1.UpdateOffer {
	offer := &capsulev1.UpdateOffer{
		Header: source.header.Bytes(), Size: source.size,
		AllowDowngrade: o.AllowDowngrade, Force: o.Force, NoReboot: o.NoReboot,
	}
	if o.Window > 0 {
		offer.Window = durationpb.New(o.Window)
	}
	if o.AutoConfirm > 0 {
		offer.AutoConfirm = durationpb.New(o.AutoConfirm)
	}
	return offer
}

// updatePush is a push under way, over as many connections as it takes.
type updatePush struct {
	app    *app
	client *client
	source *bundleSource
	meter  *meter
	offer  *capsulev1.UpdateOffer
	// before is how the capsule stood: by it a result that was lost is known.
	before   *capsulev1.UpdateServiceStatusResponse
	patience time.Duration

	tries  int       // without getting on
	stuck  time.Time // since the first of them
	told   time.Time // when one of them was, last
	sent   int64     // bytes of the bundle
	reused int64     // bytes that the capsule had
	phase  capsulev1.UpdatePhase
	left   int64 // bytes of the phase, the fewest that there were
}

// run pushes until there is a result, a refusal, or no patience left.
func (p *updatePush) run(ctx context.Context) (*capsulev1.UpdateResult, error) {
	for {
		result, err := p.attempt(ctx)
		if err == nil {
			return result, nil
		}
		if ctx.Err() != nil {
			return nil, &failure{exitFailed, errors.New("interrupted"), p.resumeHint()}
		}
		if result, err := p.reconnect(ctx, err); result != nil || err != nil {
			return result, refusal(err)
		}
	}
}

// refusal tells a bundle that is not trusted from an operator who may not push.
func refusal(err error) error {
	s, ok := fromGRPC(err)
	if !ok || s.Code() != codes.PermissionDenied || strings.Contains(s.Message(), "needs the role") {
		return err
	}
	return &failure{exitRefused, errors.New(s.Message()), "a capsule takes what the keys sign that were built into its image; \"capsulectl release sign\" signs a bundle"}
}

// reconnect waits until the capsule answers again. A result is that of the push
// whose answer was lost; without one it is to be tried again.
func (p *updatePush) reconnect(ctx context.Context, err error) (*capsulev1.UpdateResult, error) {
	for p.lost(err) {
		if err := p.rest(ctx, err); err != nil {
			return nil, err
		}
		var s *capsulev1.UpdateServiceStatusResponse
		if s, err = fetchUpdateStatus(ctx, p.app); err == nil {
			return p.installed(s), nil
		}
	}
	return nil, err
}

func (p *updatePush) resumeHint() string { return "run it again: it goes on where it stopped" }

// passing are refusals of a capsule that has not noticed the end of the connection
// before, and of one that restarts with what came by it.
var passing = []string{"another update is being pushed", "the capsule restarts now"}

// lost tells an end of the connection, and what follows from one, from an answer.
func (p *updatePush) lost(err error) bool {
	s, ok := fromGRPC(err)
	switch {
	case errors.Is(err, io.EOF):
		return true
	case !ok:
		return false
	case s.Code() == codes.Unavailable, s.Code() == codes.Aborted, s.Code() == codes.DeadlineExceeded, broken(s.Message()):
		return true
	}
	return p.tries > 0 && s.Code() == codes.FailedPrecondition &&
		slices.ContainsFunc(passing, func(words string) bool { return strings.Contains(s.Message(), words) })
}

// rest waits before the next try, longer each time, or ends the tries.
func (p *updatePush) rest(ctx context.Context, err error) error {
	f := p.app.explain(ctx, err)
	if errors.Is(err, io.EOF) {
		f = &failure{exitFailed, errors.New("the capsule ended the push without a result"), ""}
	}
	if p.tries == 0 {
		p.stuck = time.Now()
	}
	patience := p.patience
	if p.phase == capsulev1.UpdatePhase_UPDATE_PHASE_ACTIVATE && p.left == 0 { // it may be restarting
		patience = max(patience, updateReadyWait)
	}
	if time.Since(p.stuck) >= patience {
		return &failure{f.code, fmt.Errorf("the push did not get on for %v: %w", patience, f.err), p.resumeHint()}
	}
	if p.tries == 0 || time.Since(p.told) >= updateTell {
		p.told = time.Now()
		what := "the connection broke: "
		if s, ok := fromGRPC(err); ok && s.Code() == codes.FailedPrecondition { // what came by it says so
			what = ""
		}
		p.meter.note("%s%s; trying again", what, f)
	}
	wait := min(updateAgain<<min(p.tries, 16), updateAgainMax)
	p.tries++
	pause(ctx, wait)
	return nil
}

// installed is the result of a push whose answer was lost, or nil: of a new entry
// in the history.
func (p *updatePush) installed(s *capsulev1.UpdateServiceStatusResponse) *capsulev1.UpdateResult {
	if len(s.GetHistory()) == 0 {
		return nil
	}
	last := s.GetHistory()[0]
	if old := p.before.GetHistory(); len(old) > 0 && old[0].GetTime().AsTime().Equal(last.GetTime().AsTime()) {
		return nil
	}
	// What is installed and was not started may still be cut off: it's pushed again.
	if last.GetVersion() != p.source.header.Manifest.Version || last.GetOutcome() == capsulev1.UpdateOutcome_UPDATE_OUTCOME_INSTALLED {
		return nil
	}
	return &capsulev1.UpdateResult{Version: last.GetVersion(), Slot: last.GetSlot(), Reboots: true}
}

// attempt pushes over one connection.
func (p *updatePush) attempt(ctx context.Context) (*capsulev1.UpdateResult, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := p.client.updates.Push(ctx)
	if err != nil {
		return nil, err
	}
	offer := &capsulev1.UpdateServicePushRequest{Part: &capsulev1.UpdateServicePushRequest_Offer{Offer: p.offer}}
	if err := stream.Send(offer); err != nil && !errors.Is(err, io.EOF) {
		return nil, err // on EOF the answer says why
	}
	needs := make(chan []*capsulev1.UpdateRange, updateNeedsMax)
	sender := make(chan error, 1)
	go func() {
		err := p.send(ctx, stream, needs)
		if err != nil {
			cancel()
		}
		sender <- err
	}()
	result, err := p.receive(stream, needs)
	close(needs)
	cancel()
	if cause := <-sender; err != nil && cause != nil && !errors.Is(cause, context.Canceled) {
		return nil, cause // a bundle that can't be read, and not its consequence
	}
	return result, err
}

// send gives what is asked for. An error is one of the bundle; that of the
// connection comes with the answer.
func (p *updatePush) send(ctx context.Context, stream capsulev1.UpdateService_PushClient, needs <-chan []*capsulev1.UpdateRange) error {
	for ranges := range needs {
		gone := false
		err := p.source.read(ctx, ranges, func(offset int64, data []byte) error {
			part := &capsulev1.UpdateServicePushRequest_Data{Data: &capsulev1.UpdateData{Offset: offset, Data: data}}
			if err := stream.Send(&capsulev1.UpdateServicePushRequest{Part: part}); err != nil {
				gone = true
				return err
			}
			p.sent += int64(len(data))
			return nil
		})
		if gone {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *updatePush) receive(stream capsulev1.UpdateService_PushClient, needs chan<- []*capsulev1.UpdateRange) (*capsulev1.UpdateResult, error) {
	for {
		answer, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		switch part := answer.GetPart().(type) {
		case *capsulev1.UpdateServicePushResponse_Result:
			return part.Result, nil
		case *capsulev1.UpdateServicePushResponse_Progress:
			p.progress(part.Progress)
		case *capsulev1.UpdateServicePushResponse_Need:
			if err := p.source.has(part.Need.GetRanges()); err != nil {
				return nil, err
			}
			select {
			case needs <- part.Need.GetRanges():
			default:
				return nil, errors.New("the capsule asks for more than it takes")
			}
		}
	}
}

var updatePhases = map[capsulev1.UpdatePhase]string{
	capsulev1.UpdatePhase_UPDATE_PHASE_COMPARE:  "compare",
	capsulev1.UpdatePhase_UPDATE_PHASE_WRITE:    "write",
	capsulev1.UpdatePhase_UPDATE_PHASE_VERIFY:   "verify",
	capsulev1.UpdatePhase_UPDATE_PHASE_ACTIVATE: "activate",
}

// progress shows how far the capsule is. A try that comes no further than those
// before does not count as one that gets on.
func (p *updatePush) progress(u *capsulev1.UpdateProgress) {
	p.reused = max(p.reused, u.GetReused())
	left := u.GetTotal() - u.GetDone()
	if u.GetPhase() > p.phase || (u.GetPhase() == p.phase && left < p.left) {
		p.phase, p.left, p.tries = u.GetPhase(), left, 0
	}
	more := ""
	if p.reused > 0 {
		more = size(p.reused) + " reused"
	}
	if name := updatePhases[u.GetPhase()]; name != "" { // else of a newer capsule
		p.meter.set(name, u.GetDone(), u.GetTotal(), more)
	}
}

// finish tells of the result, and waits for the new system.
func (p *updatePush) finish(ctx context.Context, o UpdatePushOptions, result *capsulev1.UpdateResult) error {
	if result.GetUnchanged() {
		return p.app.tell(result, result.GetVersion(), result.GetVersion()+" runs already; nothing was done")
	}
	p.app.ui.note("sent %s of %s; %s were there already", size(p.sent), size(p.source.size), size(p.reused))
	text := fmt.Sprintf("%s is installed in %s", result.GetVersion(), result.GetSlot())
	switch {
	case !result.GetReboots():
		return p.app.tell(result, result.GetVersion(), text+"; the next restart starts it")
	case !o.Wait:
		return p.app.tell(result, result.GetVersion(), text+"; the capsule restarts with it")
	}
	p.app.ui.note("%s; the capsule restarts with it", text)
	w := &updateWait{app: p.app, result: result, before: p.before}
	status, err := w.run(ctx, o.Timeout)
	if err != nil {
		return err
	}
	return w.tell(status)
}
