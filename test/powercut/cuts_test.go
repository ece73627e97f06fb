//go:build machine

package powercut

import (
	"cmp"
	"math/rand/v2"
	"slices"

	"capsule/internal/blocklog"
	"capsule/test/powercut/plan"
)

const (
	// quickCuts are how many cuts the quick form tries.
	quickCuts = 16
	// quickUpdateCuts are those at the updates.
	quickUpdateCuts = 8
	// sweepCuts are those of the sweep besides all flushes; roundCuts are those of
	// one round.
	sweepCuts = 900
	roundCuts = 60
	// spotCuts are for each kind of spot in the quick form, for each spot in the
	// sweep.
	spotCuts = 3
	// flushesMax of one operation are cut at in the sweep.
	flushesMax = 200
)

// sample picks cuts at random, the same ones for the same seed: a fifth of them
// in the first step, and of all a third in each mode. More of them are where an
// operation was under way than where nothing was. A few are at spots.
func sample(l *blocklog.Log, steps []step, count int, at []spot, seed uint64) []blocklog.Cut {
	random := rand.New(rand.NewPCG(seed, 0))
	within := func(s step) int {
		from, to := l.Begun(s.Begin), l.Begun(s.Acked)
		return from + random.IntN(max(to-from, 1))
	}
	var cuts []blocklog.Cut
	for i := range count {
		s := steps[0]
		if i%5 > 0 && len(steps) > 1 {
			s = steps[1+random.IntN(len(steps)-1)]
		}
		cuts = append(cuts, modeOf(l, i, within(s), random.Uint64()))
	}
	for _, s := range at {
		if all := s.cuts(l, random); len(all) > 0 {
			for range spotCuts {
				cuts = append(cuts, all[random.IntN(len(all))])
			}
		}
	}
	return byBase(l, cuts)
}

// modeOf makes a cut after n entries, or soon after: one that can tear a write,
// or one just before a flush, when most of what was written can get lost.
func modeOf(l *blocklog.Log, i, n int, seed uint64) blocklog.Cut {
	c := blocklog.Cut{Mode: []blocklog.Mode{blocklog.Prefix, blocklog.Drop, blocklog.Torn}[i%3], N: n, Seed: seed}
	switch c.Mode {
	case blocklog.Torn:
		for c.N < len(l.Entries) && !l.Tears(c.N) {
			c.N++
		}
	case blocklog.Drop:
		for c.N < len(l.Entries) && l.Entries[c.N].Flags&blocklog.Flush == 0 {
			c.N++
		}
	}
	return c
}

// sweep is a cut at each flush, but for operations with very many, and so many
// others, in rounds: each is spread over the whole recording, so that those that
// there is time for tell of all of it.
func sweep(l *blocklog.Log, steps []step, more int, seed uint64) [][]blocklog.Cut {
	cuts := []blocklog.Cut{{Mode: blocklog.Prefix}}
	for _, n := range fewer(l, steps) {
		cuts = append(cuts, blocklog.Cut{Mode: blocklog.Prefix, N: n})
	}
	random := rand.New(rand.NewPCG(seed, 1))
	for range spotCuts {
		for _, s := range slices.Concat(spots, updateSpots) {
			cuts = append(cuts, s.cuts(l, random)...)
		}
	}
	cuts = append(cuts, sample(l, steps, more, spots, seed)...)
	random.Shuffle(len(cuts), func(i, j int) { cuts[i], cuts[j] = cuts[j], cuts[i] })
	var rounds [][]blocklog.Cut
	for round := range slices.Chunk(cuts, roundCuts) {
		rounds = append(rounds, byBase(l, round))
	}
	return rounds
}

// fewer are the flushes to cut at: of one operation at most flushesMax, evenly.
func fewer(l *blocklog.Log, steps []step) []int {
	of := func(n int) int { // the operation that it belongs to
		return slices.IndexFunc(steps, func(s step) bool { return n < l.Begun(s.Acked) })
	}
	have := map[int]int{}
	for _, n := range l.Flushes() {
		have[of(n)]++
	}
	var some []int
	seen := map[int]int{}
	for _, n := range l.Flushes() {
		i := of(n)
		seen[i]++
		if every := (have[i] + flushesMax - 1) / flushesMax; seen[i]%every == 0 {
			some = append(some, n)
		}
	}
	return some
}

// A spot is a kind of write at which a cut does more harm than at others.
type spot struct {
	mode  blocklog.Mode
	at    int64 // of the magic in the write
	magic string
}

var spots = []spot{
	// An ext4 superblock spans two sectors and its checksum is in the second
	// (fs/ext4/ext4.h).
	{blocklog.Torn, 1024 + 56, "\x53\xef"},
	// lvm writes the header of its metadata without a flush before or after it
	// (lvm2, lib/format_text/layout.h).
	{blocklog.Drop, 4096 + 4, " LVM2 x[5A%r0N*>"},
}

// updateSpots are boot entries: the FAT that they are on has no journal.
var updateSpots = []spot{{blocklog.Drop, 0, "title Capsule "}, {blocklog.Prefix, 0, "title Capsule "}}

// cuts are right behind each such write.
func (s spot) cuts(l *blocklog.Log, random *rand.Rand) (all []blocklog.Cut) {
	for i, e := range l.Entries {
		magic := make([]byte, len(s.magic))
		if e.HasData() && e.Len >= s.at+int64(len(magic)) && l.Data(e, s.at, magic) == nil && string(magic) == s.magic {
			all = append(all, blocklog.Cut{Mode: s.mode, N: i + 1, Seed: random.Uint64()})
		}
	}
	return all
}

// byBase orders cuts so that one disk goes forward through all.
func byBase(l *blocklog.Log, cuts []blocklog.Cut) []blocklog.Cut {
	slices.SortStableFunc(cuts, func(a, b blocklog.Cut) int {
		return cmp.Or(cmp.Compare(l.Flushed(a.N), l.Flushed(b.N)), cmp.Compare(a.N, b.N))
	})
	return cuts
}

// divide deals cuts out to so many machines.
func divide(cuts []blocklog.Cut, machines int) [][]blocklog.Cut {
	parts := make([][]blocklog.Cut, machines)
	for i, c := range cuts {
		parts[i%machines] = append(parts[i%machines], c)
	}
	return parts
}

// located gives facts their place in the log.
func located(l *blocklog.Log, facts []*fact) []plan.Fact {
	var all []plan.Fact
	for _, f := range facts {
		f.From = l.Begun(f.Begin)
		if f.End > 0 {
			f.Until = l.Begun(f.End)
		}
		all = append(all, f.Fact)
	}
	return all
}
