package blocklog

import (
	"fmt"
	"math/rand/v2"

	"github.com/containerd/errdefs"
)

// A Mode is what a power cut does to requests that no flush covers.
type Mode string

// The modes.
const (
	// Prefix keeps the first N entries: a disk without a cache.
	Prefix Mode = "prefix"
	// Drop keeps what the last flush before N covers, writes with FUA, and of
	// the others a random half: a disk with a volatile cache.
	Drop Mode = "drop"
	// Torn keeps the first N entries, but of the last one only some sectors. A
	// sector is written whole or not at all.
	Torn Mode = "torn"
)

// A Cut is a moment at which the power went. The same cut is always the same
// disk.
type Cut struct {
	Mode Mode   `json:"mode"`
	N    int    `json:"n"`
	Seed uint64 `json:"seed"` // of Drop and Torn
}

func (c Cut) String() string { return fmt.Sprintf("mode=%s n=%d seed=%d", c.Mode, c.N, c.Seed) }

// A piece is a range of one entry, in bytes from its beginning.
type piece struct {
	entry     int
	from, len int64
}

// Base is the count of entries that every mode keeps of a cut: up to the last
// flush.
func (l *Log) Base(c Cut) (int, error) {
	if c.N < 0 || c.N > len(l.Entries) {
		return 0, fmt.Errorf("cut after %d of %d log entries: %w", c.N, len(l.Entries), errdefs.ErrOutOfRange)
	}
	return l.Flushed(c.N), nil
}

// rest is what a cut keeps of the entries behind its base.
func (l *Log) rest(base int, c Cut) ([]piece, error) {
	random := rand.New(rand.NewPCG(c.Seed, uint64(c.N))) //nolint:gosec // to be repeated, not secret
	var keep []piece
	for i := base; i < c.N; i++ {
		e := l.Entries[i]
		switch {
		case c.Mode == Drop && e.Flags&FUA == 0 && random.IntN(2) == 0:
		case c.Mode == Torn && i == c.N-1 && e.HasData():
			keep = append(keep, l.tear(i, random)...)
		case c.Mode == Prefix || c.Mode == Drop || c.Mode == Torn:
			keep = append(keep, piece{entry: i, len: e.Len})
		default:
			return nil, fmt.Errorf("cut mode %q: %w", c.Mode, errdefs.ErrInvalidArgument)
		}
	}
	return keep, nil
}

// tear keeps the head of a write, or any of its sectors, but never all.
func (l *Log) tear(i int, random *rand.Rand) []piece {
	sectors := l.Entries[i].Len / l.sector
	if random.IntN(2) == 0 {
		return []piece{{entry: i, len: random.Int64N(sectors) * l.sector}}
	}
	lost := random.Int64N(sectors)
	var keep []piece
	for s := range sectors {
		if s != lost && random.IntN(2) == 0 {
			keep = append(keep, piece{entry: i, from: s * l.sector, len: l.sector})
		}
	}
	return keep
}

// Tears tells whether a cut after n entries can tear the last one.
func (l *Log) Tears(n int) bool {
	return n > 0 && n <= len(l.Entries) && l.Entries[n-1].HasData() && l.Entries[n-1].Len > l.sector
}
