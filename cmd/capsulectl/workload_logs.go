package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	capsulev1 "capsule/api/capsule/v1"
)

// Bounds of following logs over a break: a capsule under emulation needs
// minutes to boot.
const (
	followAgain = time.Second
	followMax   = 10 * time.Minute // without any answer
)

// LogsOptions of "workload logs".
type LogsOptions struct {
	Follow     bool
	Tail       int64
	Since      string
	Timestamps bool
	Serial     bool
}

func newWorkloadLogsCommand(a *app) *cobra.Command {
	var o LogsOptions
	cmd := &cobra.Command{
		Use:   "logs NAME",
		Short: "Print what a workload wrote",
		Long: `Prints what a workload wrote, byte for byte: its standard output to the standard
output, its errors to the standard error. Starts and ends of the workload are
marked by lines on the standard error that begin with "---".

--follow goes on through restarts of the workload, of the daemon and of the
machine, and ends when the workload is deleted.

--serial prints the serial console of a MicroVM instead: its kernel, and the
capsule's agent in it.`,
		Example: `  capsulectl workload logs web --tail 20
  capsulectl workload logs web -f --since 10m
  capsulectl workload logs web --serial --tail 50`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runWorkloadLogs(cmd.Context(), a, o, args[0]) },
	}
	flags := cmd.Flags()
	flags.BoolVarP(&o.Follow, "follow", "f", false, "go on with what is written from now on")
	flags.Int64Var(&o.Tail, "tail", -1, "only the last lines; -1 is all")
	flags.StringVar(&o.Since, "since", "", "only what is younger than this: a duration (10m) or a time (2026-01-31T08:00:00Z)")
	flags.BoolVar(&o.Timestamps, "timestamps", false, "put the time in front of each line")
	flags.BoolVar(&o.Serial, "serial", false, "the serial console of a MicroVM instead")
	return cmd
}

func runWorkloadLogs(ctx context.Context, a *app, o LogsOptions, name string) error {
	since, err := parseSince(o.Since, time.Now())
	if err != nil {
		return err
	}
	p := &logPrinter{ui: a.ui, timestamps: o.Timestamps}
	request := &capsulev1.LogsRequest{Name: name, Follow: o.Follow, Tail: o.Tail, Since: since, Serial: o.Serial}
	return readLog(ctx, a.ui, o.Follow, func() (bool, error) { return readLogs(ctx, a, request, p) }, func() { p.resume(request) })
}

// readLog reads a log to its end. One that is followed is read again after a break, for
// which resume changes what is asked for; answered tells whether the capsule let us in.
func readLog(ctx context.Context, u *ui, follow bool, read func() (answered bool, err error), resume func()) error {
	var breaks patience
	for {
		answered, err := read()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil && follow:
			return nil // ending a follow is no failure
		case !follow || !isBreak(err) || !answered && breaks.never():
			return err
		}
		if breaks.tell(u, answered) {
			return err
		}
		resume()
		pause(ctx, followAgain)
	}
}

// printAll prints the pieces of a log; answered tells whether the capsule let us in,
// though there may be nothing to print.
func printAll[T any](stream grpc.ServerStreamingClient[T], print func(*T) error) (answered bool, err error) {
	header, err := stream.Header()
	answered = err == nil && header != nil
	for {
		piece, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return answered, nil
		}
		if err != nil {
			return answered, err
		}
		if err := print(piece); err != nil {
			return answered, err
		}
	}
}

// isBreak tells a connection that broke from an answer.
func isBreak(err error) bool {
	code := grpcstatus.Code(err)
	return code == codes.Unavailable || code == codes.Aborted
}

// lostText is said of a connection that broke.
const lostText = "--- connection lost; trying again"

// patience is for a connection that is made again after a break, while the capsule
// does not stay away for longer than followMax.
type patience struct{ since time.Time }

// never tells that there was no break yet.
func (p *patience) never() bool { return p.since.IsZero() }

// broke notes a break, and whether the capsule has answered since the one before:
// the first of a row is to be told, and over ends it.
func (p *patience) broke(answered bool) (first, over bool) {
	if first = answered || p.never(); first {
		p.since = time.Now()
	}
	return first, time.Since(p.since) > followMax
}

// tell says once in a row that the connection broke; over ends it.
func (p *patience) tell(u *ui, answered bool) (over bool) {
	first, over := p.broke(answered)
	if first && !over {
		u.note("%s", lostText)
	}
	return over
}

func parseSince(s string, now time.Time) (*timestamppb.Timestamp, error) {
	if s == "" {
		return nil, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return timestamppb.New(now.Add(-d)), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return nil, &failure{exitUsage, fmt.Errorf("since %q: neither a duration nor a time", s), "write 10m, or 2026-01-31T08:00:00Z"}
	}
	return timestamppb.New(t), nil
}

// readLogs prints what comes, as printAll.
func readLogs(ctx context.Context, a *app, request *capsulev1.LogsRequest, p *logPrinter) (answered bool, err error) {
	c, err := a.dial()
	if err != nil {
		return false, err
	}
	stream, err := c.workloads.Logs(ctx, request)
	if err != nil {
		return false, err
	}
	return printAll(stream, p.print)
}

// logTimeFormat is before each line with --timestamps.
const logTimeFormat = "2006-01-02T15:04:05.000000Z"

// reached is how far a log was printed, to go on there after a break: at the time of the
// last piece, less the pieces of that time that were already printed.
type reached struct {
	last     time.Time
	sameTime int // pieces printed that carry the time last
	skip     int
}

// since is from when on to ask after a break; nil when nothing was printed yet.
func (p *reached) since() *timestamppb.Timestamp {
	if p.last.IsZero() {
		return nil
	}
	p.skip = p.sameTime
	return timestamppb.New(p.last)
}

// passed tells whether a piece was printed before the break, and notes it if not.
func (p *reached) passed(t time.Time) bool {
	if p.skip > 0 {
		if t.Before(p.last) {
			return true
		}
		if t.Equal(p.last) {
			p.skip--
			return true
		}
		p.skip = 0
	}
	if !t.Equal(p.last) {
		p.last, p.sameTime = t, 0
	}
	p.sameTime++
	return false
}

// logPrinter writes pieces.
type logPrinter struct {
	reached
	ui         *ui
	timestamps bool
	inLine     map[capsulev1.Stream]bool
}

func (p *logPrinter) resume(request *capsulev1.LogsRequest) {
	if since := p.since(); since != nil {
		request.Tail, request.Since = -1, since
	}
}

func (p *logPrinter) print(piece *capsulev1.LogsResponse) error {
	t := piece.GetTime().AsTime()
	if p.passed(t) {
		return nil
	}
	if piece.GetStream() == capsulev1.Stream_STREAM_EVENT {
		p.ui.note("--- %s %s", t.UTC().Format(time.RFC3339), trimLine(piece.GetData()))
		return nil
	}
	out := p.ui.out
	if piece.GetStream() == capsulev1.Stream_STREAM_STDERR {
		out = p.ui.err
	}
	if p.timestamps && !p.inLine[piece.GetStream()] {
		if _, err := io.WriteString(out, t.UTC().Format(logTimeFormat)+" "); err != nil {
			return err
		}
	}
	if p.inLine == nil {
		p.inLine = map[capsulev1.Stream]bool{}
	}
	p.inLine[piece.GetStream()] = piece.GetPartial()
	_, err := out.Write(piece.GetData())
	return err
}

func trimLine(data []byte) string {
	for len(data) > 0 && data[len(data)-1] == '\n' {
		data = data[:len(data)-1]
	}
	return string(data)
}
