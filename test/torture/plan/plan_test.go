package plan

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func first(seed uint64, kinds []Kind, n int) []Fault {
	var list []Fault
	for f := range Faults(seed, kinds) {
		if len(list) == n {
			break
		}
		list = append(list, f)
	}
	return list
}

const many = 500

// The plan is a function of the seed and the kinds: a run can be repeated, and a
// longer one begins as a shorter one does.
func TestFaultsRepeat(t *testing.T) {
	a := first(7, Kinds, many)
	if diff := cmp.Diff(a, first(7, Kinds, many)); diff != "" {
		t.Error("the same seed: ", diff)
	}
	if diff := cmp.Diff(a[:9], first(7, Kinds, 9)); diff != "" {
		t.Error("fewer: ", diff)
	}
	if slices.Equal(a, first(8, Kinds, many)) {
		t.Error("another seed plans the same")
	}
	if got := first(7, nil, 1); got != nil {
		t.Error("no kinds: ", got)
	}
}

// What a seed planned for an older report, it plans now.
func TestFaultsOfSeed1(t *testing.T) {
	var text strings.Builder
	for _, f := range first(1, Kinds, 3*len(Kinds)) {
		fmt.Fprintf(&text, "%s, after %s\n", f, f.Calm)
	}
	golden(t, "seed1.txt", text.String())
}

func TestFaultsInBounds(t *testing.T) {
	held, during := 0, 0
	for i, f := range first(3, Kinds, many) {
		k := Find(f.Kind)
		if f.Calm < calmMin || f.Calm > calmMax || f.Hold < k.HoldMin || f.Hold > k.HoldMax {
			t.Errorf("fault %d: %v after %v", i, f, f.Calm)
		}
		if f.Hold > 0 && i >= len(Kinds) {
			held++
		}
		if f.During == "" {
			continue
		}
		during++
		if d := Find(f.During); k.Sudden() || !d.Sudden() || k.Apart && !d.Outside || i < len(Kinds) {
			t.Errorf("fault %d: %v", i, f)
		}
		if want := k.Recover + Find(f.During).Recover; f.Recover() != want {
			t.Errorf("fault %d: recovers within %v, want %v", i, f.Recover(), want)
		}
	}
	if during < held/duringOneIn/2 || during > held*2/duringOneIn {
		t.Errorf("%d of %d have another one in them", during, held)
	}
}

func TestRoundsHaveEachKindOnce(t *testing.T) {
	kinds, err := Choose("power, pool,daemon,link")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{Daemon, Pool, Link, Power}, Names(kinds)); diff != "" {
		t.Fatal(diff)
	}
	list := first(5, kinds, 10*len(kinds))
	for round := range slices.Chunk(list, len(kinds)) {
		var got []string
		for _, f := range round {
			got = append(got, f.Kind)
		}
		slices.Sort(got)
		if diff := cmp.Diff([]string{Daemon, Link, Pool, Power}, got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestChoose(t *testing.T) {
	if all, err := Choose(" "); err != nil || len(all) != len(Kinds) {
		t.Errorf("%v, %v", Names(all), err)
	}
	if twice, err := Choose("power,power"); err != nil || len(twice) != 1 {
		t.Errorf("%v, %v", Names(twice), err)
	}
	for _, bad := range []string{"fire", "power,", "Power"} {
		if _, err := Choose(bad); err == nil || !strings.Contains(err.Error(), Reset) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestKindsAreComplete(t *testing.T) {
	for _, k := range Kinds {
		if k.What == "" || k.Recover <= 0 || k.Sudden() != (k.Gone == "") || k.HoldMin > k.HoldMax || k.MicroVM && !k.Inside {
			t.Errorf("%+v", k)
		}
		if Find(k.Name).What != k.What {
			t.Errorf("%q is there twice", k.Name)
		}
	}
}

func TestUndisturbed(t *testing.T) {
	for f, want := range map[Fault]bool{
		{Kind: Daemon}:                        true,
		{Kind: Power}:                         false,
		{Kind: Link}:                          true,
		{Kind: Clock, During: Containerd}:     true,
		{Kind: Clock, During: Reset}:          false,
		{Kind: Pool, During: Daemon}:          false,
		{Kind: Perm, Hold: 10 * time.Second}:  false,
		{Kind: DHCP, Hold: 100 * time.Second}: true,
	} {
		if f.Undisturbed() != want {
			t.Errorf("%v: %v", f, !want)
		}
	}
}
