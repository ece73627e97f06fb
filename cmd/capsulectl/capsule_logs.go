package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
)

// bootsService has the lines that stand where a boot begins.
const bootsService = "boots"

// CapsuleLogsOptions of "capsule logs".
type CapsuleLogsOptions struct {
	Follow     bool
	Tail       int64
	Since      string
	Boot       bool
	Timestamps bool
}

func newCapsuleLogsCommand(a *app) *cobra.Command {
	var o CapsuleLogsOptions
	cmd := &cobra.Command{
		Use: "logs [SERVICE]", Short: "Print what the system's services wrote",
		Long: `Prints the logs of capsuled (the API and all that decides), pid1 (start, end and
watchdog), containerd or the kernel, or of all of them. They are kept over
restarts of the machine, within bounds.

Where a boot begins, a line on the standard error that begins with "---" says so,
and how the boot before ended: a reboot and who asked for it, a panic of the
kernel, a reset by a watchdog, or no orderly end, as of a power cut. "boots" is a
service of these lines alone.

--follow goes on through restarts of the daemon and of the machine.`,
		Example: `  capsulectl capsule logs capsuled --tail 50
  capsulectl capsule logs --since 10m -f
  capsulectl capsule logs kernel --boot
  capsulectl capsule logs boots`,
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"capsuled", "pid1", "containerd", "kernel", bootsService},
		RunE: func(cmd *cobra.Command, args []string) error {
			return runCapsuleLogs(cmd.Context(), a, o, strings.Join(args, ""))
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&o.Follow, "follow", "f", false, "go on with what is written from now on")
	flags.Int64Var(&o.Tail, "tail", -1, "only the last lines; -1 is all")
	flags.StringVar(&o.Since, "since", "", "only what is younger than this: a duration (10m) or a time (2026-01-31T08:00:00Z)")
	flags.BoolVar(&o.Boot, "boot", false, "only what was written since the machine's last start")
	flags.BoolVar(&o.Timestamps, "timestamps", false, "put the time in front of each line")
	return cmd
}

func runCapsuleLogs(ctx context.Context, a *app, o CapsuleLogsOptions, service string) error {
	since, err := parseSince(o.Since, time.Now())
	if err != nil {
		return err
	}
	request := &capsulev1.CapsuleServiceLogsRequest{Service: service, Follow: o.Follow, Tail: o.Tail, Since: since, ThisBoot: o.Boot}
	p := &systemLogPrinter{ui: a.ui, service: service, timestamps: o.Timestamps}
	return readLog(ctx, a.ui, o.Follow, func() (bool, error) { return readSystemLog(ctx, a, request, p) }, func() {
		if since := p.since(); since != nil {
			// What the last boot wrote until its end is wanted, too.
			request.Tail, request.Since, request.ThisBoot = -1, since, false
		}
	})
}

// readSystemLog prints what comes, as printAll.
func readSystemLog(ctx context.Context, a *app, request *capsulev1.CapsuleServiceLogsRequest, p *systemLogPrinter) (answered bool, err error) {
	c, err := a.dial()
	if err != nil {
		return false, err
	}
	stream, err := c.capsule.Logs(ctx, request)
	if err != nil {
		return false, err
	}
	return printAll(stream, p.print)
}

// systemLogPrinter writes lines of the system's own services.
type systemLogPrinter struct {
	reached
	ui         *ui
	service    string // "" when those of all are printed
	timestamps bool
}

func (p *systemLogPrinter) print(line *capsulev1.CapsuleServiceLogsResponse) error {
	t := time.Time{} // a line may have none
	if line.GetTime() != nil {
		t = line.GetTime().AsTime()
		if p.passed(t) {
			return nil
		}
	}
	text := trimLine(line.GetData())
	if line.GetService() == bootsService && p.service != bootsService {
		p.ui.note("--- %s %s", t.UTC().Format(time.RFC3339), text)
		return nil
	}
	if p.service == "" {
		text = line.GetService() + ": " + text
	}
	if p.timestamps || p.service == bootsService {
		text = t.UTC().Format(logTimeFormat) + " " + text
	}
	_, err := fmt.Fprintln(p.ui.out, text)
	return err
}
