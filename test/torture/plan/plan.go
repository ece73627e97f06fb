// Package plan decides what a fault campaign does, from a seed alone, and tells what
// came of it. It touches no machine.
package plan

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Kind is a kind of fault.
type Kind struct {
	Name string
	What string // is done, for the report
	// HoldMin and HoldMax bound how long the fault is left to last. Both are 0 where it
	// is over at once.
	HoldMin, HoldMax time.Duration
	// Gone says how it is ended; "" where it is over at once.
	Gone string
	// Recover is how long the capsule may take once it is gone, on a machine with KVM.
	Recover time.Duration
	// Undisturbed: no workload may have been started again by it.
	Undisturbed bool
	// Inside: only a debug session on the capsule can do it.
	Inside bool
	// MicroVM: it needs a workload of that kind.
	MicroVM bool
	// Apart: the capsule may not be reached while it lasts.
	Apart bool
	// Outside: it is done to the machine, whether the capsule is reached or not.
	Outside bool
}

// Names of kinds.
const (
	Daemon     = "daemon"
	Containerd = "containerd"
	Shim       = "shim"
	QEMU       = "qemu"
	Perm       = "perm"
	Pool       = "pool"
	Clock      = "clock"
	Link       = "link"
	DHCP       = "dhcp"
	Power      = "power"
	Reset      = "reset"
)

// Kinds are all that there are.
var Kinds = []Kind{
	{Name: Daemon, What: "`capsuled serve` is killed", Recover: 30 * time.Second, Undisturbed: true},
	{Name: Containerd, What: "containerd is killed", Recover: time.Minute, Undisturbed: true},
	{Name: Shim, What: "the shim of all containers is killed", Recover: time.Minute, Inside: true},
	{Name: QEMU, What: "the QEMU of a microVM is killed", Recover: time.Minute, Inside: true, MicroVM: true},
	{
		Name: Perm, What: "a container fills `/perm`", HoldMin: 10 * time.Second, HoldMax: 40 * time.Second,
		Gone: "the container is deleted", Recover: 2 * time.Minute,
	},
	{
		// What fails meanwhile is started again after a back-off as long as it failed before.
		Name: Pool, What: "a volume fills the pool", HoldMin: 10 * time.Second, HoldMax: 40 * time.Second,
		Gone: "the volume is deleted", Recover: 4 * time.Minute,
	},
	{
		Name: Clock, What: "the time server's clock jumps an hour to 400 days ahead", HoldMin: 5 * time.Second, HoldMax: 60 * time.Second,
		Gone: "it jumps back", Recover: time.Minute, Undisturbed: true,
	},
	{
		Name: Link, What: "the network cable is pulled, up to five times in a row", HoldMin: 3 * time.Second, HoldMax: 90 * time.Second,
		Gone: "it is plugged in", Recover: time.Minute, Undisturbed: true, Apart: true,
	},
	{
		Name: DHCP, What: "the router gives another address, refuses the lease, or is silent", HoldMin: 10 * time.Second, HoldMax: 100 * time.Second,
		Gone: "it answers, with an address that stays", Recover: 3 * time.Minute, Undisturbed: true, Apart: true,
	},
	{Name: Power, What: "the power is cut; one time in three the hardware clock forgets the time, too", Recover: 2 * time.Minute, Outside: true},
	{Name: Reset, What: "the machine is reset", Recover: 2 * time.Minute, Outside: true},
}

// Sudden tells whether it is over as soon as it has struck.
func (k Kind) Sudden() bool { return k.HoldMax == 0 }

// Find gives a kind by its name; the zero Kind when there is none.
func Find(name string) Kind {
	if i := slices.IndexFunc(Kinds, func(k Kind) bool { return k.Name == name }); i >= 0 {
		return Kinds[i]
	}
	return Kind{}
}

// Choose gives the kinds that a list names, "" for all, without repeats and in the order
// of Kinds.
func Choose(names string) ([]Kind, error) {
	if strings.TrimSpace(names) == "" {
		return slices.Clone(Kinds), nil
	}
	wanted := map[string]bool{}
	for name := range strings.SplitSeq(names, ",") {
		if name = strings.TrimSpace(name); Find(name).Name == "" {
			return nil, fmt.Errorf("no fault %q; there are %s", name, strings.Join(Names(Kinds), ", "))
		}
		wanted[name] = true
	}
	return slices.DeleteFunc(slices.Clone(Kinds), func(k Kind) bool { return !wanted[k.Name] }), nil
}

// Names of kinds, in their order.
func Names(kinds []Kind) []string {
	var list []string
	for _, k := range kinds {
		list = append(list, k.Name)
	}
	return list
}

// Fault is one of a campaign.
type Fault struct {
	Kind string `json:"kind"`
	// Calm passes before it, and Hold until it is ended.
	Calm time.Duration `json:"calm"`
	Hold time.Duration `json:"hold,omitempty"`
	// Pick chooses among the ways in which this kind is done.
	Pick uint32 `json:"pick"`
	// During is a kind that strikes in the middle of it; "" is none.
	During string `json:"during,omitempty"`
}

func (f Fault) String() string {
	text := fmt.Sprintf("%s, picked %d", f.Kind, f.Pick)
	if f.Hold > 0 {
		text += fmt.Sprintf(", for %s", f.Hold)
	}
	if f.During != "" {
		text += fmt.Sprintf(", %s in the middle", f.During)
	}
	return text
}

// kinds of a fault: its own, and that of what strikes during it.
func (f Fault) kinds() []Kind {
	list := []Kind{Find(f.Kind)}
	if f.During != "" {
		list = append(list, Find(f.During))
	}
	return list
}

// Recover is how long the capsule may take once all of it is gone.
func (f Fault) Recover() (sum time.Duration) {
	for _, k := range f.kinds() {
		sum += k.Recover
	}
	return sum
}

// Undisturbed tells whether no workload may have been started again by it.
func (f Fault) Undisturbed() bool {
	return !slices.ContainsFunc(f.kinds(), func(k Kind) bool { return !k.Undisturbed })
}

const (
	calmMin = 2 * time.Second
	calmMax = 12 * time.Second
	// duringOneIn of the faults that last has another one in it, after the first round.
	duringOneIn = 3
)

// Faults gives the faults of a campaign, without end. They come in rounds that have each
// kind once, in an order of chance. Equal seeds and kinds give equal faults.
func Faults(seed uint64, kinds []Kind) iter.Seq[Fault] {
	return func(yield func(Fault) bool) {
		random := rand.New(rand.NewPCG(seed, 9))
		for round := 0; len(kinds) > 0; round++ {
			for _, i := range random.Perm(len(kinds)) {
				f := fault(random, kinds[i])
				if fit := strikers(kinds, kinds[i]); round > 0 && len(fit) > 0 && random.IntN(duringOneIn) == 0 {
					f.During = fit[random.IntN(len(fit))].Name
				}
				if !yield(f) {
					return
				}
			}
		}
	}
}

// strikers are the kinds that can strike while one lasts.
func strikers(kinds []Kind, lasting Kind) (fit []Kind) {
	for _, k := range kinds {
		if !lasting.Sudden() && k.Sudden() && (k.Outside || !lasting.Apart) {
			fit = append(fit, k)
		}
	}
	return fit
}

func fault(random *rand.Rand, k Kind) Fault {
	between := func(least, most time.Duration) time.Duration {
		return (least + time.Duration(random.Int64N(int64(most-least)+1))).Round(time.Second)
	}
	f := Fault{Kind: k.Name, Calm: between(calmMin, calmMax), Pick: random.Uint32N(60)}
	if !k.Sudden() {
		f.Hold = between(k.HoldMin, k.HoldMax)
	}
	return f
}
