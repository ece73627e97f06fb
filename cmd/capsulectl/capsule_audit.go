package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
)

// AuditOptions of "capsule audit".
type AuditOptions struct {
	Follow bool
	Tail   int64
	Since  string
}

func newCapsuleAuditCommand(a *app) *cobra.Command {
	var o AuditOptions
	cmd := &cobra.Command{
		Use: "audit", Short: "Show who changed what, and who was refused",
		Long: `Shows the calls that may have changed something, and those that were refused:
when each ended, who called, by which method, on what, and with what result. It
takes an admin. The capsule keeps 16 MiB of changes and 4 MiB of refusals; the
oldest go first.

A call that takes long, such as a shell in a workload, is shown as "Running" after
ten seconds, and again at its end. -o json has all that is kept of each call: also
the fingerprint of the key, and the address that the call came from.`,
		Example: `  capsulectl capsule audit --since 24h
  capsulectl capsule audit --follow --tail 10`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runCapsuleAudit(cmd.Context(), a, o) },
	}
	flags := cmd.Flags()
	flags.BoolVarP(&o.Follow, "follow", "f", false, "go on with what comes from now on")
	flags.Int64Var(&o.Tail, "tail", -1, "only the last records; -1 is all")
	flags.StringVar(&o.Since, "since", "", "only what is younger than this: a duration (24h) or a time (2026-01-31T08:00:00Z)")
	return cmd
}

func runCapsuleAudit(ctx context.Context, a *app, o AuditOptions) error {
	since, err := parseSince(o.Since, time.Now())
	if err != nil {
		return err
	}
	c, err := a.dial()
	if err != nil {
		return err
	}
	stream, err := c.capsule.Audit(ctx, &capsulev1.AuditRequest{Follow: o.Follow, Since: since, Tail: o.Tail})
	if err != nil {
		return err
	}
	v := view{columns: auditColumns, empty: "no call is recorded"}
	for {
		r, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return a.ui.show(a.output, v)
		case err != nil && ctx.Err() != nil && o.Follow:
			return nil // ending a follow is no failure
		case err != nil:
			return err
		case o.Follow:
			if err := showAuditRecord(a, r); err != nil {
				return err
			}
			continue
		}
		v.rows = append(v.rows, auditRow(r))
		v.names = append(v.names, printable(r.GetMethod()))
		v.values = append(v.values, r)
	}
}

var auditColumns = []string{"TIME", "OPERATOR", "METHOD", "OBJECT", "RESULT"}

// auditWidths are those of the columns of a table that has no end.
const auditWidths = "%-20s   %-12s   %-28s   %-24s   %s\n"

// showAuditRecord prints one of many that are still to come.
func showAuditRecord(a *app, r *capsulev1.AuditResponse) error {
	switch a.output {
	case formatTable:
		row := auditRow(r)
		if row[3] == "" {
			row[3] = "-"
		}
		a.ui.printf(auditWidths, row[0], row[1], row[2], row[3], row[4])
	case formatJSON: // one a line
		data, err := encodeJSON(r)
		if err != nil {
			return err
		}
		a.ui.printf("%s\n", data)
	case formatYAML:
		a.ui.printf("---\n")
		return a.ui.show(a.output, view{values: []any{r}})
	default:
		a.ui.printf("%s\n", printable(r.GetMethod()))
	}
	return nil
}

func auditRow(r *capsulev1.AuditResponse) []string {
	result := r.GetCode()
	if m := r.GetMessage(); m != "" {
		result += ": " + m
	}
	if n := r.GetLost(); n > 0 {
		result += fmt.Sprintf(" (%d calls before this one have no record)", n)
	}
	row := []string{r.GetTime().AsTime().UTC().Format(time.RFC3339), r.GetOperator(), r.GetMethod(), r.GetObject(), result}
	for i := range row {
		row[i] = printable(row[i])
	}
	return row
}

// printable keeps what others chose to be called from moving the cursor.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
