// Package problem tells what is degraded on a capsule, and what its operator can do
// about each thing. It is one pure function of what the machine tells of itself: it
// looks at nothing, and keeps nothing.
package problem

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "capsule/api/capsule/v1"
)

// Limits from which on something counts as a problem.
const (
	permWarn     = 80 // percent of /perm
	permCritical = 97
	memoryLow    = 5 // percent that is free
	clockWrong   = 2 * time.Second
	clockPatient = 15 * time.Minute // of a start: a time server may be slow
	crashes      = 3                // starts of the daemon since the boot, beyond the first
	textMax      = 300              // runes of a sentence: workloads may say anything
)

// Facts are all that counts: what Info tells, and the objects that are declared.
type Facts struct {
	Info *v1.InfoResponse
	// Objects with their status; in recovery mode nothing is told of them.
	Objects []*v1.Object
}

// Of gives what is degraded, the worst first, then in the order of the rules below.
func Of(f Facts) []*v1.Problem {
	list := &found{}
	i := f.Info
	list.mode(i)
	list.disks(i)
	list.pool(i)
	list.perm(i)
	list.heat(i)
	list.network(i)
	list.trial(i)
	if i.GetMode() == v1.Mode_MODE_NORMAL {
		for _, o := range f.Objects {
			list.configuration(o.GetCapsule().GetStatus(), i.GetTime().AsTime())
			list.volume(o)
			list.workload(o)
		}
	}
	list.clock(i)
	list.daemon(i)
	list.memory(i)
	slices.SortStableFunc(list.all, func(a, b *v1.Problem) int { return cmp.Compare(b.GetSeverity(), a.GetSeverity()) })
	return list.all
}

type found struct{ all []*v1.Problem }

func (l *found) add(severity v1.Severity, id, next, format string, args ...any) {
	l.all = append(l.all, &v1.Problem{Severity: severity, Id: id, What: short(fmt.Sprintf(format, args...)), Next: next})
}

const (
	critical = v1.Severity_SEVERITY_CRITICAL
	warning  = v1.Severity_SEVERITY_WARNING
	note     = v1.Severity_SEVERITY_NOTE
)

func (l *found) mode(i *v1.InfoResponse) {
	if i.GetMode() == v1.Mode_MODE_RECOVERY {
		l.add(critical, "mode", `look with "capsulectl capsule logs"; "capsulectl capsule reboot" tries again, "capsulectl capsule update rollback" starts the system before`,
			"recovery mode, nothing runs: %s", i.GetModeReason())
	}
}

func (l *found) disks(i *v1.InfoResponse) {
	for _, d := range i.GetDisks() {
		id, name := "disk/"+d.GetName(), d.GetName()
		if label := strings.TrimSpace(d.GetModel() + " " + d.GetSerial()); label != "" {
			name += " (" + label + ")"
		}
		switch d.GetState() {
		case v1.DiskHealthState_DISK_HEALTH_STATE_FAILING:
			l.add(critical, id, `make a copy now, "capsulectl capsule backup FILE --volumes"; then replace it, "capsulectl capsule disk replace OLD NEW"`, "disk %s fails: %s", name, d.GetMessage())
		case v1.DiskHealthState_DISK_HEALTH_STATE_WORN:
			l.add(warning, id, "have a copy of what matters elsewhere, and another disk at hand", "disk %s: %s", name, d.GetMessage())
		}
	}
}

func (l *found) pool(i *v1.InfoResponse) {
	p := i.GetPool()
	what, next := p.GetMessage(), `delete files, snapshots or volumes; "capsulectl volume pool" shows the space`
	if at := strings.LastIndex(what, "; "); at >= 0 { // "what is wrong; what to do"
		what, next = what[:at], what[at+2:]
	}
	switch p.GetLevel() {
	case v1.PoolLevel_POOL_LEVEL_FULL, v1.PoolLevel_POOL_LEVEL_CRITICAL:
		l.add(critical, "pool", next, "%s", what)
	case v1.PoolLevel_POOL_LEVEL_WARN:
		l.add(warning, "pool", next, "%s", what)
	}
}

func (l *found) perm(i *v1.InfoResponse) {
	total, used := i.GetPermTotal(), i.GetPermTotal()-min(i.GetPermFree(), i.GetPermTotal())
	if total == 0 {
		return
	}
	const part, mebi = 100, 1 << 20
	full, severity := used/mebi*part/max(total/mebi, 1), warning
	if full < permWarn {
		return
	}
	if full >= permCritical {
		severity = critical
	}
	l.add(severity, "perm", `"capsulectl image prune" frees what no workload uses`, "/perm, which holds the state, images and logs, is %d %% full", full)
}

func (l *found) heat(i *v1.InfoResponse) {
	for _, t := range i.GetTemperatures() {
		if t.GetCritical() > 0 && t.GetCelsius() >= t.GetCritical() {
			l.add(critical, "temperature/"+t.GetName(), "look after fans, dust and room; it slows down or turns off by itself",
				"%s is at %.0f degrees, its limit is %.0f", t.GetName(), t.GetCelsius(), t.GetCritical())
		}
	}
}

func (l *found) network(i *v1.InfoResponse) {
	if len(i.GetAddresses()) > 0 {
		return
	}
	plugged := slices.ContainsFunc(i.GetUplinks(), (*v1.UplinkState).GetCarrier)
	why := i.GetNetworkMessage()
	switch {
	case len(i.GetUplinks()) > 0 && !plugged:
		l.add(critical, "network", "plug the network cable in, at both ends", "no address: no cable is plugged in")
	case why != "":
		l.add(critical, "network", "look after cable and DHCP server, or declare a fixed address", "no address: %s", why)
	}
}

func (l *found) trial(i *v1.InfoResponse) {
	t := i.GetTentative()
	if t == nil {
		return
	}
	severity, text := warning, ""
	if list := t.GetProblems(); len(list) > 0 {
		severity, text = critical, ": "+strings.Join(list, "; ")
	}
	next := `keep it with "capsulectl capsule update confirm"`
	if t.GetConfirmsIn() != nil {
		next = "it confirms itself once it is healthy for long enough"
	}
	l.add(severity, "update", next, "version %s is not confirmed, rolled back in %v%s", i.GetVersion(), t.GetLeft().AsDuration().Round(time.Second), text)
}

// configuration is of the machine as it is declared.
func (l *found) configuration(c *v1.CapsuleStatus, now time.Time) {
	if t := c.GetTrial(); t != nil {
		left := max(0, t.GetUntil().AsTime().Sub(now).Round(time.Second))
		l.add(warning, "network-trial", `"capsulectl apply" confirms it where it goes on; otherwise nothing is to be done`, "a change of the network is tried, taken back in %v", left)
	}
	if why := c.GetReverted(); why != "" {
		l.add(warning, "network-reverted", `correct what is declared: "capsulectl get capsule -o yaml"`, "the change of the network was taken back: %s", why)
	}
	if c.GetPhase() == v1.CapsulePhase_CAPSULE_PHASE_FAILED {
		l.add(warning, "configuration", `correct what is declared: "capsulectl get capsule -o yaml"`, "the machine is not as declared: %s", c.GetMessage())
	}
}

func (l *found) volume(o *v1.Object) {
	name := o.GetMeta().GetName()
	if v := o.GetVolume().GetStatus(); v.GetPhase() == v1.VolumePhase_VOLUME_PHASE_FAILED {
		l.add(critical, "volume/"+name, fmt.Sprintf("\"capsulectl get volume %s\" tells more; workloads that mount it wait", name), "volume %q: %s", name, v.GetMessage())
	}
}

func (l *found) workload(o *v1.Object) {
	name := o.GetMeta().GetName()
	w := o.GetWorkload()
	s := w.GetStatus()
	if w == nil || w.GetIntent().GetStopped() || o.GetMeta().GetDeletedAt() != nil {
		return
	}
	id, next := "workload/"+name, fmt.Sprintf("\"capsulectl workload logs %s\" may tell why", name)
	switch {
	case s.GetRolledBack() != "":
		l.add(warning, id, fmt.Sprintf("change its manifest; \"capsulectl workload history %s\" shows what was tried", name), "workload %q runs as it was before: %s", name, s.GetRolledBack())
	case s.GetPhase() == v1.Phase_PHASE_FAILED:
		l.add(critical, id, fmt.Sprintf("\"capsulectl workload get %s\" tells more", name), "workload %q does not run: %s", name, s.GetMessage())
	case s.GetPhase() == v1.Phase_PHASE_BACK_OFF:
		l.add(critical, id, next, "workload %q ends again and again: %s", name, s.GetMessage())
	case s.GetHealth() == v1.HealthState_HEALTH_STATE_UNHEALTHY:
		l.add(critical, id, next, "workload %q is unhealthy: %s", name, s.GetHealthMessage())
	}
}

func (l *found) clock(i *v1.InfoResponse) {
	up := i.GetTime().AsTime().Sub(i.GetBootedAt().AsTime())
	if c := i.GetClock(); !i.GetClockSynchronized() && up >= clockPatient {
		text := "the clock was never set from the network"
		if c.GetError() != "" {
			text += ": " + c.GetError()
		}
		l.add(warning, "clock", "let it reach a time server, or declare one of yours as ntp", "%s", text)
	} else if off := c.GetOffset().AsDuration(); i.GetClockSynchronized() && off.Abs() >= clockWrong && up >= clockPatient {
		l.add(note, "clock", "it was set right; if it goes on, the battery or the clock of the board is bad", "the clock was wrong by %v when it was last looked at", off.Abs().Round(time.Millisecond))
	}
}

func (l *found) daemon(i *v1.InfoResponse) {
	if n := i.GetDaemonStarts(); n > crashes {
		l.add(warning, "daemon", `"capsulectl capsule logs capsuled" tells why`, "its service was started again %d times since the boot", n-1)
	}
	if i.GetMode() != v1.Mode_MODE_NORMAL {
		return
	}
	if i.GetWatchdog() == "" {
		l.add(warning, "watchdog", "look at the firmware's settings for a watchdog", "no watchdog is armed: what hangs stays so")
	}
	if why, ok := strings.CutPrefix(i.GetVirtualization(), "emulated: "); ok {
		l.add(note, "virtualization", "switch virtualization on in the firmware; in a virtual machine, let it be nested", "microVMs are emulated, and slow: %s", why)
	}
}

func (l *found) memory(i *v1.InfoResponse) {
	const part = 100
	if total := i.GetMemoryTotal(); total > 0 && i.GetMemoryAvailable()*part/total < memoryLow {
		l.add(warning, "memory", `"capsulectl top" shows who takes it`, "less than %d %% of the memory is free", memoryLow)
	}
}

// short is one line of text that fits.
func short(text string) string {
	runes := []rune(strings.Join(strings.Fields(text), " "))
	if len(runes) <= textMax {
		return string(runes)
	}
	return string(runes[:textMax-1]) + "…"
}
