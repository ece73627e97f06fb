package blocklog

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

const testSector = 512

// A builder writes logs as QEMU does.
type builder struct{ bytes.Buffer }

func newBuilder() *builder {
	b := &builder{}
	b.Write(make([]byte, testSector))
	return b
}

func (b *builder) entry(flags Flags, sector, sectors uint64, data []byte) *builder {
	head := make([]byte, testSector)
	le := binary.LittleEndian
	le.PutUint64(head, sector)
	le.PutUint64(head[8:], sectors)
	le.PutUint64(head[16:], uint64(flags))
	le.PutUint64(head[24:], uint64(len(data)))
	b.Write(head)
	b.Write(data)
	return b
}

// write adds a write of whole sectors that are filled with a letter.
func (b *builder) write(sector uint64, letters string, flags Flags) *builder {
	var data []byte
	for _, c := range []byte(letters) {
		data = append(data, bytes.Repeat([]byte{c}, testSector)...)
	}
	return b.entry(flags, sector, uint64(len(letters)), data)
}

func (b *builder) flush() *builder { return b.entry(Flush, 0, 0, nil) }
func (b *builder) discard(sector, sectors uint64) *builder {
	return b.entry(Discard, sector, sectors, nil)
}

// bytes gives the log; counted is what its head says.
func (b *builder) bytes(counted uint64) []byte {
	data := bytes.Clone(b.Bytes())
	le := binary.LittleEndian
	le.PutUint64(data, magic)
	le.PutUint64(data[8:], version)
	le.PutUint64(data[16:], counted)
	le.PutUint32(data[24:], testSector)
	return data
}

func read(t testing.TB, data []byte) *Log {
	t.Helper()
	l, err := Read(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// memory is a disk.
type memory []byte

func (m memory) WriteAt(b []byte, at int64) (int, error) { return copy(m[at:], b), nil }
func (m memory) Discard(at, length int64) error          { clear(m[at : at+length]); return nil }

// text gives one letter for each sector, "." for zeros and "?" for a mix.
func (m memory) text() string {
	var s []byte
	for at := 0; at < len(m); at += testSector {
		c := m[at]
		switch {
		case !bytes.Equal(m[at:at+testSector], bytes.Repeat([]byte{c}, testSector)):
			c = '?'
		case c == 0:
			c = '.'
		}
		s = append(s, c)
	}
	return string(s)
}

func sample() *builder {
	return newBuilder().
		write(0, "ab", 0).      // 1
		write(4, "c", 0).       // 2
		flush().                // 3
		write(1, "defg", 0).    // 4
		discard(0, 1).          // 5
		write(7, "h", FUA).     // 6
		flush().                // 7
		write(0, "ijklmnop", 0) // 8
}

func TestRead(t *testing.T) {
	data := sample().bytes(7)
	l := read(t, data)
	if len(l.Entries) != 8 || l.Counted != 7 {
		t.Errorf("%d entries, %d counted", len(l.Entries), l.Counted)
	}
	if diff := cmp.Diff([]int{3, 7}, l.Flushes()); diff != "" {
		t.Error(diff)
	}
	for n, want := range []int{0, 0, 0, 3, 3, 3, 3, 7, 7} {
		if got := l.Flushed(n); got != want {
			t.Errorf("Flushed(%d) = %d, want %d", n, got, want)
		}
	}
	for size, want := range map[int64]int{0: 0, testSector: 0, testSector + 1: 1, 4 * testSector: 1, 4*testSector + 1: 2, int64(len(data)): 8} {
		if got := l.Begun(size); got != want {
			t.Errorf("Begun(%d) = %d, want %d", size, got, want)
		}
	}
}

// What isn't a whole entry ends the log, as long as the head counts no more.
func TestReadEnds(t *testing.T) {
	whole := sample().bytes(7)
	marked := newBuilder().entry(Mark, 0, 0, nil).write(0, "a", 0).bytes(2)
	copy(marked[testSector+entryLen:], "end") // a mark's text
	padded := bytes.Clone(whole)
	padded[testSector+40] = 1 // in the first entry's padding
	for name, tc := range map[string]struct {
		data []byte
		want int // entries; -1 is an error
	}{
		"whole":                  {whole, 8},
		"zeros behind":           {append(bytes.Clone(whole), make([]byte, 4096)...), 8},
		"last data cut":          {whole[:len(whole)-1], 7},
		"counted data cut":       {whole[:len(whole)-10*testSector], -1},
		"no entry":               {newBuilder().bytes(0), 0},
		"empty":                  {nil, -1},
		"noise in padding":       {padded, -1},
		"mark":                   {marked, 2},
		"unknown flag":           {newBuilder().entry(32, 1, 0, nil).bytes(0), 0},
		"write of nothing":       {newBuilder().entry(0, 5, 0, nil).bytes(0), 0},
		"huge":                   {newBuilder().entry(0, 0, 1<<63, nil).bytes(0), 0},
		"huge discard":           {newBuilder().entry(Discard, 0, 1<<63, nil).bytes(0), 0},
		"large discard, no data": {newBuilder().discard(0, 1<<30).flush().bytes(2), 2},
		"foreign magic":          {append([]byte{1}, whole[1:]...), -1},
	} {
		l, err := Read(bytes.NewReader(tc.data), int64(len(tc.data)))
		if (err != nil) != (tc.want < 0) {
			t.Errorf("%s: error %v", name, err)
		}
		if err == nil && len(l.Entries) != tc.want {
			t.Errorf("%s: %d entries, want %d", name, len(l.Entries), tc.want)
		}
	}
}

func TestReplay(t *testing.T) {
	l := read(t, sample().bytes(7))
	for n, want := range []string{
		"........", "ab......", "ab..c...", "ab..c...", "adefg...", ".defg...", ".defg..h", ".defg..h", "ijklmnop",
	} {
		disk := make(memory, 8*testSector)
		if err := Replay(l, disk, Cut{Mode: Prefix, N: n}); err != nil || disk.text() != want {
			t.Errorf("prefix %d: %q, want %q; %v", n, disk.text(), want, err)
		}
	}
	if err := Replay(l, make(memory, 8*testSector), Cut{Mode: Prefix, N: 9}); !errdefs.IsOutOfRange(err) {
		t.Error(err)
	}
	if err := Replay(l, make(memory, 8*testSector), Cut{Mode: "x", N: 8}); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}

// A dropped write is whole or absent, never one that a flush or FUA covers, and
// every mixture comes up.
func TestDrop(t *testing.T) {
	l := read(t, sample().bytes(7))
	seen := map[string]bool{}
	for seed := range uint64(200) {
		disk := make(memory, 8*testSector)
		if err := Replay(l, disk, Cut{Mode: Drop, N: 6, Seed: seed}); err != nil {
			t.Fatal(err)
		}
		seen[disk.text()] = true
		again := make(memory, 8*testSector)
		if err := Replay(l, again, Cut{Mode: Drop, N: 6, Seed: seed}); err != nil || !bytes.Equal(disk, again) {
			t.Fatalf("seed %d gave %q, then %q; %v", seed, disk.text(), again.text(), err)
		}
	}
	want := map[string]bool{"ab..c..h": true, "adefg..h": true, ".b..c..h": true, ".defg..h": true}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Error(diff)
	}
}

// A torn write has sectors of before and of after, and is never whole.
func TestTorn(t *testing.T) {
	l := read(t, sample().bytes(7))
	seen := map[string]bool{}
	for seed := range uint64(500) {
		disk := make(memory, 8*testSector)
		if err := Replay(l, disk, Cut{Mode: Torn, N: 8, Seed: seed}); err != nil {
			t.Fatal(err)
		}
		for i, c := range []byte(disk.text()) {
			if c != "ijklmnop"[i] && c != ".defg..h"[i] {
				t.Fatalf("seed %d: %q", seed, disk.text())
			}
		}
		seen[disk.text()] = true
	}
	if seen["ijklmnop"] || !seen["ijkl"+"g..h"] || len(seen) < 100 {
		t.Errorf("%d torn disks", len(seen))
	}
	for n, want := range map[int]bool{0: false, 1: true, 2: false, 3: false, 5: false, 8: true, 9: false} {
		if l.Tears(n) != want {
			t.Errorf("Tears(%d) = %v", n, !want)
		}
	}
}

// Going forward and then aside gives the same disk as starting anew.
func TestForward(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	b := newBuilder()
	for range 200 {
		switch random.IntN(8) {
		case 0:
			b.flush()
		case 1:
			b.discard(random.Uint64N(60), 1+random.Uint64N(4))
		default:
			b.write(random.Uint64N(56), "ABCDEFGH"[:1+random.IntN(8)], Flags(random.IntN(2))*FUA)
		}
	}
	l := read(t, b.bytes(0))
	forward := make(memory, 64*testSector)
	r := NewReplayer(l, forward)
	for n := range len(l.Entries) + 1 {
		for _, mode := range []Mode{Prefix, Drop, Torn} {
			c := Cut{Mode: mode, N: n, Seed: 7}
			base, err := l.Base(c)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Forward(base); err != nil || r.At() != base {
				t.Fatal(r.At(), err)
			}
			aside := bytes.Clone(forward)
			if err := r.Rest(memory(aside), c); err != nil {
				t.Fatal(err)
			}
			anew := make(memory, 64*testSector)
			if err := Replay(l, anew, c); err != nil || !bytes.Equal(aside, anew) {
				t.Fatalf("%v: %q, anew %q; %v", c, memory(aside).text(), anew.text(), err)
			}
		}
	}
	if err := r.Forward(0); !errdefs.IsOutOfRange(err) {
		t.Error(err)
	}
}

func TestDisk(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(8 * testSector); err != nil {
		t.Fatal(err)
	}
	if err := Replay(read(t, sample().bytes(7)), Disk{f}, Cut{Mode: Prefix, N: 7}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(f.Name())
	if err != nil || memory(data).text() != ".defg..h" {
		t.Errorf("%q, %v", memory(data).text(), err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(sample().bytes(7))
	f.Add(newBuilder().discard(0, 1<<30).flush().bytes(2))
	f.Add(newBuilder().bytes(1 << 63))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := Read(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		end := l.sector
		for i, e := range l.Entries {
			if e.begin != end || e.end > int64(len(data)) || e.At < 0 || e.Len < 0 || e.At+e.Len < 0 {
				t.Fatalf("entry %d: %+v", i, e)
			}
			end = e.end
			if e.HasData() {
				if err := l.Data(e, e.Len-1, make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if l.Begun(end) != len(l.Entries) || l.Counted > len(l.Entries) {
			t.Fatalf("%d of %d entries begun at the end, %d counted", l.Begun(end), len(l.Entries), l.Counted)
		}
	})
}
