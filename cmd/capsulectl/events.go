package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
)

// EventsOptions of "events".
type EventsOptions struct {
	Follow   bool
	Since    string
	Workload string
	Kind     string
	Tail     int
}

func newEventsCommand(a *app) *cobra.Command {
	var o EventsOptions
	cmd := onMany(a, &cobra.Command{
		Use: "events", Short: "Show what happened on the capsule",
		Long: `Shows what happened, oldest first: workloads that were declared, ran, ended and
failed, volumes and the space for them, the disk that fills, updates, boots, the
addresses of the capsule and its clock. The capsule keeps the newest 10000 events;
each has a number, which grows by one.

--since takes a time, or the number of the first event to show: "#120". When that is
kept no more, it is said what is gone. --follow goes on with what happens from now on,
over restarts of the daemon and of the machine, with no gap and nothing twice.`,
		Example: `  capsulectl events --since 24h
  capsulectl events --kind pool --all
  capsulectl events --follow --workload web --tail 10`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runEvents(cmd.Context(), a, o) },
	})
	flags := cmd.Flags()
	flags.BoolVarP(&o.Follow, "follow", "f", false, "go on with what happens from now on")
	flags.StringVar(&o.Since, "since", "", "only what is younger than this: a duration (24h), a time (2026-01-31T08:00:00Z) or the first number (#120)")
	flags.StringVar(&o.Workload, "workload", "", "only what happened to the workload of this name")
	flags.StringVar(&o.Kind, "kind", "", "only what happened to objects of this kind: container, microvm, volume, pool or capsule")
	flags.IntVar(&o.Tail, "tail", -1, "only the last events; -1 is all")
	return cmd
}

func runEvents(ctx context.Context, a *app, o EventsOptions) error {
	filter, err := eventFilter(o, time.Now())
	if err != nil {
		return err
	}
	if o.Follow {
		return followEvents(ctx, a, filter, o.Tail)
	}
	return a.read(ctx, func(ctx context.Context, a *app) (view, error) {
		events, _, err := listEvents(ctx, a, filter, o.Tail)
		return eventView(events), err
	})
}

// eventFilter is what the command line asks for.
func eventFilter(o EventsOptions, now time.Time) (*capsulev1.EventFilter, error) {
	f := &capsulev1.EventFilter{Workload: o.Workload, Kind: strings.TrimSuffix(strings.ToLower(o.Kind), "s")}
	number, isNumber := strings.CutPrefix(o.Since, "#")
	if !isNumber {
		var err error
		f.Since, err = parseSince(o.Since, now)
		return f, err
	}
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil || n == 0 {
		return nil, &failure{exitUsage, fmt.Errorf("since %q: no number of an event", o.Since), "events are numbered from 1: --since '#120'"}
	}
	f.After = n - 1
	return f, nil
}

// listEvents gives what is kept, or the last of it, and how far that goes.
func listEvents(ctx context.Context, a *app, f *capsulev1.EventFilter, tail int) (events []*capsulev1.Event, through uint64, err error) {
	request := &capsulev1.EventServiceListRequest{Filter: &capsulev1.EventFilter{After: f.GetAfter(), Since: f.GetSince(), Workload: f.GetWorkload(), Kind: f.GetKind()}}
	for {
		answer, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.EventServiceListResponse, error) {
			return c.events.List(ctx, request)
		})
		if err != nil {
			return events, through, err
		}
		tellMissed(a, answer.GetMissed())
		events = append(events, answer.GetEvents()...)
		if tail >= 0 && len(events) > tail {
			events = events[len(events)-tail:]
		}
		through = answer.GetThrough()
		if !answer.GetMore() || through <= request.Filter.After {
			return events, through, nil
		}
		request.Filter.After = through
	}
}

func tellMissed(a *app, m *capsulev1.MissedEvents) {
	if m != nil {
		a.ui.warn(fmt.Sprintf("events up to %d are gone; the oldest that is kept is %d", m.GetThrough(), m.GetOldest()))
	}
}

// followEvents goes on over breaks of the connection at the number it has come to.
func followEvents(ctx context.Context, a *app, f *capsulev1.EventFilter, tail int) error {
	events, through, err := listEvents(ctx, a, f, tail)
	if err != nil {
		return err
	}
	if err := printEvents(a, events); err != nil {
		return err
	}
	f.After = through
	var breaks patience
	for {
		answered, err := watchEvents(ctx, a, f)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // ending a follow is no failure
		case !isBreak(err):
			return err
		}
		if breaks.tell(a.ui, answered) {
			return err
		}
		pause(ctx, followAgain)
	}
}

// watchEvents prints what comes, and notes in the filter how far it has come. The
// capsule answers at once, also when nothing has happened.
func watchEvents(ctx context.Context, a *app, f *capsulev1.EventFilter) (answered bool, err error) {
	c, err := a.dial()
	if err != nil {
		return false, err
	}
	stream, err := c.events.Watch(ctx, &capsulev1.EventServiceWatchRequest{Filter: f})
	if err != nil {
		return false, err
	}
	for ; ; answered = true {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return answered, io.ErrUnexpectedEOF
		}
		if err != nil {
			return answered, err
		}
		tellMissed(a, part.GetMissed())
		if err := printEvents(a, part.GetEvents()); err != nil {
			return answered, err
		}
		f.After = part.GetThrough()
	}
}

var eventColumns = []string{"NUMBER", "TIME", "OBJECT", "TYPE", "MESSAGE"}

func eventView(events []*capsulev1.Event) view {
	v := view{columns: eventColumns, empty: "no such event is kept"}
	for _, e := range events {
		v.rows = append(v.rows, eventRow(e))
		v.names = append(v.names, fmt.Sprint(e.GetId()))
		v.values = append(v.values, e)
	}
	return v
}

func eventRow(e *capsulev1.Event) []string {
	object := strings.ToLower(e.GetKind()) + "/" + e.GetName()
	text := strings.TrimPrefix(e.GetMessage(), strings.ToLower(e.GetKind())+" "+e.GetName()+": ")
	row := []string{fmt.Sprint(e.GetId()), e.GetTime().AsTime().UTC().Format(time.RFC3339), object, e.GetType(), text}
	for i := range row {
		row[i] = printable(row[i])
	}
	return row
}

// eventWidths are those of the columns of a table that has no end.
const eventWidths = "%-6s   %-20s   %-24s   %-14s   %s\n"

// printEvents prints some of many that are still to come.
func printEvents(a *app, events []*capsulev1.Event) error {
	for _, e := range events {
		switch a.output {
		case formatTable:
			row := eventRow(e)
			a.ui.printf(eventWidths, row[0], row[1], row[2], row[3], row[4])
		case formatJSON: // one a line
			data, err := encodeJSON(e)
			if err != nil {
				return err
			}
			a.ui.printf("%s\n", data)
		case formatYAML:
			a.ui.printf("---\n")
			if err := a.ui.show(a.output, view{values: []any{e}}); err != nil {
				return err
			}
		default:
			a.ui.printf("%d\n", e.GetId())
		}
	}
	return nil
}
