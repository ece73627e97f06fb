package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"
	"unicode/utf16"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

// A memDisk is a disk in memory, which can fail after so many writes: a cut.
type memDisk struct {
	b    []byte
	left int // writes until the cut; negative: never
}

var errCut = errors.New("power cut")

func (d *memDisk) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(d.b).ReadAt(p, off)
}
func (d *memDisk) Sync() error { return nil }
func (d *memDisk) WriteAt(p []byte, off int64) (int, error) {
	if d.left == 0 {
		return 0, errCut
	}
	d.left--
	return copy(d.b[off:], p), nil
}

// newDisk makes a disk with ESP, both slots and PERM of 1 MiB each.
func newDisk(t testing.TB, sector, sizeMiB int) *memDisk {
	d := &memDisk{b: make([]byte, sizeMiB<<20), left: -1}
	entries := make([]byte, 128*entryLen)
	le := binary.LittleEndian
	for i, name := range []string{ESP, SlotA, SlotB, PERM} {
		e := entries[i*entryLen:]
		e[0], e[16] = byte(i+1), byte(0xa0+i)
		le.PutUint64(e[32:], uint64((i+1)<<20/sector))
		le.PutUint64(e[40:], uint64((i+2)<<20/sector)-1)
		for j, u := range utf16.Encode([]rune(name)) {
			le.PutUint16(e[entryNameAt+2*j:], u)
		}
	}
	header := make([]byte, headerLen)
	copy(header, gptMagic)
	le.PutUint32(header[8:], 0x10000)
	le.PutUint32(header[12:], headerLen)
	le.PutUint64(header[40:], 34)
	le.PutUint32(header[80:], 128)
	le.PutUint32(header[84:], entryLen)
	table := &Table{Sector: sector, Sectors: uint64(len(d.b) / sector), header: header, entries: entries}
	if err := table.Write(d); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *memDisk) read(sector int) (*Table, error) {
	return ReadTable(d, sector, uint64(len(d.b)/sector))
}

func TestReadTable(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		d := newDisk(t, sector, 8)
		table, err := d.read(sector)
		if err != nil {
			t.Fatal(err)
		}
		if table.Damaged {
			t.Error("a whole table counts as damaged")
		}
		p, err := table.ByName(PERM)
		if err != nil {
			t.Fatal(err)
		}
		want := Partition{Number: 4, Name: PERM, Type: GUID{4}, ID: GUID{0xa3}, First: uint64(4 << 20 / sector), Last: uint64(5<<20/sector) - 1}
		if diff := cmp.Diff(want, p); diff != "" {
			t.Error(diff)
		}
		if _, ok := table.ByID("000000A0-0000-0000-0000-000000000000"); !ok {
			t.Error("ESP not found by its id in upper case")
		}
		if _, err := table.ByName("other"); !errdefs.IsNotFound(err) {
			t.Error(err)
		}
	}
}

func TestReadTableDamage(t *testing.T) {
	for name, tc := range map[string]struct {
		hurt    func(b []byte)
		damaged bool
		err     func(error) bool
	}{
		"primary header":  {func(b []byte) { b[512+20]++ }, true, nil},
		"primary entries": {func(b []byte) { b[1024]++ }, true, nil},
		"backup header":   {func(b []byte) { b[len(b)-512]++ }, true, nil},
		"both":            {func(b []byte) { b[512+20]++; b[len(b)-500]++ }, false, errdefs.IsDataLoss},
		"no table":        {func(b []byte) { clear(b) }, false, errdefs.IsNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t, 512, 8)
			tc.hurt(d.b)
			table, err := d.read(512)
			if tc.err != nil {
				if !tc.err(err) {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil || table.Damaged != tc.damaged {
				t.Fatal(table, err)
			}
			if _, err := table.ByName(PERM); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDuplicateName(t *testing.T) {
	table := &Table{Partitions: []Partition{{Name: PERM}, {Name: PERM}}}
	if _, err := table.ByName(PERM); !errdefs.IsAlreadyExists(err) {
		t.Errorf("two partitions of one name: %v", err)
	}
}

func TestGrow(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		d := newDisk(t, sector, 8)
		d.b = append(d.b, make([]byte, 8<<20)...)
		table, err := d.read(sector)
		if err != nil {
			t.Fatal(err)
		}
		changed, err := table.Grow(PERM)
		if err != nil || !changed {
			t.Fatal(changed, err)
		}
		if err := table.Write(d); err != nil {
			t.Fatal(err)
		}
		again, err := d.read(sector)
		if err != nil || again.Damaged {
			t.Fatal(again, err)
		}
		p, _ := again.ByName(PERM)
		if end := (p.Last + 1) * uint64(sector); end != 15<<20 {
			t.Errorf("sector %d: PERM ends at %d, want the last whole MiB before the backup", sector, end)
		}
		if changed, err := again.Grow(PERM); err != nil || changed {
			t.Errorf("a second time: %v, %v", changed, err)
		}
	}
}

func TestGrowRefusesWhatLiesBehind(t *testing.T) {
	d := newDisk(t, 512, 8)
	table, err := d.read(512)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := table.Grow(SlotB); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("growing into PERM: %v", err)
	}
}

// A cut after any write leaves a table with all partitions, which the next start
// grows again.
func TestGrowCut(t *testing.T) {
	for cut := range 5 {
		d := newDisk(t, 512, 8)
		d.b = append(d.b, make([]byte, 8<<20)...)
		table, err := d.read(512)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := table.Grow(PERM); err != nil {
			t.Fatal(err)
		}
		d.left = cut
		if err := table.Write(d); (err != nil) != (cut < 4) {
			t.Fatalf("cut after %d writes: %v", cut, err)
		}
		d.left = -1
		after, err := d.read(512)
		if err != nil {
			t.Fatalf("cut after %d writes: %v", cut, err)
		}
		if _, err := after.Grow(PERM); err != nil {
			t.Fatal(err)
		}
		if err := after.Write(d); err != nil {
			t.Fatal(err)
		}
		if last, err := d.read(512); err != nil || last.Damaged || len(last.Partitions) != 4 {
			t.Errorf("after cut %d and repair: %+v, %v", cut, last, err)
		}
	}
}

func FuzzReadTable(f *testing.F) {
	d := newDisk(f, 512, 8)
	f.Add(d.b[512:1024], d.b[1024:2048])
	f.Fuzz(func(t *testing.T, header, entries []byte) {
		d := &memDisk{b: make([]byte, 64<<10), left: -1}
		copy(d.b[512:1024], header)
		copy(d.b[1024:], entries)
		if len(header) >= headerLen { // reach the code behind the checksums
			le := binary.LittleEndian
			if n := int64(le.Uint32(d.b[512+80:])) * entryLen; n > 0 && n < 32<<10 {
				le.PutUint32(d.b[512+88:], crc32.ChecksumIEEE(d.b[1024:1024+n]))
			}
			if size := le.Uint32(d.b[512+12:]); size >= headerLen && size <= 512 {
				le.PutUint32(d.b[512+16:], sum(d.b[512:512+size], 16))
			}
		}
		table, err := d.read(512)
		if err != nil {
			return
		}
		if changed, err := table.Grow(PERM); err == nil && changed {
			_ = table.Write(d)
		}
	})
}

func TestEFIText(t *testing.T) {
	text := []byte{7, 0, 0, 0}
	for _, u := range utf16.Encode([]rune("AB-1\x00")) {
		text = binary.LittleEndian.AppendUint16(text, u)
	}
	if got, err := parseEFIText(text); err != nil || got != "AB-1" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := parseEFIText([]byte{1, 2}); !errdefs.IsDataLoss(err) {
		t.Error(err)
	}
}

func TestGUIDText(t *testing.T) {
	g := GUID{0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}
	if got := g.String(); got != "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" { // the ESP's type
		t.Error(got)
	}
}
