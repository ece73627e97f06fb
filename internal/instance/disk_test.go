package instance

import (
	"testing"

	"capsule/internal/workload"
)

func TestDiskBound(t *testing.T) {
	const gib = 1 << 30
	for _, tc := range []struct{ wanted, room, want int64 }{
		{0, 100 * gib, 10 * gib}, {0, 8 * gib, 2 * gib}, {3 * gib, 8 * gib, 3 * gib}, {1 << 20, 100 * gib, 1 << 20},
	} {
		if got := diskBytes(tc.wanted, tc.room); got != tc.want {
			t.Errorf("%d of %d: %d, want %d", tc.wanted, tc.room, got, tc.want)
		}
	}
	if bytes, _, err := DiskBound(workload.Resources{DiskBytes: 5}, t.TempDir()); bytes != 5 || err != nil {
		t.Errorf("%d, %v", bytes, err)
	}
	if _, _, err := DiskBound(workload.Resources{}, "/no/such/folder"); err == nil {
		t.Error("the size of nothing")
	}
}
