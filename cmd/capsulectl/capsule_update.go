package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	capsulev1 "capsule/api/capsule/v1"
)

func newCapsuleUpdateCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "update", Short: "Replace the capsule's system by another version, and go back"}
	cmd.AddCommand(newUpdatePushCommand(a), newUpdateConfirmCommand(a), newUpdateRollbackCommand(a), newUpdateStatusCommand(a))
	return cmd
}

func newUpdateConfirmCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "confirm", Short: "Keep the system that runs",
		Long: `Keeps the system that an update brought. Without it the capsule goes back to the
one before, once the window of the update has passed.`,
		Example: "  capsulectl capsule update confirm",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runUpdateConfirm(cmd.Context(), a) },
	}
}

func runUpdateConfirm(ctx context.Context, a *app) error {
	answer, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.UpdateServiceConfirmResponse, error) {
		return c.updates.Confirm(ctx, &capsulev1.UpdateServiceConfirmRequest{})
	})
	if err != nil {
		return err
	}
	text := answer.GetVersion() + " is confirmed"
	if answer.GetUnchanged() {
		text = answer.GetVersion() + " was confirmed before; nothing was done"
	}
	return a.tell(answer, answer.GetVersion(), text)
}

func newUpdateRollbackCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "rollback", Short: "Restart the capsule with the system of the other slot",
		Long: `Restarts the capsule with the system that ran before the last update, confirmed or
not, as long as that system is whole. The same command comes back again.`,
		Example: "  capsulectl capsule update rollback",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runUpdateRollback(cmd.Context(), a) },
	}
}

func runUpdateRollback(ctx context.Context, a *app) error {
	// The capsule reads all of the other slot first.
	answer, err := callWithin(ctx, a, workMax, func(ctx context.Context, c *client) (*capsulev1.UpdateServiceRollbackResponse, error) {
		return c.updates.Rollback(ctx, &capsulev1.UpdateServiceRollbackRequest{})
	})
	if err != nil {
		return err
	}
	return a.tell(answer, answer.GetVersion(), fmt.Sprintf("the capsule restarts with %s of %s", answer.GetVersion(), answer.GetSlot()))
}

// tell prints an answer: as a sentence, or in the form that --output asks for.
func (a *app) tell(answer proto.Message, name, sentence string) error {
	if a.output == formatTable {
		a.ui.printf("%s\n", sentence)
		return nil
	}
	return a.ui.show(a.output, view{single: true, names: []string{name}, values: []any{answer}})
}

func newUpdateStatusCommand(a *app) *cobra.Command {
	return onMany(a, &cobra.Command{
		Use: "status", Short: "Show which system runs, which one is beside it, and what became of updates",
		Example: "  capsulectl capsule update status",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.read(cmd.Context(), updateStatus) },
	})
}

func updateStatus(ctx context.Context, a *app) (view, error) {
	s, err := fetchUpdateStatus(ctx, a)
	if err != nil {
		return view{}, err
	}
	v := view{single: true, names: []string{s.GetVersion()}, values: []any{s}, rows: updateFacts(s)}
	row := make([]string, 0, len(v.rows))
	for _, fact := range v.rows {
		row = append(row, fact[1])
	}
	v.summary = &view{columns: []string{"VERSION", "SLOT", "STATE", "OTHER"}, rows: [][]string{row}}
	if len(s.GetHistory()) > 0 {
		v.below = historyView(s.GetHistory())
	}
	return v, nil
}

func fetchUpdateStatus(ctx context.Context, a *app) (*capsulev1.UpdateServiceStatusResponse, error) {
	return call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.UpdateServiceStatusResponse, error) {
		return c.updates.Status(ctx, &capsulev1.UpdateServiceStatusRequest{})
	})
}

func updateFacts(s *capsulev1.UpdateServiceStatusResponse) [][]string {
	state := "confirmed"
	if t := s.GetTentative(); t != nil {
		state = tentativeText(t)
	}
	other := "nothing to go back to"
	if o := s.GetOther(); o != nil {
		other = o.GetVersion() + " in " + o.GetSlot()
	}
	return [][]string{{"version:", s.GetVersion()}, {"slot:", s.GetSlot()}, {"state:", state}, {"other:", other}}
}

// tentativeText is how an unconfirmed system stands.
func tentativeText(t *capsulev1.TentativeSystem) string {
	text := "not confirmed: rolled back in " + countdown(t.GetLeft().AsDuration())
	if t.GetConfirmsIn() != nil {
		text += ", confirms itself in " + countdown(t.GetConfirmsIn().AsDuration())
	}
	if problems := t.GetProblems(); len(problems) > 0 {
		text += " (" + strings.Join(problems, "; ") + ")"
	}
	return text
}

// countdown is a time that is left, in whole seconds.
func countdown(d time.Duration) string { return max(0, d.Round(time.Second)).String() }

var outcomeNames = map[capsulev1.UpdateOutcome]string{
	capsulev1.UpdateOutcome_UPDATE_OUTCOME_INSTALLED:   "installed",
	capsulev1.UpdateOutcome_UPDATE_OUTCOME_TENTATIVE:   "tentative",
	capsulev1.UpdateOutcome_UPDATE_OUTCOME_CONFIRMED:   "confirmed",
	capsulev1.UpdateOutcome_UPDATE_OUTCOME_ROLLED_BACK: "rolled back",
}

func historyView(records []*capsulev1.UpdateRecord) *view {
	v := &view{columns: []string{"VERSION", "SLOT", "FROM", "INSTALLED", "OUTCOME", "ENDED", "WHY"}}
	for _, r := range records {
		ended := ""
		if r.GetEnded() != nil {
			ended = r.GetEnded().AsTime().UTC().Format(time.RFC3339)
		}
		v.rows = append(v.rows, []string{
			r.GetVersion(), r.GetSlot(), r.GetFromVersion(), r.GetTime().AsTime().UTC().Format(time.RFC3339),
			outcomeNames[r.GetOutcome()], ended, r.GetReason(),
		})
	}
	return v
}
