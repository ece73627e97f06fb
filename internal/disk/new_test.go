package disk

import (
	"testing"

	"github.com/containerd/errdefs"
)

// A sparse disk has room without memory: only what is written is kept.
type sparseDisk map[int64][]byte

func (d sparseDisk) WriteAt(p []byte, at int64) (int, error) {
	for i := range p {
		page := (at + int64(i)) &^ 0xfff
		if d[page] == nil {
			d[page] = make([]byte, 4096)
		}
		d[page][at+int64(i)-page] = p[i]
	}
	return len(p), nil
}

func (d sparseDisk) ReadAt(p []byte, at int64) (int, error) {
	for i := range p {
		page := (at + int64(i)) &^ 0xfff
		p[i] = 0
		if d[page] != nil {
			p[i] = d[page][at+int64(i)-page]
		}
	}
	return len(p), nil
}

func (d sparseDisk) Sync() error { return nil }

func TestNewTable(t *testing.T) {
	ids := map[string]bool{}
	for _, sector := range []int{512, 4096} {
		for _, size := range []uint64{NeededBytes, NeededBytes + 12345*4096, 4 << 40} {
			made, err := NewTable(sector, size/uint64(sector))
			if err != nil {
				t.Fatal(err)
			}
			d := sparseDisk{}
			if err := made.Write(d); err != nil {
				t.Fatal(err)
			}
			read, err := ReadTable(d, sector, size/uint64(sector))
			if err != nil || read.Damaged {
				t.Fatalf("%d, %d: %v, damaged %t", sector, size, err, read.Damaged)
			}
			if changed, err := read.Grow(PERM); changed || err != nil {
				t.Errorf("%d, %d: PERM grows by itself: %t, %v", sector, size, changed, err)
			}
			end := int64(0)
			for i, p := range read.Partitions {
				if ids[p.ID.String()] {
					t.Errorf("id %v is there twice", p.ID)
				}
				ids[p.ID.String()] = true
				want := []uint64{ESPBytes, SlotBytes, SlotBytes, PERMBytesMin}[i]
				if got := read.Bytes(p); got < want || i < 3 && got != want {
					t.Errorf("%s has %d bytes, want %d", p.Name, got, want)
				}
				if at := read.Offset(p); at < end || at%alignBytes != 0 {
					t.Errorf("%s begins at %d, the one before ends at %d", p.Name, at, end)
				}
				end = read.Offset(p) + int64(read.Bytes(p))
			}
			if uint64(end) > size-33*uint64(sector) {
				t.Errorf("PERM ends at %d of %d", end, size)
			}
		}
	}
	for _, tc := range []struct {
		sector int
		size   uint64
	}{{512, NeededBytes - 1<<20}, {512, 1 << 30}, {4096, 4 << 30}, {520, 1 << 40}} {
		if _, err := NewTable(tc.sector, tc.size/uint64(tc.sector)); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%d bytes, blocks of %d: %v", tc.size, tc.sector, err)
		}
	}
}
