package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	capsulev1 "capsule/api/capsule/v1"
	"capsule/api/manifest"
)

func newCapsuleInfoCommand(a *app) *cobra.Command {
	return onMany(a, &cobra.Command{
		Use: "info", Short: "Show the machine and how it is, what is wrong first",
		Long: `Shows the machine and how it is. What is degraded comes first, the worst of all
at the top, each with what can be done about it: "critical" does not work, or data
is in danger; "warning" works, and may not for long; "note" is worth knowing.

Disks are asked for their health every 20 minutes, temperatures are read every 30
seconds; a disk that sleeps is not woken up. "-o json" has all that is known of each,
and "problems" with ids that stay the same.`,
		Example: `  capsulectl capsule info
  capsulectl capsule info -o json
  capsulectl capsule info --all`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.read(cmd.Context(), capsuleInfo) },
	})
}

func capsuleInfo(ctx context.Context, a *app) (view, error) {
	info, err := call(ctx, a, func(ctx context.Context, c *client) (*capsulev1.InfoResponse, error) {
		return c.capsule.Info(ctx, &capsulev1.InfoRequest{})
	})
	if err != nil {
		return view{}, err
	}
	v := view{single: true, names: []string{info.GetName()}, values: []any{info}, summary: infoSummary(info)}
	if a.output != formatTable {
		return v, nil
	}
	other := ""
	if info.GetMode() == capsulev1.Mode_MODE_NORMAL {
		if s, err := fetchUpdateStatus(ctx, a); err == nil && s.GetOther() != nil { // all else is worth an answer
			other = s.GetOther().GetVersion() + " in " + s.GetOther().GetSlot()
		}
	}
	v.rows = append(problemRows(info.GetProblems()), infoFacts(info, other)...)
	if info.GetPool() != nil {
		volumes, err := fetchObjects(ctx, a, manifest.KindVolume)
		if err != nil {
			return v, err
		}
		v.rows = append(v.rows, storageFacts(info.GetPool(), volumes)...)
	}
	return v, nil
}

var severityNames = map[capsulev1.Severity]string{
	capsulev1.Severity_SEVERITY_NOTE: "note", capsulev1.Severity_SEVERITY_WARNING: "warning", capsulev1.Severity_SEVERITY_CRITICAL: "critical",
}

// problemRows are two lines for each: what is wrong, and what to do.
func problemRows(problems []*capsulev1.Problem) (rows [][]string) {
	for _, p := range problems {
		rows = append(rows, []string{cmp.Or(severityNames[p.GetSeverity()], "problem") + ":", p.GetWhat()}, []string{"  next:", p.GetNext()})
	}
	return rows
}

func modeText(i *capsulev1.InfoResponse) string {
	mode := strings.ToLower(strings.TrimPrefix(i.GetMode().String(), "MODE_"))
	if r := i.GetModeReason(); r != "" {
		mode += " (" + r + ")"
	}
	return mode
}

// infoSummary is a machine in one row.
func infoSummary(i *capsulev1.InfoResponse) *view {
	worst := "none"
	if list := i.GetProblems(); len(list) > 0 {
		worst = severityNames[list[0].GetSeverity()] + ": " + list[0].GetWhat()
		if len(list) > 1 {
			worst += fmt.Sprintf(" (and %d more)", len(list)-1)
		}
	}
	return &view{
		columns: []string{"NAME", "VERSION", "MODE", "UP", "ADDRESSES", "MEMORY FREE", "STORAGE FREE", "RUNNING", "PROBLEMS"},
		rows: [][]string{{
			i.GetName(), i.GetVersion(), modeText(i), age(i.GetBootedAt().AsTime(), i.GetTime().AsTime()), strings.Join(i.GetAddresses(), ", "),
			size(int64(i.GetMemoryAvailable())), size(int64(i.GetPermFree())), //nolint:gosec // bytes of a machine
			fmt.Sprintf("%d of %d", i.GetWorkloadsRunning(), i.GetWorkloads()), worst,
		}},
	}
}

func infoFacts(i *capsulev1.InfoResponse, other string) [][]string {
	now := i.GetTime().AsTime()
	facts := [][]string{{"name:", i.GetName()}, {"id:", i.GetId()}, {"version:", i.GetVersion()}, {"slot:", i.GetSlot()}, {"mode:", modeText(i)}}
	if t := i.GetTentative(); t != nil {
		facts = append(facts, []string{"update:", tentativeText(t)})
	}
	if other != "" {
		facts = append(facts, []string{"other slot:", other})
	}
	facts = append(facts, [][]string{
		{"kernel:", i.GetKernel() + " " + i.GetArchitecture()},
		{"up:", age(i.GetBootedAt().AsTime(), now)},
		{"time:", now.UTC().Format(time.RFC3339) + ", " + clockText(i)},
	}...)
	facts = append(facts, networkFacts(i)...)
	facts = append(facts, [][]string{
		{"processors:", processorText(i)},
		{"virtualization:", cmp.Or(i.GetVirtualization(), "-")},
		{"memory:", fmt.Sprintf("%s free of %s", size(int64(i.GetMemoryAvailable())), size(int64(i.GetMemoryTotal())))}, //nolint:gosec // bytes of a machine
	}...)
	if text := temperatureText(i.GetTemperatures()); text != "" {
		facts = append(facts, []string{"temperature:", text})
	}
	for _, d := range i.GetDisks() {
		facts = append(facts, []string{"disk " + d.GetName() + ":", diskText(d, now)})
	}
	return append(facts, [][]string{
		{"storage:", fmt.Sprintf("%s free of %s", size(int64(i.GetPermFree())), size(int64(i.GetPermTotal())))}, //nolint:gosec // as above
		{"workloads:", fmt.Sprintf("%d running of %d", i.GetWorkloadsRunning(), i.GetWorkloads())},
		{"secrets:", i.GetSecrets()},
		{"TPM:", cmp.Or(i.GetTpm(), "none")},
		{"daemon starts:", fmt.Sprint(i.GetDaemonStarts())},
		{"watchdog:", i.GetWatchdog()},
	}...)
}

// clockText says whether the time is right, and by how much it was wrong.
func clockText(i *capsulev1.InfoResponse) string {
	c := i.GetClock()
	if !i.GetClockSynchronized() {
		return joinState("not set from the network yet", oneLine(strings.ReplaceAll(c.GetError(), "\n", "; ")))
	}
	text := "set from the network"
	if c.GetCheckedAt() == nil {
		return text
	}
	off := c.GetOffset().AsDuration()
	way := "behind"
	if off < 0 {
		way = "ahead"
	}
	return fmt.Sprintf("%s: %v %s when %s answered %s ago", text, off.Abs().Round(time.Microsecond), way, c.GetServer(), age(c.GetCheckedAt().AsTime(), i.GetTime().AsTime()))
}

func networkFacts(i *capsulev1.InfoResponse) [][]string {
	facts := [][]string{{"addresses:", cmp.Or(strings.Join(i.GetAddresses(), ", "), i.GetNetworkMessage())}}
	for _, l := range i.GetUplinks() {
		state := "no cable"
		if l.GetCarrier() {
			state = "up"
		}
		if l.GetSpeed() > 0 {
			state += fmt.Sprintf(", %d Mbit/s", l.GetSpeed())
		}
		facts = append(facts, []string{"uplink " + l.GetName() + ":", state + ", " + l.GetHardwareAddress()})
	}
	if list := i.GetNameServers(); len(list) > 0 {
		facts = append(facts, []string{"name servers:", strings.Join(list, ", ")})
	}
	return facts
}

func processorText(i *capsulev1.InfoResponse) string {
	text := fmt.Sprint(i.GetCpus())
	if i.GetCpuModel() != "" {
		text += " of " + i.GetCpuModel()
	}
	for n, l := range i.GetLoad() {
		text += []string{"; load ", ", ", ", "}[min(n, 2)] + fmt.Sprintf("%.2f", l)
	}
	return text
}

// temperatureText is the hottest sensor, measured by what it bears.
func temperatureText(list []*capsulev1.Temperature) string {
	var worst *capsulev1.Temperature
	share := func(t *capsulev1.Temperature) float64 {
		const usual = 100 // degrees that most parts bear
		return t.GetCelsius() / cmp.Or(t.GetCritical(), usual)
	}
	for _, t := range list {
		if worst == nil || share(t) > share(worst) {
			worst = t
		}
	}
	if worst == nil {
		return ""
	}
	text := fmt.Sprintf("%s %.0f °C", worst.GetName(), worst.GetCelsius())
	if worst.GetCritical() > 0 {
		text += fmt.Sprintf(" of %.0f °C", worst.GetCritical())
	}
	if n := len(list) - 1; n > 0 {
		text += fmt.Sprintf(", the hottest of %d sensors", n+1)
	}
	return text
}

var healthStates = map[capsulev1.DiskHealthState]string{
	capsulev1.DiskHealthState_DISK_HEALTH_STATE_PENDING: "not asked yet", capsulev1.DiskHealthState_DISK_HEALTH_STATE_SILENT: "health unknown",
	capsulev1.DiskHealthState_DISK_HEALTH_STATE_GOOD: "good", capsulev1.DiskHealthState_DISK_HEALTH_STATE_WORN: "WORN", capsulev1.DiskHealthState_DISK_HEALTH_STATE_FAILING: "FAILING",
}

func diskText(d *capsulev1.DiskHealth, now time.Time) string {
	parts := []string{joinState(cmp.Or(healthStates[d.GetState()], "health unknown"), d.GetMessage())}
	if d.GetAsleep() {
		parts = append(parts, "asleep")
	}
	if d.GetCelsius() != 0 {
		parts = append(parts, fmt.Sprintf("%d °C", d.GetCelsius()))
	}
	if d.UsedPercent != nil {
		parts = append(parts, fmt.Sprintf("%d %% of its life used", d.GetUsedPercent()))
	}
	if h := d.GetPowerOnHours(); h > 0 {
		parts = append(parts, fmt.Sprintf("on for %s", age(now.Add(-time.Duration(h)*time.Hour), now))) //nolint:gosec // hours of a life
	}
	what := strings.Join(strings.Fields(d.GetModel()+" "+d.GetSerial()), " ")
	if d.GetSystem() {
		what += ", the system's"
	}
	return strings.TrimPrefix(fmt.Sprintf("%s; %s, %s", strings.Join(parts, ", "), size(int64(d.GetSize())), what), "; ") //nolint:gosec // bytes of a disk
}
