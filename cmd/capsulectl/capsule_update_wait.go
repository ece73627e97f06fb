package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	capsulev1 "capsule/api/capsule/v1"
)

const (
	updateLook    = time.Second      // between looks at a capsule that restarts
	updateLookMax = 10 * time.Second // for the answer to one
)

// updateWait follows a capsule through its restart with a new system.
type updateWait struct {
	app    *app
	result *capsulev1.UpdateResult
	before *capsulev1.UpdateServiceStatusResponse
}

// run waits until the capsule is back, and gives how it stands when that is with
// the new system.
func (w *updateWait) run(ctx context.Context, limit time.Duration) (*capsulev1.UpdateServiceStatusResponse, error) {
	outer := ctx
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	line := statusLine{ui: w.app.ui}
	defer line.end()
	line.set(fmt.Sprintf("waiting until the capsule is back with %s", w.result.GetVersion()))
	for {
		s, err := w.look(ctx)
		switch {
		case err == nil && s != nil:
			return s, nil
		case outer.Err() != nil:
			return nil, outer.Err()
		case ctx.Err() != nil:
			return nil, w.late(limit)
		case err != nil && !away(err):
			return nil, err
		}
		pause(ctx, updateLook)
	}
}

func (w *updateWait) late(limit time.Duration) error {
	return &failure{exitNotReady, fmt.Errorf("the capsule is not back with %s %s", w.result.GetVersion(), timeoutText(limit)),
		"it goes back to the version before by itself when the new one does not come up; \"capsulectl capsule update status\" shows what became of it"}
}

// away tells that a capsule did not answer, as one that restarts does.
func away(err error) bool {
	switch grpcstatus.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return true
	}
	return errors.Is(err, context.DeadlineExceeded)
}

// look gives how the capsule stands once it runs the new system, and nil before.
func (w *updateWait) look(ctx context.Context) (*capsulev1.UpdateServiceStatusResponse, error) {
	s, err := callWithin(ctx, w.app, updateLookMax, func(ctx context.Context, c *client) (*capsulev1.UpdateServiceStatusResponse, error) {
		return c.updates.Status(ctx, &capsulev1.UpdateServiceStatusRequest{})
	})
	if err != nil {
		return nil, err
	}
	back, err := w.judge(s)
	if !back {
		return nil, err
	}
	return s, nil
}

// judge tells whether the new system runs; its error is that it never will. The
// old one runs before the restart and after a rollback: the history tells which.
func (w *updateWait) judge(s *capsulev1.UpdateServiceStatusResponse) (back bool, err error) {
	if s.GetSlot() == w.result.GetSlot() {
		return true, nil
	}
	for _, r := range s.GetHistory() {
		if r.GetVersion() != w.result.GetVersion() || r.GetSlot() != w.result.GetSlot() {
			continue
		}
		if r.GetOutcome() == capsulev1.UpdateOutcome_UPDATE_OUTCOME_ROLLED_BACK {
			return false, w.rolledBack(s, r)
		}
		return false, nil
	}
	return false, nil
}

func (w *updateWait) rolledBack(s *capsulev1.UpdateServiceStatusResponse, r *capsulev1.UpdateRecord) error {
	reason := r.GetReason()
	if reason == "" {
		reason = "the reason is not known"
	}
	return &failure{exitFailed, fmt.Errorf("%s was rolled back, and the capsule runs %s again: %s", r.GetVersion(), s.GetVersion(), reason),
		"what it did before is in \"capsulectl capsule logs\"; once that is mended, --force pushes the same version again"}
}

// tell says how the new system stands, and what is to be done until when.
func (w *updateWait) tell(s *capsulev1.UpdateServiceStatusResponse) error {
	text := fmt.Sprintf("the capsule runs %s (before: %s)", s.GetVersion(), w.before.GetVersion())
	t := s.GetTentative()
	if w.app.output != formatTable || t == nil {
		return w.app.tell(s, s.GetVersion(), text)
	}
	w.app.ui.printf("%s\n", text)
	if problems := t.GetProblems(); len(problems) > 0 {
		w.app.ui.warn("it is not healthy yet: " + strings.Join(problems, "; "))
	}
	left := t.GetLeft().AsDuration()
	until := fmt.Sprintf("by %s (in %s)", time.Now().Add(left).Format("15:04:05"), countdown(left))
	if in := t.GetConfirmsIn(); in != nil {
		w.app.ui.printf("it confirms itself in %s if it stays healthy, and is rolled back unless it is confirmed %s\n", countdown(in.AsDuration()), until)
	} else {
		w.app.ui.printf("it is rolled back unless it is confirmed %s\n", until)
	}
	w.app.ui.printf("confirm it with: capsulectl capsule update confirm\n")
	return nil
}
