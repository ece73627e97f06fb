package plan

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Result is what came of one fault.
type Result struct {
	Fault Fault
	At    time.Duration // since the campaign began
	// Lasted until it was gone, and Recovered from then until all was well.
	Lasted, Recovered time.Duration
	// Silence is the longest time without an acknowledged write, from its begin until all
	// was well.
	Silence time.Duration
	// Problem is what was not well in time, or wrong; "" is none.
	Problem string
}

// Ledger is what one workload kept.
type Ledger struct {
	Name   string
	Kind   string // "Container" or "MicroVM"
	Acked  uint64 // writes that were acknowledged
	Starts int    // of the workload
	Checks int    // times that all of it was read from the disk
	// Lost are what was acknowledged and not there, or not the same.
	Lost []string
}

// Summary is a whole campaign.
type Summary struct {
	Version string // of the image
	Code    string // that made the faults
	Date    time.Time
	Seed    uint64
	Kinds   []Kind
	LeftOut []string // kinds that could not be tried, each with the reason
	Accel   string   // of the machine, "kvm" or "tcg"
	Minutes int
	Results []Result
	Ledgers []Ledger
	Ended   string // why it ended before its time; "" when it did not
}

// Failed counts the faults that the capsule did not get over.
func (s Summary) Failed() (n int) {
	for _, r := range s.Results {
		if r.Problem != "" {
			n++
		}
	}
	return n
}

// Lost counts what ledgers lost.
func (s Summary) Lost() (n int) {
	for _, l := range s.Ledgers {
		n += len(l.Lost)
	}
	return n
}

func (s Summary) acked() (n uint64) {
	for _, l := range s.Ledgers {
		n += l.Acked
	}
	return n
}

const method = `## Faults, while workloads count

A capsule in QEMU runs a container that keeps a ledger on a volume, and where the
machine has KVM a microVM with another one. Each record is bound to all before it by
its SHA-256, is synced, and only then acknowledged to the campaign, which remembers it.
Meanwhile faults strike, one after the other, in an order that the seed alone decides.
After each one, within the time that is given for it, the API answers, all workloads run
that the manifests want to, a program can be run in each of them, and each ledger grows
again. Then the ledger is read from its disk: a record that is missing, doubled or
changed, or that was acknowledged and has another history, is lost, and ends the
campaign. A fault that is none of a workload's business, such as a killed daemon, must
not have started it again. The last fault is always a power cut.

` + "```console\n$ make torture\n$ make torture MINUTES=10 SEED=7 FAULTS=power,pool\n```" + `

It needs root, for a network of its own with a router that it plays. ` + "`MINUTES=60`" + ` and
` + "`SEED=1`" + ` are the defaults; ` + "`MICROVM=1`" + ` has the microVM also where it is emulated, which
takes minutes at each start; ` + "`KEEP=FOLDER`" + ` keeps the machine. Processes are killed in a
debug session of the capsule, where it has that. What is given for recovery is four
times as long without KVM. The form of ten minutes is a stage of ` + "`make test`" + ` that runs
with ` + "`CAPSULE_TEST_LONG=1`" + `.

| Fault | What is done | It ends when | Recovery, at most |
|---|---|---|---:|
`

// last is the heading of what a campaign found.
const last = "\n### The last campaign\n\n"

// head is what every report begins with.
func head() []byte {
	var b bytes.Buffer
	b.WriteString(method)
	for _, k := range Kinds {
		gone := k.Gone
		if k.Sudden() {
			gone = "at once"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %d s |\n", k.Name, k.What, gone, int(k.Recover.Seconds()))
	}
	b.WriteString(last)
	return b.Bytes()
}

// Section is the part of docs/reliability.md that tells of it.
func (s Summary) Section() []byte {
	b := bytes.NewBuffer(head())
	if len(s.Results) == 0 {
		b.WriteString("There was none yet.\n")
		return b.Bytes()
	}
	fmt.Fprintf(b, "Image %s, faults by the code of %s, %s, seed %d, `FAULTS=%s`, %s, %d minutes.\n", s.Version, s.Code,
		s.Date.UTC().Format("2006-01-02"), s.Seed, strings.Join(Names(s.Kinds), ","), s.Accel, s.Minutes)
	fmt.Fprintf(b, "**%d faults, %d of them not got over; %d acknowledged writes, %d lost.**\n", len(s.Results), s.Failed(), s.acked(), s.Lost())
	if s.Ended != "" {
		fmt.Fprintf(b, "It ended before its time: %s\n", line(s.Ended))
	}
	for _, text := range s.LeftOut {
		fmt.Fprintf(b, "Left out: %s.\n", line(text))
	}
	s.writeKinds(b)
	s.writeLedgers(b)
	s.writeProblems(b)
	return b.Bytes()
}

// writeKinds sums up what came of each kind, with and without another during it.
func (s Summary) writeKinds(b *bytes.Buffer) {
	b.WriteString("\n| Fault | Tried | Failed | Recovered after, median | at most | Longest silence |\n|---|---:|---:|---:|---:|---:|\n")
	for _, k := range Kinds { // all: the last power cut need not be of those that were chosen
		failed, recovered, silence := 0, []time.Duration(nil), time.Duration(0)
		tried := 0
		for _, r := range s.Results {
			if r.Fault.Kind != k.Name {
				continue
			}
			tried++
			if r.Problem != "" {
				failed++
				continue
			}
			recovered, silence = append(recovered, r.Recovered), max(silence, r.Silence)
		}
		if tried == 0 {
			continue
		}
		if len(recovered) == 0 {
			fmt.Fprintf(b, "| `%s` | %d | %d | | | |\n", k.Name, tried, failed)
			continue
		}
		slices.Sort(recovered)
		fmt.Fprintf(b, "| `%s` | %d | %d | %.1f s | %.1f s | %.1f s |\n", k.Name, tried, failed,
			recovered[len(recovered)/2].Seconds(), recovered[len(recovered)-1].Seconds(), silence.Seconds())
	}
}

func (s Summary) writeLedgers(b *bytes.Buffer) {
	b.WriteString("\n| Ledger | Kind | Acknowledged writes | Starts | Read from the disk | Lost |\n|---|---|---:|---:|---:|---:|\n")
	for _, l := range s.Ledgers {
		fmt.Fprintf(b, "| `%s` | %s | %d | %d | %d | %d |\n", l.Name, l.Kind, l.Acked, l.Starts, l.Checks, len(l.Lost))
	}
}

func (s Summary) writeProblems(b *bytes.Buffer) {
	if s.Failed() == 0 && s.Lost() == 0 {
		return
	}
	b.WriteString("\n### What went wrong\n\n")
	for _, r := range s.Results {
		if r.Problem != "" {
			fmt.Fprintf(b, "- after %d s, %s: %s\n", int(r.At.Seconds()), r.Fault, line(r.Problem))
		}
	}
	for _, l := range s.Ledgers {
		for _, lost := range l.Lost {
			fmt.Fprintf(b, "- `%s`: %s\n", l.Name, line(lost))
		}
	}
}

// lineMax bounds what a report quotes, in bytes.
const lineMax = 600

// line has a text on one.
func line(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > lineMax {
		return strings.ToValidUTF8(text[:lineMax], "") + "…"
	}
	return text
}
