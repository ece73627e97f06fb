package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	capsulev1 "capsule/api/capsule/v1"
)

// TopOptions of "top".
type TopOptions struct {
	Once     bool
	Sort     string
	Interval time.Duration
}

// Orders of the rows of "top".
const (
	sortCPU    = "cpu"
	sortMemory = "memory"
	sortName   = "name"
)

var sorts = []string{sortCPU, sortMemory, sortName}

// Bounds of --interval.
const (
	topMin = 500 * time.Millisecond
	topMax = time.Minute
)

func newTopCommand(a *app) *cobra.Command {
	var o TopOptions
	cmd := onMany(a, &cobra.Command{
		Use: "top", Short: "Show what the machine and its workloads take up now",
		Long: `Shows processors, memory, disks and network, of the machine and of each workload of
either kind, again and again until it is interrupted. CPU is in percent of one
processor. READ and WRITE are what reaches the disks; RX and TX are the workload's
own link, which one in the capsule's own network ("network: host") has none of.

--once, -o json, several capsules, or a standard output that is no terminal show it
once, as it was during a second. Ctrl-C ends it.`,
		Example: `  capsulectl top
  capsulectl top --sort memory
  capsulectl top --once --all -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case !slices.Contains(sorts, o.Sort):
				return usage(cmd, fmt.Errorf("sort %q: want %s", o.Sort, strings.Join(sorts, ", ")))
			case o.Interval < topMin || o.Interval > topMax:
				return usage(cmd, fmt.Errorf("interval %v: want %v to %v", o.Interval, topMin, topMax))
			}
			return runTop(cmd.Context(), a, o)
		},
	})
	flags := cmd.Flags()
	flags.BoolVar(&o.Once, "once", false, "show it once")
	flags.StringVar(&o.Sort, "sort", sortCPU, "order: cpu, memory or name")
	flags.DurationVar(&o.Interval, "interval", 2*time.Second, "time between two looks")
	return cmd
}

func runTop(ctx context.Context, a *app, o TopOptions) error {
	if o.Once || !a.ui.outMoves || a.output != formatTable || a.many() {
		return a.read(ctx, func(ctx context.Context, a *app) (view, error) { return topOnce(ctx, a, o.Sort) })
	}
	before, err := sample(ctx, a)
	if err != nil {
		return err
	}
	t := &liveTop{app: a, order: o.Sort, before: before, screen: screen{ui: a.ui}, resized: make(chan struct{}, 1)}
	defer t.screen.end()
	done := make(chan struct{})
	defer close(done)
	go watchSize(done, func() {
		select {
		case t.resized <- struct{}{}:
		default: // it will be looked at
		}
	})
	for wait := time.Second; ; wait = o.Interval {
		if err := t.wait(ctx, wait); err != nil {
			return err
		}
		err := t.look(ctx)
		if ctx.Err() != nil {
			return nil // it is how one leaves it
		}
		if err != nil {
			return err
		}
	}
}

// liveTop is a table that is measured and drawn again and again.
type liveTop struct {
	app     *app
	order   string
	before  *capsulev1.SampleResponse
	shown   view // nothing before the first look
	below   string
	screen  screen
	resized chan struct{}
	breaks  patience
}

// wait draws the table again at each new size of the terminal meanwhile.
func (t *liveTop) wait(ctx context.Context, d time.Duration) error {
	over := time.After(d)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-over:
			return nil
		case <-t.resized:
			if err := t.draw(); err != nil {
				return err
			}
		}
	}
}

func (t *liveTop) draw() error {
	if t.shown.columns == nil {
		return nil
	}
	return t.screen.show(t.shown, t.below)
}

// look measures anew. While the capsule does not answer, such as while it starts
// again, what was last seen stays.
func (t *liveTop) look(ctx context.Context) error {
	now, err := sample(ctx, t.app)
	if err == nil {
		t.shown, t.below = topView(measure(t.before, now), t.order), ""
		t.before = now
		return t.draw()
	}
	if !isBreak(err) && grpcstatus.Code(err) != codes.DeadlineExceeded {
		return err
	}
	if _, over := t.breaks.broke(t.below == ""); over {
		return err
	}
	t.below = lostText
	return t.draw()
}

// topOnce looks twice, a second apart.
func topOnce(ctx context.Context, a *app, order string) (view, error) {
	before, err := sample(ctx, a)
	if err != nil {
		return view{}, err
	}
	pause(ctx, time.Second)
	now, err := sample(ctx, a)
	if err != nil {
		return view{}, err
	}
	return topView(measure(before, now), order), nil
}

func sample(ctx context.Context, a *app) (*capsulev1.SampleResponse, error) {
	return call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.SampleResponse, error) {
		return c.stats.Sample(ctx, &capsulev1.SampleRequest{})
	})
}

// Rates are what something takes up, by two samples. Bytes, and bytes per second.
type Rates struct {
	Kind        string    `json:"kind"`
	Name        string    `json:"name,omitempty"`
	Time        time.Time `json:"time"`
	Running     bool      `json:"running"`
	CPUPercent  float64   `json:"cpuPercent"`
	Memory      uint64    `json:"memory"`
	MemoryLimit uint64    `json:"memoryLimit,omitempty"`
	Read        float64   `json:"readPerSecond"`
	Written     float64   `json:"writtenPerSecond"`
	Received    *float64  `json:"receivedPerSecond,omitempty"`
	Sent        *float64  `json:"sentPerSecond,omitempty"`
	Processes   uint64    `json:"processes,omitempty"`
	Message     string    `json:"message,omitempty"`
}

// machineKind is that of the row of the machine, which comes first.
const machineKind = "Capsule"

// measure compares two samples. Of what was started between them it tells what is
// known: counters that began anew count from zero.
func measure(before, now *capsulev1.SampleResponse) []Rates {
	seconds := now.GetUptime().AsDuration().Seconds() - before.GetUptime().AsDuration().Seconds()
	at := now.GetTime().AsTime()
	all := []Rates{rates(before.GetMachine().GetUse(), now.GetMachine().GetUse(), seconds)}
	all[0].Kind, all[0].Time = machineKind, at
	old := map[string]*capsulev1.WorkloadUse{}
	for _, w := range before.GetWorkloads() {
		old[w.GetUid()] = w
	}
	for _, w := range now.GetWorkloads() {
		was := old[w.GetUid()].GetUse()
		if old[w.GetUid()].GetRunningGeneration() != w.GetRunningGeneration() {
			was = nil
		}
		if was == nil {
			was = w.GetUse() // one sample tells no rate
		}
		r := rates(was, w.GetUse(), seconds)
		r.Kind, r.Name, r.Time, r.Message = w.GetKind(), w.GetName(), at, w.GetMessage()
		r.Running = w.GetRunningGeneration() != 0
		all = append(all, r)
	}
	return all
}

func rates(before, now *capsulev1.Use, seconds float64) Rates {
	rate := func(from, to uint64) float64 {
		switch {
		case seconds <= 0:
			return 0
		case to < from: // it began anew
			from = 0
		}
		return float64(to-from) / seconds
	}
	r := Rates{Running: now != nil, Memory: now.GetMemory(), MemoryLimit: now.GetMemoryLimit(), Processes: now.GetPids()}
	cpu := func(u *capsulev1.Use) uint64 { return uint64(max(0, u.GetCpu().AsDuration())) }
	r.CPUPercent = rate(cpu(before), cpu(now)) / float64(time.Second) * 100
	r.Read, r.Written = rate(before.GetIoRead(), now.GetIoRead()), rate(before.GetIoWritten(), now.GetIoWritten())
	if now != nil && now.NetReceived != nil {
		received, sent := rate(before.GetNetReceived(), now.GetNetReceived()), rate(before.GetNetSent(), now.GetNetSent())
		r.Received, r.Sent = &received, &sent
	}
	return r
}

var topColumns = []string{"NAME", "KIND", "CPU", "MEMORY", "LIMIT", "READ/s", "WRITE/s", "RX/s", "TX/s", "PROCESSES"}

// topView puts the machine first, then what runs in the order asked for, then the
// rest.
func topView(all []Rates, order string) view {
	slices.SortStableFunc(all, func(a, b Rates) int {
		first := func(r Rates) int {
			switch {
			case r.Kind == machineKind:
				return 0
			case r.Running:
				return 1
			}
			return 2
		}
		by := cmp.Compare(first(a), first(b))
		switch order {
		case sortCPU:
			by = cmp.Or(by, cmp.Compare(b.CPUPercent, a.CPUPercent))
		case sortMemory:
			by = cmp.Or(by, cmp.Compare(b.Memory, a.Memory))
		}
		return cmp.Or(by, strings.Compare(a.Name, b.Name))
	})
	v := view{columns: topColumns}
	for _, r := range all {
		v.rows = append(v.rows, r.row())
		v.names = append(v.names, cmp.Or(r.Name, "machine"))
		v.values = append(v.values, r)
	}
	return v
}

func (r Rates) row() []string {
	name := cmp.Or(r.Name, "machine")
	switch {
	case r.Message != "":
		return []string{name, r.Kind, "?", "", "", "", "", "", "", printable(r.Message)}
	case !r.Running:
		return []string{name, r.Kind, "", "", "", "", "", "", "", ""}
	}
	optional := func(n *float64) string {
		if n == nil {
			return ""
		}
		return size(int64(*n))
	}
	limit, processes := "", ""
	if r.MemoryLimit > 0 {
		limit = size(int64(r.MemoryLimit)) //nolint:gosec // bytes of a machine
	}
	if r.Processes > 0 {
		processes = fmt.Sprint(r.Processes)
	}
	return []string{
		name, r.Kind, fmt.Sprintf("%.1f %%", r.CPUPercent), size(int64(r.Memory)), limit, //nolint:gosec // as above
		size(int64(r.Read)), size(int64(r.Written)), optional(r.Received), optional(r.Sent), processes,
	}
}
